# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The self-audit changes nothing, waits for nothing, and notices a selector that is blind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import observation, tiny_checkpoint

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.policy.audit import RETRY, STAGES, Deviation, IdleTime, Watch, deviation
from vla_prune_ros.pruning import CLASSES, MODES
from vla_prune_ros.pruning.random import RandomDrop

pytestmark = [
    pytest.mark.filterwarnings('ignore::UserWarning'),
    pytest.mark.usefixtures('stand_in'),
]


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('audit'), seed=1)


def episode(policy, audit, n=5):
    """Chunks of an episode, and what the audit said after each of them."""
    chunks, found = [], []
    for i in range(n):
        chunks.append(policy.step(observation(i % 3, float(i))))
        if audit:
            found.append(policy.audit(give_up=audit))
        policy.record_executed(np.full((8, 7), 0.1 * i))
        policy.observe(observation(i % 2, float(i)).images)
    return chunks, found


class Asked:
    """Gives up at the nth question; counts them."""

    def __init__(self, limit=10**9):
        self.limit, self.count = limit, 0

    def __call__(self):
        self.count += 1
        return self.count >= self.limit


@pytest.mark.parametrize('runtime', ['plain', 'graphs'])
@pytest.mark.parametrize('mode', MODES)
def test_chunks_are_bit_for_bit_those_without_an_audit(directory, mode, runtime):
    load = lambda: VLAPolicy.from_pretrained(directory, mode, runtime=runtime)  # noqa: E731
    plain, _ = episode(load(), None)
    audited, found = episode(load(), Asked())
    interrupted, none = episode(load(), Asked(2))
    for others in (audited, interrupted):
        for a, b in zip(plain, others, strict=True):
            np.testing.assert_array_equal(a.actions, b.actions)
            np.testing.assert_array_equal(a.kept, b.kept)
            own = a.stats | {'graph_bytes': b.stats.get('graph_bytes')}  # stages of the audit
            assert own == {'graph_bytes': None} | b.stats
            assert (a.rows, a.dense) == (b.rows, b.dense)
    assert all(x is not None for x in found)
    pruned = [x for chunk, x in zip(audited, found, strict=True) if not chunk.dense]
    assert all(x.overall > 0 for x in pruned)
    assert [x.overall for chunk, x in zip(audited, found, strict=True) if chunk.dense] == (
        [0.0] * (len(found) - len(pruned))
    )
    assert [x is None for x in none] == [not chunk.dense for chunk in interrupted]


@pytest.mark.parametrize('runtime', ['plain', 'graphs'])
def test_the_deviation_is_that_from_the_dense_policy(directory, runtime):
    policy = VLAPolicy.from_pretrained(directory, 'fastv', runtime=runtime)
    dense = VLAPolicy.from_pretrained(directory, 'none')
    seen = observation(4)
    ours, theirs = policy.step(seen), dense.step(seen)
    normalise = policy.processor.normaliser.normalise_actions
    apart = np.abs(normalise(ours.actions) - normalise(theirs.actions))
    for steps in (0, 3):
        found = policy.audit(steps=steps)
        part = apart[: steps or None].mean(0)
        assert found.stamp == seen.stamp
        wanted = {'translation': part[:3], 'rotation': part[3:6], 'gripper': part[6:]}
        for name, values in wanted.items():
            assert found.groups[name] == pytest.approx(values.mean(), abs=2e-6)
        assert found.overall == pytest.approx(part.mean(), abs=2e-6)
    assert policy.step(observation(4, 1.0)).actions.shape == ours.actions.shape


def test_a_pass_can_be_given_up_between_any_two_of_its_stages(directory):
    policy = VLAPolicy.from_pretrained(directory, 'fastv')
    policy.step(observation())
    asked = Asked()
    assert policy.audit(asked) is not None
    depth = policy.config.llama.n_layers
    assert asked.count == min(depth, STAGES)
    for limit in range(1, asked.count + 1):
        assert policy.audit(Asked(limit)) is None
    assert policy.audit() is not None  # and still be done


