# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes of a simulated robot whose policy is somewhere else.

One thread owns the robot, for its rendering context belongs to the thread that made it. What goes
out and comes in passes through a `Link`, so this module needs no ROS.

Time is integer nanoseconds: step * period after the start of the episode. It never goes back;
between episodes it jumps by a gap that makes the policy drop its history.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_prune_ros.nodes.execution import ChunkPlayer
from vla_prune_ros.sim.base import SimObservation, SimulatedRobot, to_env_action

NANOSECONDS = 1_000_000_000
FIRST_PATIENCE = 0.25  # s, after which a first unanswered request is sent again
IDLE = 0.1  # s of wall clock between two looks at the world while nothing happens


@dataclass(frozen=True)
class Plan:
    """What to run next."""

    task: int
    initial_state: int
    max_steps: int


@dataclass
class EpisodeStatus:
    """Where an episode stands. `state` is running or done; `result` says how it ended."""

    episode: int
    suite: str
    task: str
    instruction: str
    initial_state: int
    max_steps: int
    state: str = 'running'
    result: str = ''  # success, step_limit or aborted
    success: bool = False
    step: int = 0
    queries: int = 0
    starved: int = 0
    resent: int = 0


@dataclass(frozen=True)
class Settings:
    """How episodes are run; times in seconds of the wall clock but for `gap`."""

    realtime: bool
    chunk_timeout: float
    horizon: int
    prefetch: int
    gap: float


class Link(Protocol):
    """The way to the policy and to everybody who watches."""

    def ready(self) -> bool:
        """Whether a policy listens."""

    def next_plan(self, robot: SimulatedRobot, requested: bool) -> Plan | None:
        """The next episode, or None to wait; `requested` if `restart` was called."""

    def every_step(self) -> bool:
        """Whether observations between two queries are to be published in lockstep."""

    def clock(self, stamp: int) -> None:
        """Time is now `stamp`."""

    def observation(self, robot: SimulatedRobot, observation: SimObservation, stamp: int) -> None:
        """What the robot senses at `stamp`."""

    def request(self, executed: np.ndarray, stamp: int) -> None:
        """A chunk is wanted for `stamp`; `executed` [n, 7] led there from the last request."""

    def chunk(self, timeout: float) -> tuple[int, np.ndarray] | None:
        """The next chunk (stamp, actions [n, 7]) that arrived, within `timeout` seconds."""

    def instruct(self, text: str) -> None:
        """The instruction in force; returns when those who listen have it."""

    def report(self, status: EpisodeStatus, stamp: int) -> None:
        """The episode began, asked for a chunk, or ended, at `stamp`."""


class Aborted(Exception):  # noqa: N818 - it is no error
    """The episode is to end now."""


