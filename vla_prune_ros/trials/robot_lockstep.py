# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The episodes of `robot_trial` in this process, step by step: the same on every machine.

Policy, player, pilot, commander and arm are those of the nodes; the clock, the messages and the
machine's delays are not. A chunk is there at the control step after the one that its observation
was taken at, and later by the added latency, in whole steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vla_prune_ros.execution.playing import ChunkPlayer, Execution
from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.execution.supervisor import STOPPED, Facts
from vla_prune_ros.execution.targets import Pose
from vla_prune_ros.nodes.robot.parameters import ROBOT, RobotConfig
from vla_prune_ros.nodes.robot.pilot import Pilot
from vla_prune_ros.sim.base import to_env_action
from vla_prune_ros.sim.tabletop.arm import SOFT
from vla_prune_ros.trials.robot_path import RobotEpisode, jerk_rms

PERIOD = 50_000_000  # ns
STEP = PERIOD / 1e9
LOOKS = 5  # at the commands, by the driver, in a control step
SUBSTEPS = 5  # of the physics between two looks
FIRST = 10 * PERIOD  # stamp of the first observation
WAIT = 100  # steps for the first chunk


class Delayed:
    """A policy whose answers come some control steps after their observation."""

    def __init__(self, policy: Any, latency: float) -> None:
        self._policy, self._steps = policy, 1 + math.ceil(latency / STEP - 1e-9)
        self._under_way: list[tuple[int, int, np.ndarray]] = []

    def ask(self, robot: Any, executed: np.ndarray, instruction: str, step: int) -> None:
        """Look at the robot now."""
        from vla_prune_ros.policy import Observation

        if len(executed):
            self._policy.record_executed(executed)
        seen = robot.observe()
        stamp = FIRST + step * PERIOD
        chunk = self._policy.step(Observation(seen.images, seen.proprio, instruction, stamp / 1e9))
        self._under_way.append((step + self._steps, stamp, chunk.actions))

    def answers(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """Stamps and actions of the chunks that are there by now."""
        due = [answer for answer in self._under_way if answer[0] <= step]
        self._under_way = [answer for answer in self._under_way if answer[0] > step]
        yield from ((stamp, actions) for _, stamp, actions in due)


class Chunks:
    """The simulator's own execution."""

    def __init__(self, robot: Any, policy: Delayed, execution: Execution) -> None:
        self._robot, self._policy = robot, policy
        self._player = ChunkPlayer(execution)
        self._hold = np.array([0.0] * 6 + [1.0])
        self._executed: list[np.ndarray] = []
        self._asked = False

    @property
    def starved(self) -> int:
        """Steps without an action."""
        return self._player.starved

    def step(self, k: int, instruction: str) -> bool:
        """One control step; whether something was commanded."""
        player = self._player
        for stamp, actions in self._policy.answers(k):
            self._asked &= not player.add(stamp, actions)
        player.observe(FIRST + k * PERIOD)
        if player.wants_chunk and not self._asked:
            self._policy.ask(self._robot, np.reshape(self._executed, (-1, 7)), instruction, k)
            self._executed, self._asked = [], True
        begun = player.stamp is not None
        action = player.next()
        action = self._hold if action is None else action
        self._hold = np.concatenate([np.zeros(6), action[6:]])
        self._robot.step(to_env_action(action), render=False)
        self._executed += [action] * begun
        return begun

    def values(self) -> dict[str, str]:
        """Nothing that a bridge would say."""
        return {}

    reason = ''


class Bridge:
    """A robot bridge and an arm that takes only its commands."""

    def __init__(
        self, robot: Any, policy: Delayed, values: Mapping[str, Any], stiffness: float
    ) -> None:
        self._robot, self._policy = robot, policy
        self._config = RobotConfig.from_values(
            {spec.name: spec.default for spec in ROBOT} | values
        )
        self._pilot = Pilot(self._config)
        self._pilot.configure(self._config, Semantics())
        robot.arm.controller.stiffness = stiffness
        assert self._pilot.supervisor.enable(Facts(0.0)) == []

    @property
    def starved(self) -> int:
        """Steps without an action after the first."""
        return self._pilot.starved

    def step(self, k: int, instruction: str) -> bool:
        """One control step; whether something was commanded."""
        pilot, arm, now, stamp = self._pilot, self._robot.arm, k * STEP, FIRST + k * PERIOD
        for observed, actions in self._policy.answers(k):
            pilot.add(observed, actions, now, stamp)
        pilot.tick(Facts(now), stamp, Pose(*arm.pose))
        if (opens := pilot.open_or_close(now)) is not None:
            arm.grip(self._config['gripper.open' if opens else 'gripper.closed'])
        executed = pilot.ask(now, stamp)
        if executed is not None:
            self._policy.ask(self._robot, executed, instruction, k)
        for look in range(LOOKS):
            if pilot.command is not None and self._config['output'] == 'twist':
                arm.drive(pilot.command.twist)
            elif pilot.command is not None:
                pose = pilot.commander.between((look + 1) / LOOKS) or pilot.command.pose
                arm.follow(pose.position, pose.rotation)
            arm.run(SUBSTEPS)
        return pilot.player.stamp is not None

    def values(self) -> dict[str, str]:
        """What the bridge would say of itself."""
        pilot = self._pilot
        samples = {
            'tracking_error_p95': pilot.errors,
            'jerk_within_p95': pilot.jerks['within'],
            'jerk_seam_p95': pilot.jerks['seam'],
        }
        found = {k: str(np.percentile(v, 95)) for k, v in samples.items() if len(v)}
        return found | {'chunk_arrival_p50': str(np.percentile(pilot.chunk_ages, 50))}

    @property
    def reason(self) -> str:
        """Why it stopped; '' if it did not."""
        supervisor = self._pilot.supervisor
        return supervisor.reason if supervisor.state == STOPPED else ''


def run_episode(
    robot: Any,
    policy: Any,
    output: str,
    latency: float,
    task: int | str,
    state: int,
    execution: str,
    max_steps: int,
    bridge: Mapping[str, Any],
    stiffness: float,
) -> RobotEpisode:
    """One episode.

    Args:
        robot: a tabletop robot with pictures.
        policy: a `VLAPolicy`.
        output: chunk, the simulator's own execution, pose or twist.
        latency: s, added to every chunk.
        task: its name or number.
        state: initial state.
        execution: how chunks are played.
        max_steps: 0: as many as the task has.
        bridge: parameters of the robot bridge.
        stiffness: of the arm behind it, 1/s2.
    """
    index = robot.task_index(task)
    chosen = robot.tasks[index]
    policy.reset()
    robot.arm.controller.stiffness = SOFT
    robot.reset(index, state)
    delayed = Delayed(policy, latency)
    values = {**bridge, 'output': output, 'execution.mode': execution}
    driven: Any = (
        Chunks(robot, delayed, Execution(execution))
        if output == 'chunk'
        else Bridge(robot, delayed, values, stiffness)
    )
    path, steps, success, most = [], 0, False, max_steps or chosen.max_steps
    k = 0
    while steps < most and not success and k < most + WAIT:
        path.append((k * STEP, robot.arm.pose[0]))
        steps += driven.step(k, chosen.instruction)
        success, k = robot.success(), k + 1
    return RobotEpisode(
        output, latency, chosen.name, state, success, steps, driven.starved, 0,
        round(jerk_rms(path), 3), driven.reason, driven.values(),
    )  # fmt: skip
