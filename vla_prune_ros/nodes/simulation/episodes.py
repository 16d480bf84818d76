# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes of a simulated robot whose policy is somewhere else.

One thread owns the robot, for its rendering context belongs to the thread that made it. What goes
out and comes in passes through a `Link`, so this module needs no ROS.

Time is integer nanoseconds: step * period after the start of the episode. It never goes back;
between episodes it jumps by a gap that makes the policy drop its history.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import numpy as np

from vla_prune_ros.execution.playing import ChunkPlayer
from vla_prune_ros.nodes.simulation.inbox import Answer
from vla_prune_ros.nodes.simulation.link import EpisodeStatus, Link, Plan, Settings
from vla_prune_ros.sim.base import SimObservation, SimulatedRobot, to_env_action

NANOSECONDS = 1_000_000_000
FIRST_PATIENCE = 0.25  # s, after which a first unanswered request is sent again
IDLE = 0.1  # s of wall clock between two looks at the world while nothing happens
MAX_FAILURES = 3  # of the simulation in a row, that end it
SILENT = 1.0  # s without a chunk that the operator should know of
POLL = 0.001  # s between two looks at whether all has arrived
SETTLE = 0.1  # s that what a policy says of a chunk may come after it


class Aborted(Exception):  # noqa: N818 -- not an error
    """The episode was ended from outside."""


