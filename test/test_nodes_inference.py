# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The thread of the model, stepped: what comes first, what it survives, what it holds."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_nodes_conversation import CONFIGS, STREAMS, Silent, StandIn

from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.answering import Picture
from vla_prune_ros.nodes.policy.assembler import MAX_BYTES
from vla_prune_ros.nodes.policy.conversation import Conversation
from vla_prune_ros.nodes.policy.gpu import is_lasting
from vla_prune_ros.nodes.policy.inference import Inference
from vla_prune_ros.nodes.policy.trigger import MAX_BETWEEN

MS = 1_000_000
NOTHING = Executed(np.empty((0, 7)), ())
LARGE = bytes(3840 * 2160 * 3)


class Stepped:
    """Conversation and inference of an active node that nobody drives but the test."""

    def __init__(self, trigger: str = 'request') -> None:
        self.answers: list = []
        self.stop = threading.Event()
        config = CONFIGS[trigger, 'latest']
        self.talk = Conversation(config, lambda: self.answers.append('again'), lambda *_: None)
        clock = SimpleNamespace(
            ros_time_is_active=False, now=lambda: SimpleNamespace(nanoseconds=self.now)
        )
        self.inference = Inference(
            lambda: config, self.talk, clock, Silent(), self.answers.append, int, self.stop
        )
        self.inference.policy = self.policy = StandIn()
        self.inference._applied = config.pruning
        self.talk.instruct('go', lambda: None)
        self.talk.activate()
        self.now = 10**12

    def see(self, data: bytes = b'1') -> int:
        """A complete observation of now; returns its stamp."""
        self.now += MS
        for stream in STREAMS:
            sample = np.zeros(2 if stream == 'joint_states' else 6)
            if stream in ('agentview', 'wrist'):
                sample = Picture(SimpleNamespace(data=data), self.unpack, print)
            self.talk.add(stream, self.now, sample, 0.0)
        return self.now

    unpacked = 0

    def unpack(self, message: SimpleNamespace) -> np.ndarray:
        """Counts."""
        self.unpacked += 1
        return np.zeros((2, 2, 3), np.uint8)


def test_a_request_goes_before_frames_that_could_be_prepared():
    node = Stepped()
    for _ in range(8):
        node.see()
    prepared: list = []
    node.policy.prepare = prepared.append
    assert node.inference.serve() and len(prepared) == 1
    stamp = node.see()
    node.talk.add_executed(stamp, NOTHING)
    assert node.inference.serve()
    assert [a.tick.observation.stamp for a in node.answers] == [stamp]
    assert len(node.answers[0].tick.between) == 8


def test_frames_that_come_during_a_slow_pass_are_bounded_and_do_not_hold_up_the_next_request():
    """20 s of one pass, with two 4K cameras at 30 Hz."""
    node = Stepped()

    def meanwhile() -> None:
        for _ in range(600):
            node.see(LARGE)

    node.policy.meanwhile = meanwhile
    node.talk.add_executed(node.see(), NOTHING)
    node.inference.serve()
    frames = node.talk.frames()
    assert 1 <= len(frames) <= MAX_BETWEEN and sum(f.nbytes for f in frames) <= MAX_BYTES
    stamp = node.see(LARGE)
    node.talk.add_executed(stamp, NOTHING)
    node.inference.serve()
    assert node.answers[-1].tick.observation.stamp == stamp


@pytest.mark.parametrize('why', ['disabled', 'overtaken', 'stopped'])
def test_pictures_that_nobody_looks_at_are_not_unpacked(why):
    node = Stepped('observation')
    node.policy.wants_frames = False
    if why == 'disabled':
        node.talk.enable(False)
    elif why == 'stopped':
        node.talk.instruct('', lambda: None)
    for _ in range(50):
        node.see()
    while node.inference.serve():
        pass
    assert node.unpacked == (2 if why == 'overtaken' else 0)


@pytest.mark.parametrize('error', [SystemExit('left'), KeyboardInterrupt(), ValueError('bad')])
@pytest.mark.parametrize('where', ['step', 'prepare', 'reset'])
def test_whatever_the_policy_raises_the_thread_lives(error, where):
    def fail(*arguments) -> None:
        raise error

    node = Stepped()
    node.see()
    node.talk.add_executed(node.see(), NOTHING)
    node.see()
    setattr(node.policy, where, fail)
    node.talk.reset('reset')
    node.see()
    node.talk.add_executed(node.see(), NOTHING)
    node.see()
    for _ in range(5):
        node.inference.serve()
    node.inference.policy = StandIn()
    node.talk.add_executed(node.see(), NOTHING)
    for _ in range(5):
        node.inference.serve()
    assert node.answers[-1].tick.observation.stamp == node.now


def test_only_an_error_of_cuda_that_stays_ends_the_process():
    node = Stepped()
    assert not is_lasting(torch.OutOfMemoryError('CUDA out of memory'))
    assert not is_lasting(RuntimeError('shapes do not fit'))
    assert not is_lasting(ValueError('CUDA error'))
    node.inference._on_failure(torch.AcceleratorError('CUDA error: an illegal memory access'))
    assert node.inference.fatal and node.stop.is_set() and node.inference.exhausted


def test_an_error_of_cuda_that_passes_costs_one_chunk(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'synchronize', int)
    node = Stepped()
    node.inference._on_failure(torch.AcceleratorError('CUDA error: invalid configuration'))
    assert not node.inference.fatal and node.inference.failures == 1


def test_an_observation_whose_picture_is_broken_is_dropped_and_its_actions_are_told():
    from vla_prune_ros.ros.images import ImageError

    node, good = Stepped(), Stepped.unpack

    def bad(message: SimpleNamespace) -> np.ndarray:
        raise ImageError('no picture')

    node.unpack = bad
    moved = Executed(np.full((1, 7), 0.5), (node.now,))
    node.talk.add_executed(node.see(), moved)
    node.inference.serve()
    assert not node.answers and not node.inference.failures
    node.unpack = good.__get__(node)
    node.talk.add_executed(node.see(), NOTHING)
    node.inference.serve()
    assert node.answers[-1].tick.executed[0] is moved
    assert node.answers[-1].tick.between == ()


def test_a_reset_between_two_lines_of_the_thread_comes_before_the_next_inference():
    node = Stepped()
    keep_up = node.inference._keep_up

    def late(config) -> None:
        keep_up(config)
        node.talk.reset('reset')
        node.talk.add_executed(node.see(), NOTHING)

    node.policy.history.append('from before')
    node.inference._keep_up = late
    node.inference.serve()
    assert not node.answers
    node.inference._keep_up = keep_up
    node.inference.serve()
    assert len(node.answers) == 1 and not node.policy.history


def test_recordings_are_caught_up_with_one_by_one_when_nobody_waits():
    node = Stepped()
    left, recorded = [3], []

    def catch_up() -> bool:
        assert node.talk.next() is None, 'a request waits'
        recorded.append(len(node.answers))
        left[0] -= 1
        return left[0] >= 0

    node.policy.catch_up, node.policy.wants_frames = catch_up, False
    for asked in (1, 2):
        node.talk.add_executed(node.see(), NOTHING)
        assert node.inference.serve() and len(node.answers) == asked  # the answer comes first
        assert recorded == [1] * (asked - 1)
        assert node.inference.serve()  # and one recording
    assert recorded == [1, 2]
    assert node.inference.serve() and not node.inference.serve()
    assert recorded == [1, 2, 2, 2]
