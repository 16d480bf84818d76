# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Closed-loop episodes in which every query takes as long as one of another model did.

The embedded policy decides, with the budget in force. Its chunk comes as late as a measured pass
of the larger model with the same budget beside the same load; meanwhile the simulated robot plays
on and holds still when its chunk has run dry. Time is that of the simulation, so the outcome
depends on the samples and on nothing that runs on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from vla_prune_ros.execution.playing import ChunkPlayer, Execution
from vla_prune_ros.policy import Observation, VLAPolicy
from vla_prune_ros.policy.governor import Governor, LatencyModel
from vla_prune_ros.sim import SimulatedRobot, to_env_action

Samples = Mapping[int, Mapping[float, Sequence[float]]]  # loops -> share -> s
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Load:
    """Busy loops over time: (loops, seconds) in turn, again and again."""

    phases: tuple[tuple[int, float], ...]

    def at(self, time: float) -> int:
        """Loops at a time, s."""
        left = time % sum(seconds for _, seconds in self.phases)
        for loops, seconds in self.phases:
            if left < seconds:
                return loops
            left -= seconds
        return self.phases[-1][0]


@dataclass
class Outcome:
    """One episode.

    Attributes:
        success: whether the task was done.
        steps: control steps.
        starved: steps without an action.
        missed: for every query whether it came after the deadline.
        loads: busy loops beside it.
        shares: its budget.
    """

    task: int
    state: int
    success: bool = False
    steps: int = 0
    starved: int = 0
    missed: list[bool] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def record(self) -> dict:
        """Ready for JSON."""
        return asdict(self)


class Machine:
    """How long queries take: samples of a real machine, drawn by load and budget."""

    def __init__(self, samples: Samples, load: Load, seed: int = 0) -> None:
        self._samples, self._load = samples, load
        self._random = np.random.default_rng(seed)

    def query(self, time: float, share: float) -> tuple[float, int]:
        """Seconds of a query that begins at a time, and the loops beside it."""
        loops = self._load.at(time)
        return float(self._random.choice(self._samples[loops][share])), loops


def chooser_of(
    arm: str, model: LatencyModel, rows: Mapping[float, float]
) -> tuple[Governor | float, float]:
    """What chooses the share, and the smallest one allowed.

    Args:
        arm: 'governor', 'governor:FLOOR' or a fixed share.
        model: latency that a governor begins with.
        rows: share -> rows per layer.
    """
    name, _, floor = arm.partition(':')
    return (Governor(model, rows), float(floor or 0)) if name == 'governor' else (float(arm), 0.0)


def run_episode(
    policy: VLAPolicy,
    robot: SimulatedRobot,
    machine: Machine,
    chooser: Governor | float,
    lead: int,
    task: int,
    state: int,
    begin: float,
    floor: float = 0.0,
) -> Outcome:
    """Play one episode in simulated time.

    Args:
        policy: with the mode; its history is emptied.
        robot: the robot.
        machine: how long a query takes.
        chooser: a governor, which learns, or a fixed share.
        lead: actions left when the next chunk is asked for: the deadline in control steps.
        task: index.
        state: initial state.
        begin: time of its first observation on the machine, s.
        floor: smallest share that a governor may take.
    """
    period = 1.0 / robot.control_hz
    deadline = lead * period
    player, outcome = ChunkPlayer(Execution(prefetch=lead)), Outcome(task, state)
    policy.reset()
    observation = robot.reset(task, state)
    told, limit = robot.tasks[task], robot.tasks[task].max_steps
    hold = np.array([0.0, 0, 0, 0, 0, 0, 1.0])
    waiting: tuple[float, int, np.ndarray] | None = None  # when it comes, its stamp, the actions
    executed: list[np.ndarray] = []

    def ask(now: float) -> tuple[float, int, np.ndarray]:
        if executed:
            policy.record_executed(np.array(executed))
            executed.clear()
        decision = chooser.decide(deadline, floor) if isinstance(chooser, Governor) else None
        share = chooser if decision is None else decision.share
        if share != policy.settings.options['budget']:
            policy.set_budget(share)
        seen = Observation(observation.images, observation.proprio, told.instruction, now)
        chunk = policy.step(seen)
        took, loops = machine.query(begin + now, share)
        if isinstance(chooser, Governor):
            chooser.learn(took, chooser.rows[share])
        outcome.missed.append(took > deadline)
        outcome.loads.append(loops)
        outcome.shares.append(share)
        stamp = round(now * NANOSECONDS)
        player.observe(stamp)
        return now + took, stamp, chunk.actions

    _, stamp, actions = ask(0.0)  # the clock starts with the first chunk, as in the bridge
    player.add(stamp, actions, 0)
    while not outcome.success and outcome.steps < limit:
        now = outcome.steps * period
        if waiting is not None and waiting[0] <= now + 1e-9:
            player.add(*waiting[1:])
            waiting = None
        if outcome.steps and waiting is None and player.wants_chunk:
            if not observation.images:
                observation = robot.observe()
            waiting = ask(now)
        action = player.next()
        outcome.starved += action is None
        action = hold if action is None else action
        hold = np.concatenate([np.zeros(6), action[6:]])
        observation = robot.step(to_env_action(action), render=policy.wants_frames)
        executed.append(action)
        outcome.steps += 1
        outcome.success = bool(robot.success())
        if policy.wants_frames and not outcome.success:
            policy.record_executed(np.array(executed))
            executed.clear()
            policy.observe(observation.images)
    return outcome
