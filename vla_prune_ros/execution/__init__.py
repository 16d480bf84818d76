# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Playing chunks on a robot, without ROS: alignment, mixing, limits. Any robot needs it."""