class Episodes(threading.Thread):
    """Runs episodes until stopped; a simulation that breaks down is built anew."""

    def __init__(self, make: Callable[[], SimulatedRobot], link: Link) -> None:
        super().__init__(name='simulation', daemon=True)
        self._make = make
        self._link = link
        self._settings = Settings()  # of the last episode
        self._player = ChunkPlayer()
        self._begin = 0  # of the episode; what is older answers the last one
        self._limited = -1  # stamp of the last chunk of which the policy said how much to play
        self._stopping = threading.Event()
        self._abort = threading.Event()
        self._lock = threading.Lock()  # over _abort, _requested, _number and the choice of a plan
        self._requested = False
        self._now = round(self._settings.gap * NANOSECONDS)
        self._number = 0

    def restart(self) -> int:
        """Abort the running episode and start a new one; returns the number it will have."""
        with self._lock:
            self._requested = True
            self._abort.set()
            return self._number + 1

    def stop(self, timeout: float) -> bool:
        """End the thread; True if it ended within `timeout` seconds."""
        self._stopping.set()
        self._abort.set()
        if self.is_alive():
            self.join(timeout)
        return not self.is_alive()

    def run(self) -> None:
        """Thread body."""
        robot, failures = None, 0
        try:
            while not self._stopping.is_set():
                if robot is None:
                    robot = self._make()
                with self._lock:  # so that what is asked for gets the number that was answered
                    requested, self._requested = self._requested, False
                    self._abort.clear()
                    plan = self._link.next_plan(robot, requested)
                    self._number += plan is not None
                if plan is None:
                    self._idle(robot)
                    continue
                try:
                    self._run_episode(robot, plan)
                    failures = 0
                except Exception as error:
                    failures += 1
                    if failures == MAX_FAILURES:
                        raise
                    self._link.warn('simulation', f'simulation failed, starting anew: {error!r}')
                    _close(robot)
                    robot = None
        except Exception as error:
            self._link.give_up(error)
        finally:
            if robot is not None:
                _close(robot)

    def _run_episode(self, robot: SimulatedRobot, plan: Plan) -> None:
        task, settings = robot.tasks[plan.task], plan.settings
        if settings != self._settings:
            self._settings, self._player = settings, ChunkPlayer(settings.execution)
        self._player.clear()
        self._link.answers.clear()
        self._begin = self._now
        status = EpisodeStatus(
            self._number,
            robot.suite,
            task.name,
            task.instruction,
            plan.initial_state,
            plan.max_steps or task.max_steps,
            'realtime' if settings.realtime else 'lockstep',
            settings.execution.mode,
            settings.latency,
            shift=plan.shift,
        )
        self._report(status)
        try:
            observation = robot.reset(plan.task, plan.initial_state)
            status.follow(robot)
            self._wait_for_policy(status)
            play = self._play_realtime if settings.realtime else self._play_lockstep
            play(robot, observation, status)
            status.result = 'success' if status.success else 'step_limit'
        except Aborted:
            status.result = 'aborted'
        except Exception as error:
            status.result, status.error = 'error', f'{type(error).__name__}: {error}'
            raise
        finally:
            status.state = 'done'
            self._report(status)
            self._now += round(settings.gap * NANOSECONDS)

    def _idle(self, robot: SimulatedRobot) -> None:
        """Nothing is to be run: look again soon."""
        self._link.clock(self._now)
        self._abort.wait(IDLE)

    def _report(self, status: EpisodeStatus) -> None:
        if not self._settings.realtime:
            self._deliver()
        status.refused = self._link.answers.refused
        status.unknown, status.starved = self._player.unknown, self._player.starved
        self._link.report(status, self._now)

    def _wait_for_policy(self, status: EpisodeStatus) -> None:
        self._link.clock(self._now)
        while not self._link.ready():
            self._check()
            self._link.clock(self._now)
            time.sleep(IDLE)
        self._link.instruct(status.instruction)

    def _check(self) -> None:
        if self._abort.is_set():
            raise Aborted

    def _take(self, answer: Answer, status: EpisodeStatus, delay: int | None = None) -> bool:
        """Give an answer to the player; whether it was a chunk that can be played."""
        player, unknown = self._player, self._player.unknown
        if answer.stamp < self._begin:  # too late for the last episode
            return False
        usable = False
        if answer.actions is not None:
            usable = player.add(answer.stamp, answer.actions, delay)
        else:
            self._limited = answer.stamp
        if answer.limit:
            status.requeries += player.shorten(answer.stamp, answer.limit)
        if player.unknown > unknown:
            self._link.warn(
                'unknown',
                f'chunk ignored: stamp {answer.stamp / NANOSECONDS:.3f} s is of no observation',
            )
        return usable

    def _step(
        self, robot: SimulatedRobot, action: np.ndarray, render: bool, status: EpisodeStatus
    ) -> SimObservation:
        observation = robot.step(to_env_action(action), render=render)
        self._now += round(NANOSECONDS / robot.control_hz)
        if status.follow(robot):
            self._link.instruct(status.instruction)
        return observation

    # -- lockstep ------------------------------------------------------------------------------
    def _play_lockstep(
        self, robot: SimulatedRobot, observation: SimObservation, status: EpisodeStatus
    ) -> None:
        """Ask, play, ask again. Time stands still while the policy thinks."""
        player = self._player
        executed: list[np.ndarray] = []
        while not status.success and status.step < status.max_steps:
            self._check()
            if player.is_due:
                if not observation.images:
                    observation = robot.observe()
                player.observe(self._now)
                self._ask(robot, observation, executed, status)
                self._settle(status)
                executed = []
            elif observation.images and self._link.every_step():
                self._link.observation(robot, observation, self._now)
            action = player.next()
            assert action is not None  # an answer came, or an exception
            render = player.is_due or self._link.every_step()  # costs more than the physics
            observation = self._step(robot, action, render, status)
            executed.append(action)
            status.step += 1
            status.success = robot.success()
            self._deliver()  # after the step: meanwhile all should have arrived
            self._link.clock(self._now)

    def _deliver(self) -> None:
        """Wait until everyone has what was sent before more is sent: nothing may be lost.

        A reader that has died or was stopped is given up by DDS, after 20 s by default.
        """
        started = time.monotonic()
        while not (self._link.delivered() or self._abort.is_set()):
            if (waited := time.monotonic() - started) > SILENT:
                self._link.warn('undelivered', f'a reader confirms nothing since {waited:.0f} s')
            time.sleep(POLL)

    def _settle(self, status: EpisodeStatus) -> None:
        """Wait for what the policy says of its chunk on another topic."""
        deadline = time.monotonic() + SETTLE
        while self._limited != self._now and self._link.answers.limits_follow():
            answer = self._link.answers.get(max(0.0, deadline - time.monotonic()))
            if answer is None:
                return
            self._take(answer, status)

    def _ask(
        self,
        robot: SimulatedRobot,
        observation: SimObservation,
        executed: list[np.ndarray],
        status: EpisodeStatus,
    ) -> None:
        """Ask for a chunk; again, ever more rarely, until one comes."""
        status.queries += 1
        self._report(status)
        actions = np.reshape(executed, (-1, 7))
        patience = FIRST_PATIENCE + self._settings.latency
        period, first = 1.0 / robot.control_hz, time.monotonic()
        while True:
            started = time.monotonic()
            self._link.request(actions, self._now)
            self._link.observation(robot, observation, self._now)
            deadline = started + min(patience, self._settings.chunk_timeout)
            while (left := deadline - time.monotonic()) > 0:
                self._check()
                answer = self._link.answers.get(min(left, IDLE))
                if answer is None:
                    self._link.clock(self._now)
                    continue
                delay = 0  # a policy that was not ready says nothing about its delay
                if self._settings.realtime and not status.resent and answer.actions is not None:
                    steps = math.ceil((time.monotonic() - started) / period)
                    delay = min(len(answer.actions), steps)
                if self._take(answer, status, delay):
                    return
            status.resent += 1
            patience *= 2
            waited = time.monotonic() - first
            if waited > SILENT:  # before, it may be DDS that is not ready yet
                self._link.warn('silent', f'no chunk after {waited:.1f} s: asking again')

    # -- real time -----------------------------------------------------------------------------
    def _play_realtime(
        self, robot: SimulatedRobot, observation: SimObservation, status: EpisodeStatus
    ) -> None:
        """Step by the wall clock; a robot without an action holds still.

        An action is chosen when its step begins: a chunk that comes within the period of its
        observation is one step late. The physics of a step is computed at its beginning and
        published at its end. The clock starts with the first chunk: a policy that still loads
        does not cost the episode.
        """
        period, player = 1.0 / robot.control_hz, self._player
        hold = np.array([0.0, 0, 0, 0, 0, 0, 1.0])  # raw gripper: open
        player.observe(self._now)
        self._ask(robot, observation, [], status)
        executed: list[np.ndarray] = []
        asked: float | None = None  # wall time of the request that is not answered yet
        tick = time.monotonic()
        while not status.success and status.step < status.max_steps:
            self._check()
            if status.step:
                wall = time.monotonic()
                player.observe(self._now)
                overdue = asked is None or wall - asked > self._settings.chunk_timeout
                if player.wants_chunk and overdue:
                    status.queries += 1
                    status.resent += asked is not None
                    self._report(status)
                    self._link.request(np.reshape(executed, (-1, 7)), self._now)
                    executed, asked = [], wall
                self._link.observation(robot, observation, self._now)
            action = player.next()
            if action is None:
                action = hold
                self._link.warn(
                    'starved',
                    f'no action: the robot holds still ({player.starved} of {status.step + 1} '
                    'steps)',
                )
            hold = np.concatenate([np.zeros(6), action[6:]])
            observation = self._step(robot, action, True, status)
            executed.append(action)
            status.step += 1
            status.success = robot.success()
            tick += period
            if time.monotonic() > tick:  # a late step delays, never bunches
                status.late += 1
                tick = time.monotonic()
            if self._take_chunks(tick, status):
                asked = None
            self._link.clock(self._now)

    def _take_chunks(self, until: float, status: EpisodeStatus) -> bool:
        """Wait until a wall-clock time, at least look once; whether a usable chunk came."""
        usable = False
        while True:
            left = until - time.monotonic()
            answer = self._link.answers.get(max(0.0, left))
            if answer is not None:
                usable |= self._take(answer, status)
            elif left <= 0:
                return usable


def _close(robot: SimulatedRobot) -> None:
    """Free what a robot holds, as far as it still can."""
    try:
        robot.close()
    except Exception:  # it may be what failed
        return
