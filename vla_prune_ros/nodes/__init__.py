# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes, one folder each; they share `ros` and never know each other.

Importing them needs neither torch nor mujoco: these are loaded when a node builds its policy or
its robot.
"""
