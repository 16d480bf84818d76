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

import numpy as np

from vla_prune_ros.execution.commands import Command, Commander, GripperLatch
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
        since: ns, chunks for observations from before it do not count.
        command: what is commanded now, be it to hold; None: nothing.
        counts: steps in which a limit counted, by its name.
        chunk_ages, errors, jerks: lately; s on arrival, m, m/s3 within chunks and at their seams.
    """

    def __init__(
        self, config: RobotConfig, on_change: Callable[[str, str], None] | None = None
    ) -> None:
        self.supervisor = Supervisor(config.rules, on_change)
        self.gripper = GripperLatch()
        self.counts: Counter[str] = Counter()
        self.chunk_ages: deque[float] = deque(maxlen=KEPT)
        self.errors: deque[float] = deque(maxlen=KEPT)
        self.jerks: dict[str, deque[float]] = {
            'within': deque(maxlen=KEPT),
            'seam': deque(maxlen=KEPT),
        }
        self.pause = ''
        self.since = 0
        self.command: Command | None = None
        self.starved = 0
        self.commander: Commander | None = None
        self._moving = False  # whether the command in force is to move
        self._stalled = ''
        self._openness = 0.5
        self.configure(config, None)

    def configure(self, config: RobotConfig, semantics: Semantics | None) -> None:
        """Follow other parameters or another policy; only while nothing moves."""
        self._config = config
        self.supervisor.rules = config.rules
        self._progress = Progress(config['stall_time'])
        plans = (
            JointPlans(len(semantics.joints))
            if semantics and semantics.joints
            else (DeltaPlans(semantics.scale_rotation) if semantics else None)
        )
        self.player = ChunkPlayer(config.execution, config.period, plans)
        if semantics is not None:
            gains = config['gain.position'], config['gain.rotation']
            self.commander = Commander(
                semantics, config.limits, config.period / 1e9, config.anchor, gains
            )
        self.clear('', 0)

    def follow(self, config: RobotConfig) -> None:
        """Follow a parameter that may change while the arm moves."""
        self._config = config

    def clear(self, pause: str, now_ns: int) -> None:
        """Forget every plan; `pause` is why, until the next chunk."""
        self.player.clear()
        self._waiting: deque[tuple[float, int, np.ndarray]] = deque(maxlen=8)
        self._executed: list[np.ndarray] = []
        self._asked: float | None = None
        self._steps: deque[tuple[np.ndarray, bool]] = deque(maxlen=3)
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._playing: int | None = None
        self._progress.forget()
        self.pause, self.since = pause, now_ns

    def add(self, stamp: int, actions: np.ndarray, now: float, now_ns: int) -> None:
        """A chunk came that may be played."""
        self.chunk_ages.append((now_ns - stamp) / 1e9)
        self._waiting.append((now + self._config['latency'], stamp, actions))

    def tick(self, facts: Facts, now_ns: int, measured: Pose | None) -> str:
        """One control step; `command` is what follows from it. Returns the state."""
        supervisor, player = self.supervisor, self.player
        player.observe(now_ns)
        enabled = supervisor.state in (HOLDING, RUNNING)
        if enabled and not supervisor.blocked(replace(facts, playable=True)):
            self._adopt(facts.now)
        elif player.remaining or not enabled:
            player.clear()
            player.observe(now_ns)
        facts = replace(
            facts,
            playable=player.remaining > 0,
            pause=facts.pause or self.pause,
            stalled=self._stalled,
        )
        state = supervisor.tick(facts)
        if state == RUNNING:
            assert measured is not None  # or the supervisor would hold
            self._run(facts.now, measured)
        else:
            if state == HOLDING and not player.remaining:
                before = player.starved
                player.next()  # nothing, but it counts as a step
                self.starved += player.starved - before
            self.hold(facts.now, measured)
        return state

    def hold(self, now: float, measured: Pose | None) -> None:
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

    def ask(self, now: float) -> np.ndarray | None:
        """Whether a chunk is to be asked for now: the actions [n, 7] since the last time."""
        overdue = self._asked is None or now - self._asked > self._config['chunk_timeout']
        enabled = self.supervisor.state in (HOLDING, RUNNING)
        if not (enabled and self.player.wants_chunk and overdue):
            return None
        self._asked = now
        executed, self._executed = self._executed, []
        return np.reshape(executed, (-1, 7))

    def open_or_close(self, now: float) -> bool | None:
        """What to tell the gripper now: True to open, False to close, None: nothing."""
        if self.supervisor.state != RUNNING:
            return None
        return self.gripper.update(self._openness, now)

    def _adopt(self, now: float) -> None:
        """Play the newest chunk that came, if one is wanted; others would replan at every tick."""
        if not self.player.wants_chunk:
            return
        due = [entry for entry in self._waiting if entry[0] <= now]
        for entry in due:
            self._waiting.remove(entry)
        for _, stamp, actions in sorted(due, key=lambda e: e[1])[-1:]:
            if self.player.add(stamp, actions):
                self._asked, self.pause = None, ''

    def _run(self, now: float, measured: Pose) -> None:
        action, self._moving = self.player.next(), True
        assert action is not None and self.commander is not None  # `playable`, and by a policy
        command = self.commander.command(action, measured, self._config['speed_scale'])
        self.command = command
        self.counts.update(command.limited)
        s = self.commander.semantics
        self._openness = s.openness(action[6])
        self._executed.append(np.concatenate([command.effective, action[6:]]))
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
