# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every ROS program here shares: messages, images, parameters, processes, diagnostics.

Knows no model. Importing it needs neither torch nor mujoco.
"""
