# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy node's protocol in any order, without DDS: everything between messages and model.

What the node runs, except that the model is a stand-in which fails, dawdles and remembers what it
was told, and that its thread is stepped. Over DDS: `test_faults_orders.py`.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from test_nodes_parts import values

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy import inference as room
from vla_prune_ros.nodes.policy.answering import Picture
from vla_prune_ros.nodes.policy.assembler import CAMERA_DEPTH, NANOSECONDS
from vla_prune_ros.nodes.policy.conversation import Conversation
from vla_prune_ros.nodes.policy.inference import Inference
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.nodes.policy.trigger import DEPTH, MAX_BETWEEN
from vla_prune_ros.ros.images import ImageError

STREAMS = ('agentview', 'wrist', 'ee_pose', 'joint_states')
MS = NANOSECONDS // 1000
AGE = 500 * MS
CONFIGS = {
    (trigger, queue): PolicyConfig.from_values(
        values(trigger=trigger, queue=queue, sync__slop=0.0, sync__state_slop=0.0)
    )
    for trigger in ('observation', 'request')
    for queue in ('latest', 'fifo')
}
RATE = 10.0  # Hz, of the limited ones
GAP = round(0.9 * NANOSECONDS / RATE)
CONFIGS |= {
    ('limited', queue): replace(CONFIGS['observation', queue], max_rate=RATE)
    for queue in ('latest', 'fifo')
}
OUTCOMES = st.sampled_from(['good', 'good', 'fails', 'late'])
MEANWHILE = st.lists(
    st.sampled_from(
        ['observe', 'ask', 'reset', 'off', 'on', 'pick', 'place', '', 'deactivate', 'mode']
    ),
    max_size=3,
)
LONG = pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])
PIXELS = np.zeros((2, 2, 3), np.uint8)


class StandIn:
    """Answers with zeros; its history is a list of what it was told since the last reset."""

    config = SimpleNamespace(action_kind='delta_pose')

    def __init__(self) -> None:
        self.wants_frames = True
        self.history: list[float] = []
        self.fail, self.meanwhile = False, lambda: None
        self.checks = lambda history: None

    def prepare(self, images: dict) -> list:
        return [picture.shape for picture in images.values()]

    def observe(self, images: dict, prepared: list | None = None) -> None:
        assert prepared is not None or len(images) == 2

    def record_executed(self, actions: np.ndarray) -> None:
        self.history += actions[:, 0].tolist()

    def step(self, observation):
        self.checks(self.history)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        if self.fail:
            raise ValueError('told to fail')
        return SimpleNamespace(actions=np.zeros((8, 7)), timing={'total': 1.0})

    def catch_up(self) -> bool:
        return False

    def requery_after(self, actions: np.ndarray) -> int:
        return 0

    def set_pruning(self, mode: str, **options) -> None:
        self.wants_frames = mode == 'specprune'
        self.reset('mode')

    def reset(self, reason: str) -> None:
        self.history.clear()


class Silent:
    """A logger."""

    def warning(self, text: str) -> None:
        """Nobody reads it."""

    error = fatal = warning


