# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The verb `bench`: how fast the policy is, against plain paths and against the machine."""
