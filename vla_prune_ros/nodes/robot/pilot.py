# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One control step of a robot after another: which action, which command, what is reported.

Joins the player of chunks, the commander, the supervisor and the gripper. Knows no ROS; time is
given: seconds of a clock that never jumps, and ns of the clock of the stamps.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vla_prune_ros.execution.commands import Command, Commander, GripperLatch
from vla_prune_ros.execution.joints import JointCommand, JointCommander, JointLimits, Joints
from vla_prune_ros.execution.playing import ChunkPlayer
from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.execution.supervisor import HOLDING, RUNNING, Facts, Progress, Supervisor
from vla_prune_ros.execution.targets import DeltaPlans, JointPlans, Pose
from vla_prune_ros.nodes.robot.parameters import RobotConfig

KEPT = 400  # samples of every statistic


class Pilot:
    """See the module's text.

    Attributes:
        pause: why nothing is played until the next chunk; '' for no reason.
        since: ns, chunks for observations from before it do not count; `earliest`: nothing is
            known of what was before it.
        command: what is commanded now, be it to hold; None: nothing.
        counts: steps in which a limit counted, by its name; `refused`: chunks, by cause.
        chunk_ages, errors, jerks: lately; s on arrival, m, m/s3 within chunks and at their seams.
    """

    def __init__(
        self,
        config: RobotConfig,
        on_change: Callable[[str, str], None] | None = None,
        warn: Callable[[str, str], None] = lambda cause, text: None,
    ) -> None:
        self._warn = warn
        self.supervisor = Supervisor(config.rules, on_change)
        self.gripper = GripperLatch()
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.chunk_ages: deque[float] = deque(maxlen=KEPT)
        self.errors: deque[float] = deque(maxlen=KEPT)
        self.jerks: dict[str, deque[float]] = {
            'within': deque(maxlen=KEPT),
            'seam': deque(maxlen=KEPT),
        }
        self.pause = ''
        self.since = self.earliest = 0
        self.command: Command | JointCommand | None = None
        self.starved = 0
        self.commander: Any = None  # Commander or JointCommander, as the policy says
        self._blocked = True  # whether no action may be played, be there one or not
        self._moving = False  # whether the command in force is to move
        self._stalled = ''
        self._openness = 0.5
        self.configure(config, None)

    def configure(self, config: RobotConfig, semantics: Semantics | None) -> None:
        """Follow other parameters or another policy; only while nothing moves."""
        self._config = config
        self.supervisor.rules = config.rules
        unit = 'm' if config.rules.measured == 'pose' else 'rad'
        self._progress = Progress(config['stall_time'], unit)
        self.player = ChunkPlayer(config.execution, config.period, _plans(semantics))
        if semantics is not None:
            self.commander = _commander(config, semantics)
        self.clear('', 0)

    def follow(self, config: RobotConfig) -> None:
        """Follow a parameter that may change while the arm moves."""
        self._config = config

    def clear(self, pause: str, now_ns: int) -> None:
        """Forget every plan; `pause` is why, until the next chunk."""
        self.player.clear()
        self._waiting: deque[tuple[float, int, np.ndarray]] = deque(maxlen=8)
        self._executed: list[tuple[int, np.ndarray]] = []  # when it began, ns
        self._asked: float | None = None
        self._steps: deque[tuple[np.ndarray, bool]] = deque(maxlen=3)
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._playing: int | None = None
        self._progress.forget()
        self.pause = pause
        self.since = self.earliest = now_ns

    def add(self, stamp: int, actions: np.ndarray, now: float, now_ns: int) -> None:
        """A chunk came that may be played."""
        self.chunk_ages.append((now_ns - stamp) / 1e9)
        self._waiting.append((now + self._config['latency'], stamp, actions))

    def tick(self, facts: Facts, now_ns: int, measured: Pose | Joints | None) -> str:
        """One control step; `command` is what follows from it. Returns the state."""
        supervisor, player = self.supervisor, self.player
        player.observe(now_ns)
        enabled = supervisor.state in (HOLDING, RUNNING)
        self._blocked = not enabled or bool(supervisor.blocked(replace(facts, playable=True)))
        if self._blocked:  # no plan of before is taken up again, and the next is asked for at once
            player.clear()
            player.observe(now_ns)
            self._waiting.clear()
            self._asked, self.earliest = None, now_ns
        else:
            self._adopt(facts.now, measured)
        facts = replace(
            facts,
            playable=player.remaining > 0,
            pause=facts.pause or self.pause,
            stalled=self._stalled,
        )
        state = supervisor.tick(facts)
        if state == RUNNING:
            assert measured is not None  # or the supervisor would hold
            self._run(facts.now, now_ns, measured)
        else:
            if state == HOLDING and not player.remaining:
                before = player.starved
                player.next()  # nothing, but it counts as a step
                self.starved += player.starved - before
            self.hold(facts.now, measured)
        return state

    def hold(self, now: float, measured: Pose | Joints | None) -> None:
        """Move no more: freeze what was commanded, or command nothing if that is allowed."""
        moving, self._moving, self._stalled = self._moving, False, ''
        self._progress.forget()
        self._steps.clear()
        self._before = None
        if not self.supervisor.commands(now) or self.commander is None or measured is None:
            self.release()
        elif moving or self.command is None:
            self.command = self.commander.hold(self.commander.freeze(measured))

    def release(self) -> None:
        """Command nothing; the arm may be anywhere next time."""
        self.command = None
        if self.commander is not None:
            self.commander.forget()

    def ask(self, now: float, until: int) -> np.ndarray | None:
        """Whether a chunk is to be asked for now: the actions [n, k] since the last time.

        Those that ended after `until`, ns, are told the next time.
        """
        overdue = self._asked is None or now - self._asked > self._config['chunk_timeout']
        if self._blocked or not (self.player.wants_chunk and overdue):
            return None
        self._asked = now
        last = until - self._config.period
        done = [action for began, action in self._executed if began <= last]
        self._executed = self._executed[len(done) :]
        return np.reshape(done, (-1, self.player.width))

    def open_or_close(self, now: float) -> bool | None:
        """What to tell the gripper now: True to open, False to close, None: nothing."""
        if self.supervisor.state != RUNNING:
            return None
        return self.gripper.update(self._openness, now)

    def _adopt(self, now: float, measured: Pose | Joints | None) -> None:
        """Play the newest chunk that came, if one is wanted; others would replan at every tick."""
        if not self.player.wants_chunk:
            return
        due = [entry for entry in self._waiting if entry[0] <= now]
        for entry in due:
            self._waiting.remove(entry)
        for _, stamp, actions in sorted(due, key=lambda e: e[1])[-1:]:
            if why := self._too_far(stamp, actions, measured):
                self.refused['jump'] += 1
                self._warn('jump', f'chunk refused: {why}')
            elif self.player.add(stamp, actions):
                self._asked, self.pause = None, ''

    def _too_far(self, stamp: int, actions: np.ndarray, measured: Pose | Joints | None) -> str:
        """Why the first action that would be played must not be; '' if it may."""
        first = self.player.skips(stamp)
        if measured is None or first is None or not 0 <= first < len(actions):
            return ''
        return self.commander.too_far(actions[first], measured)

    def _run(self, now: float, now_ns: int, measured: Pose | Joints) -> None:
        action, self._moving = self.player.next(), True
        assert action is not None and self.commander is not None  # `playable`, and by a policy
        scale, rest = self._config['speed_scale'], self.player.rest
        command = self.commander.command(action, measured, scale, rest)
        self.command = command
        self.counts.update(command.limited)
        semantics = self.commander.semantics
        if not semantics.joints:  # then grippers are among them
            self._openness = semantics.openness(action[6])
        self._executed.append((now_ns, self.commander.executed(command, action)))
        if self._config['stall_time']:
            self._stalled = self._progress.add(now, command.expected, measured.position)
        if self._before is not None:
            before, expected = self._before
            self.errors.append(float(np.linalg.norm(measured.position - before - expected)))
        self._before = measured.position, command.expected
        self._note_jerk(command.expected)

    def _note_jerk(self, step: np.ndarray) -> None:
        """Third difference of the commanded path, apart for the seams of chunks."""
        seam = self._playing is not None and self._playing != self.player.stamp
        self._playing = self.player.stamp
        self._steps.append((step, seam))
        if len(self._steps) == 3:
            (a, _), (b, second), (c, third) = self._steps
            jerk = float(np.linalg.norm(c - 2 * b + a)) / (self._config.period / 1e9) ** 3
            self.jerks['seam' if second or third else 'within'].append(jerk)


def _plans(semantics: Semantics | None) -> DeltaPlans | JointPlans | None:
    """How actions are mixed."""
    if semantics is None:
        return None
    if semantics.joints:
        return JointPlans(len(semantics.joints))
    return DeltaPlans(semantics.scale_rotation)


def _commander(config: RobotConfig, semantics: Semantics) -> Commander | JointCommander:
    """What makes commands of actions."""
    period, limits = config.period / 1e9, config.limits
    if isinstance(limits, JointLimits):
        scale, offset = config.per_joint('joints.scale'), config.per_joint('joints.offset')
        return JointCommander(semantics, limits, period, config.joints, scale, offset)
    gains = config['gain.position'], config['gain.rotation']
    return Commander(semantics, limits, period, config.anchor, gains)