def test_there_is_nothing_to_audit_before_a_chunk_and_after_a_reset_or_a_warm_up(directory):
    policy = VLAPolicy.from_pretrained(directory, 'fastv')
    assert policy.audit() is None
    for end in (policy.reset, policy.warm_up):
        policy.step(observation())
        end()
        assert policy.audit() is None


def test_groups_of_another_embodiment_are_one():
    ours, dense = np.zeros((8, 14)), np.ones((8, 14))
    assert deviation(0.0, ours, dense).groups == {'actions': 1.0}


class Blind(RandomDrop):
    """Keeps only patches of the second camera, once it is told to."""

    name = 'blind'
    blind = False

    def select(self, point, tokens):
        kept = super().select(point, tokens)
        if not self.blind:
            return None
        first = tokens.layout.view(0)
        return kept[(kept < first.start) | (kept >= first.stop)]


def test_a_selector_that_goes_blind_is_noticed_within_three_chunks(monkeypatch, directory):
    monkeypatch.setitem(MODES, 'blind', Blind)
    policy = VLAPolicy.from_pretrained(directory, 'blind')
    watch = Watch(threshold=0.02, response='dense')
    smoothed = []
    for i in range(7):
        policy._selector.blind = i >= 4
        policy.step(observation(i, float(i)))
        watch.take(policy.audit(), 0.5)
        smoothed.append(watch.smoothed)
        if watch.floor:
            break
    assert smoothed[:4] == [0.0] * 4
    assert 4 <= i < 7 and watch.floor == 1.0


def found(overall):
    return Deviation(0.0, {'translation': overall}, overall)


def test_the_watch_asks_for_more_tokens_above_its_threshold_until_it_is_below_half_of_it():
    watch = Watch(threshold=0.1)
    floors = []
    for value in (0.3, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        watch.take(found(value), share=watch.floor or 0.25)
        floors.append(watch.floor)
    up = [c for c in CLASSES if c > 0.25][:4]  # smoothed 0.3, 0.3, 0.3, 0.15
    assert floors[:5] == [*up, up[-1]]  # 0.075 is between half of the threshold and all of it
    assert floors[5] < up[-1] and floors == sorted(floors[:4]) + sorted(floors[4:], reverse=True)
    assert watch.count == 11


def test_the_answer_dense_is_all_or_nothing():
    watch = Watch(threshold=0.1, response='dense')
    floors = []
    for value in (0.05, 0.3, 0.0, 0.0, 0.0):
        watch.take(found(value), share=0.25)
        floors.append(watch.floor)
    assert floors == [0.0, 1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match='class, dense'):
        Watch(response='more')


def test_without_a_threshold_nothing_is_asked_for_and_a_reset_forgets():
    watch = Watch()
    assert math.isnan(watch.smoothed)
    for value in (1.0, 3.0):
        watch.take(found(value), 0.1)
    assert (watch.floor, watch.smoothed, watch.latest) == (0.0, 2.0, found(3.0))
    watch.reset()
    assert math.isnan(watch.smoothed)


def test_a_pass_is_begun_only_if_it_will_be_over_before_the_next_request():
    idle, now = IdleTime(), 0.0
    assert idle.fits(now)  # nothing is known yet

    def gap(seconds):
        nonlocal now
        idle.answered(now)
        fits = idle.fits(now)
        now += seconds
        idle.asked(now)
        return fits

    for _ in range(8):
        gap(0.2)
    idle.took(0.1)
    assert gap(0.2)
    idle.answered(now)
    assert not idle.fits(now + 0.15)  # the pause is nearly over
    idle.asked(now + 0.2)
    idle.took(0.5)
    assert [gap(0.2) for _ in range(RETRY + 1)].count(True) == 1  # one is tried
    for _ in range(8):
        gap(1.0)
    assert gap(1.0)


@pytest.mark.gpu
def test_on_a_gpu_the_stages_are_waited_for_one_by_one(directory):
    policy = VLAPolicy.from_pretrained(directory, 'fastv', device='cuda')
    policy.step(observation())
    assert policy.audit(Asked(2)) is None
    assert policy.audit().overall > 0
    torch.cuda.synchronize()
