# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Closed-loop episodes, success statistics, FLOP count, pictures and reports."""
