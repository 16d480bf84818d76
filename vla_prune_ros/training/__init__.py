# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Demonstrations, behaviour cloning and fine-tuning of the embedded policy."""
