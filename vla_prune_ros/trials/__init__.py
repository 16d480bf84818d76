# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verbs that start the nodes as processes, drive them over ROS and report what they did."""
