# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The robot bridge: plays the policy's chunks on an arm, and what only it uses."""
