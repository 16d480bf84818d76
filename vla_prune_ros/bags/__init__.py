# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded runs as regression tests: the verbs `record` and `replay` and what they stand on."""
