# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LIBERO (hf-libero on robosuite 1.4) as a simulated robot."""

from vla_prune_ros.sim.libero.robot import LiberoRobot

__all__ = ['LiberoRobot']
