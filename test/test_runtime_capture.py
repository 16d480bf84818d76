# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recording work and replaying it: the stand-in keeps the rules of CUDA graphs."""

import gc
from dataclasses import dataclass

import pytest
import torch
from recorded_operations import RecordedOperations

from vla_prune_ros.runtime.capture import CudaGraphs
from vla_prune_ros.runtime.stages import UNKNOWN, Stages
from vla_prune_ros.vla.space import Stage


def cuda_graphs():
    return CudaGraphs(torch.device('cuda'))


BACKENDS = [
    pytest.param((RecordedOperations, 'cpu'), id='stand-in'),
    pytest.param((cuda_graphs, 'cuda'), id='cuda', marks=pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS)
def place(request):
    make, device = request.param
    with torch.inference_mode():
        yield make, device


def test_a_replay_follows_its_inputs_without_python_and_without_moving(place):
    make, device = place
    x, runs = torch.ones(4, 3, device=device), []
    side = torch.zeros(3, device=device)

    def work():
        runs.append(1)
        y = x.t().contiguous().view(-1).relu_().add_(1)
        side.copy_(x.sum(0))
        return [y[::2], y.amax()]

    graph = make().capture(work, [side])
    addresses = [t.data_ptr() for t in (*graph.outputs, side)]
    n_runs = len(runs)
    for value in (5.0, -2.0):
        x.fill_(value)
        graph.replay()
        assert graph.outputs[0].tolist() == [max(value, 0) + 1] * 6
        assert side.tolist() == [4 * value] * 3
    assert [t.data_ptr() for t in (*graph.outputs, side)] == addresses
    assert len(runs) == n_runs


@pytest.mark.parametrize(
    'sync',
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device),
    ],
)
def test_work_that_waits_for_the_device_is_refused(sync):
    x = torch.ones(4)
    with torch.inference_mode(), pytest.raises(RuntimeError, match='cannot be part of a graph'):
        RecordedOperations().capture(lambda: [torch.as_tensor(sync(x)) * 1.0])


def test_work_that_depends_on_what_python_counts_is_refused(place):
    make, device = place
    x, calls = torch.ones(2, device=device), []

    def work():
        calls.append(1)
        return [x * len(calls)]

    with pytest.raises(RuntimeError, match='does not reproduce'):
        make().capture(work)


def test_memory_of_a_dropped_recording_is_no_longer_counted():
    backend = RecordedOperations()
    x = torch.ones(100)
    with torch.inference_mode():
        graphs = [backend.capture(lambda: [x * 2 + 1]) for _ in range(2)]
    full = backend.used_bytes()
    assert full >= 2 * 2 * 400
    graphs.pop()
    gc.collect()
    assert backend.used_bytes() == full / 2


class Place:
    """A space of one tensor."""

    def __init__(self, x):
        self.x, self.static, self.states = x, {}, {}


@dataclass(frozen=True)
class Add(Stage):
    """Adds a number to the tensor of the space."""

    number: int

    def work(self, network, space):
        return [space.x + self.number]


class Broken(RecordedOperations):
    """Cannot record anything."""

    def capture(self, work, written=()):
        raise RuntimeError('no recording today\nmore text')


def test_a_stage_that_cannot_be_recorded_runs_eagerly_and_says_why():
    stages = Stages(Broken, 4, 1 << 20)
    for _ in range(2):
        assert stages.run(None, Place(torch.ones(1)), (Add(1),))[0].item() == 2
    assert (stages.fallbacks, stages.captures, stages.replays) == (2, 0, 0)
    assert stages.said == 'plain: no recording today'


class Spoilt(RecordedOperations):
    """After a recording that broke off it records no more, like a pool of CUDA graphs."""

    broken = False

    def capture(self, work, written=()):
        if self.broken:
            raise RuntimeError('the pool is spoilt')
        try:
            return super().capture(work, written)
        except RuntimeError:
            self.broken = True
            raise


@dataclass(frozen=True)
class Asks(Add):
    """Reads a value, which no graph can."""

    def work(self, network, space):
        return [space.x + int(space.x.sum()) + self.number]


def test_a_failed_recording_spoils_no_other_and_is_tried_once():
    stages = Stages(Spoilt, 9, 1 << 20)
    x = Place(torch.ones(1))
    with torch.inference_mode():
        for stage, result in ((Add(1), 2), (Asks(1), 3), (Add(1), 2), (Add(2), 3), (Asks(1), 3)):
            assert stages.run(None, x, (stage,))[0].item() == result
            assert stages.run(None, x, (stage,))[0].item() == result
    assert (stages.captures, stages.fallbacks) == (3, 4)  # Add(1) was recorded again
    assert 'needs the host' in stages.last_fallback and not stages.backend.broken


def test_the_least_recently_used_stage_goes_first():
    stages = Stages(RecordedOperations, 2, 1 << 20)
    x = Place(torch.ones(1))
    with torch.inference_mode():
        for number in (1, 2, 1, 3, 1, 2):
            assert stages.run(None, x, (Add(number),))[0].item() == 1 + number
    assert (stages.captures, stages.replays, stages.evicted, len(stages)) == (4, 2, 2, 2)


def test_equal_stages_of_other_tensors_are_other_recordings():
    stages = Stages(RecordedOperations, 4, 1 << 20)
    spaces = Place(torch.ones(1)), Place(torch.full((1,), 5.0))
    with torch.inference_mode():
        for _ in range(2):
            assert [stages.run(None, x, (Add(1),))[0].item() for x in spaces] == [2, 6]
    assert (stages.captures, stages.replays) == (2, 2)


def test_too_much_memory_starts_all_recordings_anew():
    stages = Stages(RecordedOperations, 100, 3000)
    x = Place(torch.ones(100))
    with torch.inference_mode():
        for number in range(8):
            assert stages.run(None, x, (Add(number),))[0].sum().item() == 100 * (1 + number)
            assert stages.used_bytes <= 3000
    assert stages.evicted >= 2


def test_stages_that_are_closed_record_only_when_they_catch_up_and_only_the_latest_pass():
    stages, x = Stages(RecordedOperations, 9, 1 << 20), Place(torch.ones(1))
    with torch.inference_mode():
        stages.run(None, x, (Add(1),))
        stages.open = False
        stages.begin()
        assert stages.run(None, x, (Add(1),))[0].item() == 2 and stages.said == ''
        assert stages.run(None, x, (Add(2),))[0].item() == 3
        assert stages.said == f'plain: {UNKNOWN}' and stages.captures == 1
        stages.begin()  # what lay in the space for Add(2) may be gone
        assert not stages.catch_up()
        for number in (3, 4):
            assert stages.run(None, x, (Add(number),))[0].item() == 1 + number
        assert stages.catch_up() and stages.catch_up() and not stages.catch_up()
        assert stages.captures == 3
        stages.begin()
        for number in (3, 4):
            assert stages.run(None, x, (Add(number),))[0].item() == 1 + number
        assert stages.said == '' and stages.fallbacks == 3
