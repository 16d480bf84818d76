# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The embedded tabletop simulation: scene, controller, tasks and scripted expert."""

from vla_prune_ros.sim.tabletop.robot import TabletopRobot

__all__ = ['TabletopRobot']
