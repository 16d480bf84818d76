# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Shifted worlds: what differs from the suite, at which level, and a robot in such a world."""

from vla_prune_ros.sim.shifts.axes import AXES, check_backend, parse_shift, shift_text
from vla_prune_ros.sim.shifts.robot import RECOVERED, ShiftedRobot, applies

__all__ = [
    'AXES',
    'RECOVERED',
    'ShiftedRobot',
    'applies',
    'check_backend',
    'parse_shift',
    'shift_text',
]
