# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is said between the episodes of a simulated robot and the world. No ROS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vla_prune_ros.execution.playing import Execution
from vla_prune_ros.nodes.simulation.inbox import Inbox
from vla_prune_ros.sim.base import SimObservation, SimulatedRobot


@dataclass(frozen=True)
class Settings:
    """How an episode is run; times in seconds of the wall clock but for `gap`."""

    realtime: bool = False
    chunk_timeout: float = 2.0
    gap: float = 10.0
    latency: float = 0.0
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True)
class Plan:
    """What to run next; `max_steps` 0 means the task's own limit, `shift` is in force already."""

    task: int
    initial_state: int
    max_steps: int
    settings: Settings
    shift: str = ''


@dataclass
class EpisodeStatus:
    """Where an episode stands. `state` is running or done; `result` says how it ended.

    Attributes:
        result: success or step_limit; aborted by a new episode; error: the simulation broke down,
            which says nothing about the policy, and `error` says how.
        queries: chunks that were asked for; `resent`: requests that had to be repeated.
        requeries: chunks that the policy wanted to end early.
        starved: steps on which the robot held still for want of an action.
        late: steps of real time for which the simulation itself was too slow.
        refused: chunks with bad content; `unknown`: chunks that answer no observation.
        shift: how the world differs from the suite; `events`: what happened within the episode
            and when (s); `extra_steps`: steps that `max_steps` got for that.
    """

    episode: int
    suite: str
    task: str
    instruction: str
    initial_state: int
    max_steps: int
    mode: str = 'lockstep'
    execution: str = 'open_loop'
    latency: float = 0.0
    state: str = 'running'
    result: str = ''
    success: bool = False
    step: int = 0
    queries: int = 0
    resent: int = 0
    requeries: int = 0
    starved: int = 0
    late: int = 0
    refused: int = 0
    unknown: int = 0
    error: str = ''
    shift: str = ''
    extra_steps: int = 0
    events: str = ''

    def follow(self, robot: SimulatedRobot) -> bool:
        """See what the world did to the robot; whether another instruction is in force now."""
        self.max_steps += robot.extra_steps - self.extra_steps
        self.extra_steps = robot.extra_steps
        self.events = ', '.join(f'{event.kind} {event.time:.2f}' for event in robot.events)
        changed = robot.instruction != self.instruction
        self.instruction = robot.instruction
        return changed


class Link(Protocol):
    """What an episode needs of the world; all of it is called in the simulation's thread."""

    @property
    def answers(self) -> Inbox:
        """What the policy said."""

    def ready(self) -> bool:
        """Whether a policy is there."""

    def next_plan(self, robot: SimulatedRobot, requested: bool) -> Plan | None:
        """What to run next, `requested` from outside or not; None to wait."""

    def every_step(self) -> bool:
        """Whether observations are also sent when no chunk is wanted."""

    def clock(self, stamp: int) -> None:
        """Time is `stamp`."""

    def observation(self, robot: SimulatedRobot, observation: SimObservation, stamp: int) -> None:
        """What the robot senses now."""

    def request(self, executed: np.ndarray, stamp: int) -> None:
        """A chunk is wanted for the observation at `stamp`; [n, 7] were executed before it."""

    def delivered(self) -> bool:
        """Whether all who read reliably have what was sent so far."""

    def warn(self, kind: str, text: str) -> None:
        """Tell the operator, but not at every step."""

    def instruct(self, text: str) -> None:
        """The instruction in force; returns when those who listen have it."""

    def report(self, status: EpisodeStatus, stamp: int) -> None:
        """The status of the episode changed."""

    def give_up(self, error: Exception) -> None:
        """The simulation broke down for good: the thread ends."""