class Episodes(threading.Thread):
    """The simulation thread: makes the robot, runs what the link plans, closes the robot."""

    def __init__(
        self,
        make: Callable[[], SimulatedRobot],
        link: Link,
        settings: Settings,
        on_failure: Callable[[Exception], None],
    ) -> None:
        super().__init__(name='simulation', daemon=True)
        self._make = make
        self._link = link
        self._settings = settings
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._abort = threading.Event()
        self._lock = threading.Lock()  # over _abort, _requested and _number
        self._requested = False
        self._now = round(settings.gap * NANOSECONDS)
        self._number = 0

    def restart(self) -> int:
        """End the running episode and ask the link for a new one; returns its number."""
        with self._lock:
            self._requested = True
            self._abort.set()
            return self._number + 1

    def stop(self, timeout: float) -> bool:
        """End for good; True if the thread ended within `timeout` seconds."""
        self._stopping.set()
        self._abort.set()
        if self.is_alive():
            self.join(timeout)
        return not self.is_alive()

    def run(self) -> None:
        """Thread body."""
        robot = None
        try:
            robot = self._make()
            while not self._stopping.is_set():
                with self._lock:
                    requested, self._requested = self._requested, False
                    if not self._stopping.is_set():
                        self._abort.clear()
                plan = self._link.next_plan(robot, requested)
                if plan is None:
                    self._link.clock(self._now)
                    self._stopping.wait(IDLE)
                else:
                    self._run_episode(robot, plan)
        except Exception as error:
            self._on_failure(error)
        finally:
            if robot is not None:
                robot.close()

    def _run_episode(self, robot: SimulatedRobot, plan: Plan) -> None:
        task = robot.tasks[plan.task]
        with self._lock:
            self._number += 1
        status = EpisodeStatus(
            self._number,
            robot.suite,
            task.name,
            task.instruction,
            plan.initial_state,
            plan.max_steps or task.max_steps,
        )
        self._link.report(status, self._now)
        try:
            observation = robot.reset(plan.task, plan.initial_state)
            self._wait_for_policy(status)
            play = self._play_realtime if self._settings.realtime else self._play_lockstep
            play(robot, observation, status)
            status.result = 'success' if status.success else 'step_limit'
        except Aborted:
            status.result = 'aborted'
        status.state = 'done'
        self._link.report(status, self._now)
        self._now += round(self._settings.gap * NANOSECONDS)

    def _wait_for_policy(self, status: EpisodeStatus) -> None:
        self._link.clock(self._now)
        while not self._link.ready():
            self._check()
            self._link.clock(self._now)
            time.sleep(IDLE)
        while self._link.chunk(0.0) is not None:
            pass  # left over from the last episode
        self._link.instruct(status.instruction)

    def _check(self) -> None:
        if self._abort.is_set():
            raise Aborted

    # -- lockstep ------------------------------------------------------------------------------
    def _play_lockstep(
        self, robot: SimulatedRobot, observation: SimObservation, status: EpisodeStatus
    ) -> None:
        """Ask, play the chunk, ask again. Time stands still while the policy thinks."""
        period = round(NANOSECONDS / robot.control_hz)
        executed: list[np.ndarray] = []
        while not status.success and status.step < status.max_steps:
            actions = self._ask(robot, observation, executed, status)
            actions = actions[: self._settings.horizon or None]
            executed = []
            for k, action in enumerate(actions[: status.max_steps - status.step]):
                self._check()
                if k and self._link.every_step():
                    self._link.observation(robot, observation, self._now)
                observation = robot.step(to_env_action(action))
                executed.append(action)
                status.step += 1
                self._now += period
                self._link.clock(self._now)
                if robot.success():
                    status.success = True
                    break

    def _ask(
        self,
        robot: SimulatedRobot,
        observation: SimObservation,
        executed: list[np.ndarray],
        status: EpisodeStatus,
    ) -> np.ndarray:
        """The chunk for this observation; sent again, ever more rarely, until it is answered."""
        status.queries += 1
        self._link.report(status, self._now)
        actions = np.reshape(executed, (-1, 7))
        patience = FIRST_PATIENCE
        while True:
            self._link.request(actions, self._now)
            self._link.observation(robot, observation, self._now)
            deadline = time.monotonic() + min(patience, self._settings.chunk_timeout)
            while (left := deadline - time.monotonic()) > 0:
                self._check()
                answer = self._link.chunk(min(left, IDLE))
                if answer is None:
                    self._link.clock(self._now)
                elif answer[0] == self._now:
                    return answer[1]
            status.resent += 1
            patience *= 2

    # -- real time -----------------------------------------------------------------------------
    def _play_realtime(
        self, robot: SimulatedRobot, observation: SimObservation, status: EpisodeStatus
    ) -> None:
        """Step by the wall clock; a robot without an action holds still.

        The clock starts with the first chunk: a policy that still loads does not cost the episode.
        """
        period = round(NANOSECONDS / robot.control_hz)
        player = ChunkPlayer(self._settings.horizon, self._settings.prefetch)
        hold = np.array([0.0, 0, 0, 0, 0, 0, 1.0])  # raw gripper: open
        executed: list[np.ndarray] = []
        asked: float | None = None  # wall time of the request that is not answered yet
        player.observe(self._now)
        player.add(self._now, self._ask(robot, observation, [], status))
        tick = time.monotonic()
        while not status.success and status.step < status.max_steps:
            self._check()
            wall = time.monotonic()
            player.observe(self._now)
            overdue = asked is None or wall - asked > self._settings.chunk_timeout
            if player.wants_chunk and overdue:
                status.queries += 1
                self._link.report(status, self._now)
                self._link.request(np.reshape(executed, (-1, 7)), self._now)
                executed, asked = [], wall
            self._link.observation(robot, observation, self._now)
            tick = max(tick + period / NANOSECONDS, wall)  # a late step delays, never bunches
            while (left := tick - time.monotonic()) > 0:
                answer = self._link.chunk(left)
                if answer is not None and player.add(*answer):
                    asked = None
            action = player.next()
            action = hold if action is None else action
            hold = np.concatenate([np.zeros(6), action[6:]])
            observation = robot.step(to_env_action(action))
            executed.append(action)
            status.step += 1
            status.starved = player.starved
            self._now += period
            self._link.clock(self._now)
            status.success = robot.success()
