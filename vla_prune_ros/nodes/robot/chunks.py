# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What comes from a policy, and whether this robot can do anything with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.execution.semantics import PREFIX, Semantics
from vla_prune_ros.nodes.robot.parameters import RobotConfig
from vla_prune_ros.ros.messages import MessageError, actions_from, to_ns

GRID = 0.1  # of a period, how far an action may be from its place


class ChunkGate:
    """Checks the policy's description once, and every chunk against it.

    Attributes:
        semantics: of the policy; None before it said so.
        misfit: why policy and robot do not go together; '' if they do.
        refused: chunks by cause.
    """

    def __init__(self, config: RobotConfig) -> None:
        self._config = config
        self.refused: Counter[str] = Counter()
        self.forget()

    def forget(self) -> None:
        """Another policy may come."""
        self._said: Mapping[str, str] | None = None
        self.semantics: Semantics | None = None
        self.misfit = 'no policy_info yet'

    def describe(self, values: Mapping[str, str] | None = None, *, kept: bool = False) -> None:
        """The policy says what it is; without `values` as it last did.

        If `kept` it may not say anything else than before.
        """
        self._said = values = self._said if values is None else values
        if values is None:
            return
        try:
            found = self._fitting(values)
        except ValueError as error:
            self.misfit = f'policy_info: {error}'
            return
        if kept and self.semantics not in (None, found):
            self.misfit = f'policy_info changed: {found.signature}, was {self.semantics.signature}'
            return
        self.semantics, self.misfit = found, ''

    def _fitting(self, values: Mapping[str, str]) -> Semantics:
        config = self._config
        semantics = Semantics.from_values(values)
        if config['output'] == 'joint_trajectory':
            wanted = {'kind': 'joint_absolute'}
        else:
            wanted = {'kind': 'ee_delta', 'frame': 'base', 'anchor': 'measured'}
            for name in ('scale_position', 'scale_rotation', 'rotation'):
                if config[PREFIX + name]:
                    wanted[name] = config[PREFIX + name]
        for name, value in wanted.items():
            if getattr(semantics, name) != value:
                raise ValueError(
                    f'{PREFIX}{name} is {getattr(semantics, name)}; this robot takes {value}'
                )
        if semantics.joints:
            self._compare_joints(semantics)
        rate = float(values.get('control_rate', 'nan'))
        if not abs(rate - config['control_rate']) < 1e-6 * config['control_rate']:
            raise ValueError(f'control_rate is {rate:g} Hz, that of the robot '
                             f'{config["control_rate"]:g} Hz')  # fmt: skip
        return semantics

    def _compare_joints(self, semantics: Semantics) -> None:
        """ValueError unless policy and robot have the same joints in the units agreed on."""
        own, theirs = set(self._config.joints), set(semantics.joints)
        if own != theirs:
            raise ValueError(
                f'{PREFIX}joints: the robot has no {sorted(theirs - own)}, the policy no '
                f'{sorted(own - theirs)}'
            )
        said = dict(zip(semantics.joints, semantics.units, strict=True))
        for name, unit in zip(
            self._config.joints, self._config.per_joint('joints.units'), strict=True
        ):
            if said[name] != unit:
                raise ValueError(
                    f'{PREFIX}units: {name} is in {said[name]}; this robot takes {unit}'
                )

    def check(self, message: JointTrajectory, now: int, since: int) -> tuple[int, np.ndarray]:
        """Stamp and actions of a chunk.

        Args:
            message: the chunk.
            now: node time, ns.
            since: observations from before it do not count any more, ns.

        Raises:
            MessageError: it must not be played. It was counted.
        """
        try:
            return self._checked(message, now, since)
        except _RefusedError as refused:
            self.refused[refused.cause] += 1
            raise MessageError(str(refused)) from None

    def _checked(self, message: JointTrajectory, now: int, since: int) -> tuple[int, np.ndarray]:
        if self.semantics is None or self.misfit:
            raise _RefusedError('misfit', self.misfit)
        meaning, period = self.semantics.signature, self._config.period
        if message.header.frame_id != meaning:
            raise _RefusedError(
                'meaning',
                f'actions mean {message.header.frame_id!r}, policy_info says {meaning!r}',
            )
        try:
            actions = actions_from(message, self.semantics.names)
        except MessageError as error:
            raise _RefusedError('content', str(error)) from None
        if not len(actions):
            raise _RefusedError('content', 'no actions')
        times = [to_ns(point.time_from_start) for point in message.points]
        if any(abs(t - k * period) > GRID * period for k, t in enumerate(times)):
            raise _RefusedError('rate', f'time_from_start is not 0, {period / 1e6:g} ms, ...')
        stamp = to_ns(message.header.stamp)
        age = now - stamp
        if age > len(actions) * period:
            raise _RefusedError(
                'old', f'its observation is {age / 1e9:.2f} s old, longer than itself'
            )
        if age < -period:
            raise _RefusedError('future', f'its observation is {-age / 1e9:.2f} s in the future')
        if stamp < since:
            raise _RefusedError('before', 'its observation is from before the last pause')
        return min(stamp, now), actions


class _RefusedError(Exception):
    """A chunk that is not taken, and its cause in a word."""

    def __init__(self, cause: str, text: Any) -> None:
        super().__init__(str(text))
        self.cause = cause
