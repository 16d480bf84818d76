# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Who asks for what and what may be answered: the node's rules between messages and model.

Knows neither ROS nor the model. The executor's thread tells what came and what was commanded; the
worker's thread fetches what is to be answered and asks, with the chunk in hand, whether it may
leave. An observation that is asked for waits until it can be answered: for an instruction, for the
model, for a newer instruction than the one it was answered by. It is given up when it is too old,
when a newer one is asked for, or when everything is forgotten. A request that comes again gets
another try, or the same chunk once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import NANOSECONDS, Assembler, MatchedSet
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.nodes.policy.trigger import Tick, Trigger


@dataclass(frozen=True)
class Request:
    """An observation that waits for its chunk.

    Attributes:
        observation: with its stamp.
        epoch: how often everything was forgotten before it.
        offered: `time.perf_counter` when it was complete.
        convert_ms: time spent on its messages in the executor's thread.
    """

    observation: MatchedSet
    epoch: int
    offered: float
    convert_ms: float


class Conversation:
    """See the module's text. Every call is one step: no other comes between.

    Attributes:
        active: whether the node is.
        enabled: whether it may publish chunks.
        instruction: the one in force; '' is none, then nothing is answered.
        forgotten: how often everything was forgotten, and why the last time.
        wake: called when there may be something to do.
    """

    def __init__(
        self, config: PolicyConfig, repeat: Callable[[], None], warn: Callable[[str, str], None]
    ) -> None:
        """Nothing is asked for.

        Args:
            config: tolerances, trigger and queue.
            repeat: publishes the last chunk again.
            warn: takes a cause and a text, as `Throttled`.
        """
        self._newest_first = config.queue == 'latest'
        self._assembler = Assembler(
            config.cameras,
            config.state.streams,
            slop=round(config.sync_slop * NANOSECONDS),
            state_slop=round(config.sync_state_slop * NANOSECONDS),
        )
        # A camera of just this rate must not lose every other frame to its jitter.
        gap = round(0.9 * NANOSECONDS / config.max_rate) if config.max_rate else 0
        self._trigger = Trigger(config.trigger, gap)
        self._repeat, self._warn = repeat, warn
        self._lock = threading.RLock()
        self.active, self.enabled, self.instruction = False, config.enabled, ''
        self.forgotten: tuple[int, str] = (0, '')
        self.wake: Callable[[], None] = lambda: None
        self._last: MatchedSet | None = None  # the observation that was taken last
        self._phase = 'open'  # or working, answered: what became of it
        self._request: int | None = None  # stamp of the request that it was taken for
        self._offered: dict[int, tuple[float, float]] = {}
        self._spent = 0.0  # s, on messages since the last observation that was asked for
        self._forget('')

    # -- what came -------------------------------------------------------------------------------
    def add(self, stream: str, stamp: int, sample: Any, began: float) -> bool:
        """A message of a camera or of the state.

        Args:
            stream: its name.
            stamp: its time, ns.
            sample: what it says.
            began: `time.perf_counter` when it was handed to us.

        Returns:
            Whether it completed an observation.
        """
        with self._lock:
            found = self._assembler.add(stream, stamp, sample)
            for observation in found if self.takes_data else ():
                self._trigger.add_observation(observation)
            self._spent += time.perf_counter() - began
            if found:
                self._look()
        return bool(found)

    def add_executed(self, stamp: int, executed: Executed) -> None:
        """What the robot did up to `stamp`; by `request` it asks for a chunk, see `Trigger`."""
        with self._lock:
            if not self.takes_data:
                return
            last = self._last
            if last is not None and stamp == self._request:
                if self._phase == 'answered':
                    self._repeat()
                elif self._phase == 'open':
                    self._trigger.ask_again(last, stamp)
            else:
                self._trigger.add_executed(stamp, executed)
            self._look()

    # -- what was commanded ----------------------------------------------------------------------
    def instruct(self, text: str, announce: Callable[[], None]) -> bool:
        """Another instruction; after `announce` no chunk for the old one leaves. '' stops."""
        with self._lock:
            if text == self.instruction:
                return False
            self.instruction = text
            if self._phase == 'answered':  # but not for this one
                self._phase = 'open'
            announce()
            self._look()
        return True

    def announce(self, publish: Callable[[], None]) -> None:
        """Publish what holds now; nothing changes meanwhile."""
        with self._lock:
            publish()

    def enable(self, value: bool) -> None:
        """Let chunks leave, or none."""
        with self._lock:
            self.enabled = value
            self._forget('enabled')

    def activate(self) -> None:
        """Take data from now on."""
        with self._lock:
            self.active = True

    def deactivate(self) -> None:
        """Take no data, let no chunk leave, forget."""
        with self._lock:
            self.active = False
            self._forget('deactivate')

    def reset(self, reason: str) -> None:
        """Empty everything that reaches from one inference into the next.

        No chunk of an observation from before leaves after this returns.
        """
        with self._lock:
            self._forget(reason)

    # -- what is to be answered; the worker's thread ---------------------------------------------
    def next(self) -> Request | None:
        """The observation to answer next; None if there is none, or if it may not be."""
        with self._lock:
            asked = self._trigger.asked()
            if not asked or not self.takes_data or not self.instruction:
                return None
            stamp = asked[-1 if self._newest_first else 0]
            offered, spent = self._offered.get(stamp, (time.perf_counter(), 0.0))
            observation = self._trigger.get(stamp)
            assert observation is not None  # what is asked for is there
            return Request(observation, self.forgotten[0], offered, spent * 1e3)

    def refuse(self, request: Request, *, broken: bool = False) -> None:
        """It cannot be answered now; what led to it is told before the next one."""
        with self._lock:
            if request.epoch == self.forgotten[0]:
                self._trigger.refuse(request.observation.stamp, broken=broken)

    def take(self, request: Request) -> Tick | None:
        """All that is to be told and answered; None if it is not wanted any more."""
        stamp = request.observation.stamp
        with self._lock:
            if self._trigger.get(stamp) is not request.observation or not self.instruction:
                return None
            self._last, self._phase = request.observation, 'working'
            wanted = self._trigger.wanted
            self._request = wanted if wanted is not None and wanted <= stamp else None
            return replace(self._trigger.take(stamp), instruction=self.instruction)

    def finish(self, request: Request, tick: Tick, publish: Callable[[], None] | None) -> bool:
        """The inference is over; `publish` lets its chunk leave, None: it has none.

        Returns:
            Whether it left.
        """
        with self._lock:
            if request.epoch != self.forgotten[0] or not self.takes_data:
                return False
            self._phase = 'open'
            if publish is None:
                return False
            if tick.instruction != self.instruction:
                self._trigger.ask_again(tick.observation, self._request)
                return False
            publish()
            self._phase = 'answered'
            return True

    def frames(self) -> list[MatchedSet]:
        """Complete observations that nobody asked for yet, oldest first."""
        with self._lock:
            return self._trigger.frames()

    # -- for people ------------------------------------------------------------------------------
    @property
    def takes_data(self) -> bool:
        """Whether observations count."""
        return self.active and self.enabled

    @property
    def superseded(self) -> int:
        """Observations that were asked for and that a newer one overtook."""
        return self._trigger.superseded

    def losses(self) -> dict[str, dict[str, int]]:
        """Messages that came to nothing, by cause and stream."""
        with self._lock:
            assembler = self._assembler
            return {'dropped': {**assembler.dropped}, 'repeated': {**assembler.repeated}}

    def _look(self) -> None:
        """Something changed: note since when it waits, wake the worker."""
        asked = self._trigger.asked()
        if asked and not self.instruction:
            self._warn('instruction', 'waiting for an instruction')
        if asked and asked[-1] not in self._offered:
            self._offered[asked[-1]] = time.perf_counter(), self._spent
            self._spent = 0.0
        self._offered = {t: o for t, o in self._offered.items() if t in asked}
        if asked or self._trigger.mode == 'request':
            self.wake()

    def _forget(self, reason: str) -> None:
        self.forgotten = self.forgotten[0] + 1, reason
        self._assembler.clear()
        self._trigger.clear()
        self._last, self._phase, self._request = None, 'open', None
        self._offered, self._spent = {}, 0.0
        self.wake()
