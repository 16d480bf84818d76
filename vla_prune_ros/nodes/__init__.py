# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Thin ROS 2 shells around the policy and the simulated robots.

The only room that imports rclpy or message packages. Importing it needs neither torch nor mujoco:
they are loaded when a node builds its policy or its robot.
"""