class Protocol(RuleBasedStateMachine):
    """Anything that robot, people and model may do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.unique = 100_000 * NANOSECONDS, itertools.count(1)
        self.policy: StandIn | None = None
        self.wrong: list[str] = []
        self.said = ''  # instruction of the newest chunk
        self.published: list[int] = []
        self.broken: set[int] = set()
        # The newest observation that nothing stands in the way of; by request a newer one will do.
        self.due: int | None = None
        self.asks: list[int] = []  # stamps of the requests since everything was forgotten
        self.pending: int | None = None  # the request that no observation was fetched for
        self.met: int | None = None  # the request that the last fetched observation was for
        self.fetched = 0  # stamp of that observation
        self.told: set[int] = set()  # requests that came before it
        self.turn = -GAP  # stamp of the last observation that `max_rate` lets through
        self.behind = 0  # observations since then
        self.counted: list[int] = []  # chunks since everything was forgotten
        self.stamp = 0  # of the newest observation
        self.latest = 0  # stamp of the newest observation since the clock started anew
        self.known: dict[int, list[int]] = {}  # observation -> chunks allowed, and published
        self.epoch_of_action: dict[float, int] = {}
        self.sent = dict.fromkeys(STREAMS, 0)

    @initialize(
        trigger=st.sampled_from(['observation', 'request', 'request', 'limited']),
        queue=st.booleans(),
    )
    def begin(self, trigger: str, queue: bool) -> None:
        """A node that was started with `autostart`."""
        self.config = CONFIGS[trigger, 'fifo' if queue else 'latest']
        self.by_request, self.limited = trigger == 'request', trigger == 'limited'
        self.conversation = Conversation(self.config, self._repeat, lambda *_: None)
        self.inference = Inference(
            lambda: self.config,
            self.conversation,
            SimpleNamespace(
                ros_time_is_active=False, now=lambda: SimpleNamespace(nanoseconds=self.now)
            ),
            Silent(),
            self._publish,
            lambda: None,
            threading.Event(),
        )
        self.state = 'unconfigured'
        self.configure()
        self.activate()

    # -- what is allowed ---------------------------------------------------------------------
    def _expect(self, holds: bool, text: str) -> None:
        """Where an exception would count as a failure of the model."""
        if not holds:
            self.wrong.append(text)

    def _publish(self, answer) -> None:
        tick, talk = answer.tick, self.conversation
        self._expect(self.state == 'active' and talk.enabled, 'a chunk of a node that is off')
        self._expect(tick.instruction == talk.instruction != '', 'a chunk for another instruction')
        self.said = tick.instruction
        self._count(tick.observation.stamp)

    def _repeat(self) -> None:
        self._expect(self.by_request, 'a report is no request')
        self._expect(self.said == self.conversation.instruction, 'a chunk for the old instruction')
        self._count(self.published[-1])

    def _count(self, stamp: int) -> None:
        self.published.append(stamp)
        self.counted.append(stamp)
        self._expect(stamp in self.known, 'a chunk from before a reset, or of nothing')
        allowed = self.known.setdefault(stamp, [1, 0])
        allowed[1] += 1
        if self.by_request:
            self._expect(len(self.counted) <= len(self.asks), 'more chunks than were asked for')
            self._expect(any(t <= stamp for t in self.asks), 'older than what was asked for')
        else:
            self._expect(allowed[1] <= allowed[0], 'more chunks than were asked for')
        before = self.counted[-2] if len(self.counted) > 1 else stamp - GAP
        self._expect(not self.limited or not 0 <= stamp - before < GAP, 'too often')
        if self.due is not None and (stamp == self.due or (self.by_request and stamp > self.due)):
            self.due = None

    def _told(self, history: list[float]) -> None:
        """Called when the model begins."""
        self.fetched = self.conversation._last.stamp
        self.told |= {t for t in self.asks if t <= self.fetched}
        if self.pending is not None and self.pending <= self.fetched:
            self.met, self.pending = self.pending, None
        self._expect(len(set(history)) == len(history), 'an action was told twice')
        epoch = self.conversation.forgotten[0]
        fresh = all(self.epoch_of_action[action] == epoch for action in history)
        self._expect(fresh, 'an action from before a reset was told')

    def _forgotten(self) -> None:
        self.known.clear()
        self.asks.clear()
        self.counted.clear()
        self.told.clear()
        self.due, self.latest, self.pending, self.met = None, 0, None, None
        self.fetched, self.turn = 0, -GAP
        self.sent = dict.fromkeys(STREAMS, 0)

    # -- the robot ---------------------------------------------------------------------------
    def _send(self, streams, *, broken: bool = False) -> None:
        for stream in streams:
            if self.state != 'active':
                return
            sample = np.zeros(6 if stream == 'ee_pose' else 2)
            if stream in self.config.cameras:
                sample = Picture(SimpleNamespace(data=b'1234', bad=broken), _unpack, print_nothing)
            self.conversation.add(stream, self.stamp, sample, 0.0)
            self.sent[stream] = self.stamp
        complete = all(stamp == self.stamp for stamp in self.sent.values())
        if complete and self._is_late():
            return
        if complete:
            self.latest = self.stamp
        if complete and self.conversation.enabled and self.stamp not in self.known:
            in_turn = not self.limited or not 0 <= self.stamp - self.turn < GAP
            self.turn = self.stamp if in_turn else self.turn
            self.known[self.stamp] = [int(in_turn), 0]
            good = not broken and not self._is_ahead() and self.now - self.stamp <= AGE
            if self.by_request:
                if good and self.pending is not None and self.pending <= self.stamp:
                    self.due = self.stamp
            elif in_turn:
                self.due, self.behind = self.stamp if good else None, 0
            else:
                self.behind += 1
                if self.behind >= DEPTH:  # so many newer frames, and the oldest goes
                    self.due = None
            if broken:
                self.broken.add(self.stamp)

    def _is_late(self) -> bool:
        """Whether the newest stamp is before one that was seen, but not from a new start."""
        return self.latest - NANOSECONDS <= self.stamp < self.latest

    def _is_ahead(self) -> bool:
        """Whether the newest stamp is from the time before the clock jumped back: of no use."""
        return self.stamp > self.now

    def _new_stamp(self) -> None:
        self.now += next(self.unique)  # no two are the same
        self.stamp = self.now

    @rule(order=st.permutations(STREAMS), broken=st.integers(0, 9))
    def observe(self, order, broken: int) -> None:
        """An observation, whole."""
        self._new_stamp()
        self._send(order, broken=broken == 0)

    @rule(streams=st.lists(st.sampled_from(STREAMS), min_size=1, max_size=4, unique=True))
    def observe_in_parts(self, streams) -> None:
        """Some messages of an observation; what is missing comes later or never."""
        if self.sent[streams[0]] == self.stamp:
            self._new_stamp()
        self._send([stream for stream in streams if self.sent[stream] != self.stamp])

    @rule()
    def observe_again(self) -> None:
        """The same messages once more."""
        if self.stamp:
            for stream in STREAMS:
                if self.state == 'active' and self.sent[stream] == self.stamp:
                    self.conversation.add(stream, self.stamp, np.zeros(2), 0.0)

    @rule(
        count=st.integers(0, 3),
        repeats=st.integers(1, 3),
        back=st.sampled_from([0, 0, 0, 1, MS, 40 * MS, 900 * MS, -1, -30 * MS]),
    )
    def ask(self, count: int, repeats: int, back: int = 0) -> None:
        """Executed actions, by `request` the wish for the chunk of an observation as new."""
        wanted = max(0, self.stamp - back)
        ends = tuple(wanted - (count - 1 - k) for k in range(count))
        ids = [float(next(self.unique)) for _ in range(count)]
        actions = np.repeat(np.array(ids)[:, None], 7, axis=1).reshape(-1, 7)
        for _ in range(repeats):
            if self.state != 'active':
                return
            self.epoch_of_action |= dict.fromkeys(ids, self.conversation.forgotten[0])
            if self.by_request and self.conversation.enabled:
                self._note_request(wanted)
            self.conversation.add_executed(wanted, Executed(actions, ends))

    def _note_request(self, wanted: int) -> None:
        """It is pending now, unless it is the one that the model has or had at last."""
        self.asks.append(wanted)
        again = wanted == self.met
        if not again and wanted in self.told and wanted >= self.latest - NANOSECONDS:
            return  # long over
        newest = self.fetched if again else max(self.known, default=-1)
        good = newest not in self.broken and self.now - AGE <= newest <= self.now
        if again:
            fits = good and newest not in self.counted
            self.due = newest if fits and self.due is None else self.due
            return
        self.pending = wanted
        self.due = newest if good and max(wanted, self.fetched + 1) <= newest else None

    @rule(step=st.sampled_from([MS, 50 * MS, 400 * MS, 2 * NANOSECONDS, 60 * NANOSECONDS]))
    def wait(self, step: int) -> None:
        """Time goes on; what waited too long gets no chunk."""
        self.now += step
        if self.due is not None and self.now - self.due > AGE:
            self.due = None

    @rule(step=st.sampled_from([100 * MS, 3 * NANOSECONDS, 500 * NANOSECONDS]))
    def jump_back(self, step: int) -> None:
        """The clock starts anew; what has the old time is of no use."""
        self.now -= step
        self.due = None

    # -- people ------------------------------------------------------------------------------
    @rule(text=st.sampled_from(['', 'pick', 'place']))
    def instruct(self, text: str) -> None:
        """Another instruction, or stop."""
        self.conversation.instruct(text, lambda: None)

    @rule()
    def reset(self) -> None:
        """The service."""
        self.conversation.reset('reset')
        self._forgotten()

    @rule(value=st.booleans())
    def enable(self, value: bool) -> None:
        """The service."""
        self.conversation.enable(value)
        self._forgotten()

    @rule(mode=st.sampled_from(['none', 'specprune']))
    def change_mode(self, mode: str) -> None:
        """The parameter."""
        self.config = replace(self.config, pruning_mode=mode)
        self.inference.follow()

    @precondition(lambda self: self.state == 'unconfigured')
    @rule()
    def configure(self) -> None:
        """Load the model."""
        self.inference._load()
        self.policy = self.inference.policy
        self.policy.checks = self._told
        self.state = 'inactive'

    @precondition(lambda self: self.state == 'inactive')
    @rule()
    def cleanup(self) -> None:
        """Free the model."""
        self.inference._free()
        self.state = 'unconfigured'

    @precondition(lambda self: self.state == 'inactive')
    @rule()
    def activate(self) -> None:
        """Take data."""
        self.inference.pardon()
        self.conversation.activate()
        self.state = 'active'

    @precondition(lambda self: self.state == 'active')
    @rule()
    def deactivate(self) -> None:
        """Take none."""
        self.conversation.deactivate()
        self.state = 'inactive'
        self._forgotten()

    # -- the model ---------------------------------------------------------------------------
    @rule(outcome=OUTCOMES, meanwhile=MEANWHILE)
    def work(self, outcome: str, meanwhile: list[str]) -> None:
        """One round of the model's thread, and what happens while it is in the model."""
        if self.policy is None:
            return
        plain, self.policy.fail = self.config, outcome == 'fails'
        if outcome == 'late':
            self.config = replace(plain, inference_timeout=1e-9)
        begun: list[int] = []

        def happen() -> None:
            begun.append(self.conversation._last.stamp)
            self._give_up(outcome, begun)
            for what in meanwhile:
                self._happen(what)

        self.policy.meanwhile = happen
        self.inference.serve()
        self.policy.fail, self.policy.meanwhile = False, lambda: None
        self.config = replace(self.config, inference_timeout=plain.inference_timeout)
        self._give_up(outcome, begun)  # a request that came meanwhile is for the same try
        if self.inference.exhausted and self.state == 'active':  # the watchdog
            self.deactivate()

    def _give_up(self, outcome: str, begun: list[int]) -> None:
        """What failed has to be asked for again."""
        if outcome == 'good' or not begun or self.due is None:
            return
        if self.due == begun[0] or (self.by_request and self.due < begun[0]):
            self.due = None

    def _happen(self, what: str) -> None:
        simple = {'reset': self.reset, 'on': lambda: self.enable(True)}
        simple |= {'off': lambda: self.enable(False), 'observe': lambda: self.observe(STREAMS, 1)}
        simple |= {'ask': lambda: self.ask(1, 1), 'mode': lambda: self.change_mode('specprune')}
        if what in simple:
            simple[what]()
        elif what != 'deactivate':
            self.instruct(what)
        elif self.state == 'active':
            self.deactivate()

    @rule()
    def settle(self) -> None:
        """A healthy model gets all the time it needs: what was asked for is answered."""
        for _ in range(3 * DEPTH):
            if not self.inference.serve():
                break
        else:
            raise AssertionError('the model is never idle')
        ready = self.state == 'active' and self.conversation.enabled
        if ready and self.conversation.instruction and not self.inference.exhausted:
            assert self.due is None, 'a fresh request with an instruction in force has no chunk'

    def _bring_up(self) -> None:
        self.enable(True)
        self.instruct('pick')
        self.now += 100 * MS * self.limited  # the next one comes in turn
        if self.latest - NANOSECONDS <= self.now:
            self.now = max(self.now, self.latest)

    @precondition(lambda self: self.state == 'active' and not self.inference.exhausted)
    @rule(back=st.sampled_from([0, 1, 40 * MS, 900 * MS]), first=st.booleans())
    def a_good_observation_is_answered(self, back: int, first: bool) -> None:
        """Whatever was before; by `request` for any stamp that is not newer."""
        self._bring_up()
        before = len(self.published)
        if first:
            self.now += next(self.unique)
            self.stamp = self.now
            self.ask(2, 1, -1)  # the next observation is the first that fits
        self.observe(STREAMS, 1)
        if not first:
            self.ask(2, 1, back)
        self.settle()
        assert self.published[before:] == [self.stamp]

    @precondition(lambda self: self.state == 'active' and not self.inference.exhausted)
    @rule(n=st.integers(1, 5), back=st.integers(0, 5))
    def the_newest_of_many_is_answered(self, n: int, back: int) -> None:
        """By `request`, and each but once."""
        if not self.by_request:
            return
        self._bring_up()
        before = len(self.published)
        for _ in range(n):
            self.observe(STREAMS, 1)
        self.ask(1, 2, back)
        self.settle()
        assert self.published[before:] == [self.stamp]

    @precondition(lambda self: self.state == 'active' and not self.inference.exhausted)
    @rule(outcome=OUTCOMES, meanwhile=MEANWHILE, after=MEANWHILE)
    def a_good_observation_is_interrupted(
        self, outcome: str, meanwhile: list[str], after: list[str]
    ) -> None:
        """By anything, and followed by anything."""
        self._bring_up()
        self.observe(STREAMS, 1)
        self.ask(1, 1)
        self.work(outcome, meanwhile)
        for what in after:
            self._happen(what)
        self.settle()

    @rule(count=st.integers(1, 100), whole=st.booleans())
    def storm(self, count: int, whole: bool) -> None:
        """Many observations or parts of them, and many reports."""
        for _ in range(count):
            self.observe_in_parts(STREAMS if whole else STREAMS[:2])
            self.ask(1, 1)

    @invariant()
    def nothing_went_wrong(self) -> None:
        """In a callback."""
        assert not self.wrong

    @invariant()
    def memory_is_bounded(self) -> None:
        """Whatever piles up."""
        if not hasattr(self, 'conversation'):
            return
        trigger, talk = self.conversation._trigger, self.conversation
        assert max(map(len, (trigger._sets, trigger._executed, trigger._asked))) <= DEPTH
        assert len(talk._offered) <= DEPTH
        assert len(self.inference._prepared._frames) <= MAX_BETWEEN
        for name, buffer in talk._assembler._buffers.items():
            assert len(buffer.stamps) <= (CAMERA_DEPTH if name in self.config.cameras else 1000)


def _unpack(message: SimpleNamespace) -> np.ndarray:
    if message.bad:
        raise ImageError('no picture')
    return PIXELS


def print_nothing(error: ImageError) -> None:
    """A report that nobody reads."""


@pytest.mark.parametrize('examples', [200, LONG])
def test_the_protocol_holds_in_any_order(monkeypatch, examples):
    nothing = SimpleNamespace(collect=int, freeze=int, unfreeze=int)
    monkeypatch.setattr(room, 'gc', nothing)  # a walk over all of torch for every load
    monkeypatch.setattr(room, 'load_policy', lambda config: StandIn())
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
