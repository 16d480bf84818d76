# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""After a warm-up nothing is recorded while a chunk is waited for, whatever is asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import observation, tiny_checkpoint, tiny_model

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import CLASSES
from vla_prune_ros.runtime.engine import PROMPT, GraphEngine
from vla_prune_ros.runtime.stages import UNKNOWN
from vla_prune_ros.runtime.workspace import TEXT_STEP
from vla_prune_ros.vla.parts import LlamaConfig, TowerConfig

pytestmark = [
    pytest.mark.filterwarnings('ignore::UserWarning'),
    pytest.mark.usefixtures('stand_in'),
]
CASES = {
    'none': ('none', {}),
    'random': ('random', {'layer': 2}),
    'random as specprune': ('random', {'matched_to': 'specprune'}),
    'random as vla_cache': ('random', {'matched_to': 'vla_cache'}),
    'grid': ('grid', {'stride': 5, 'phase': 'rotate'}),
    'fastv': ('fastv', {}),
    'efficient_vla': ('efficient_vla', {'layers': '2'}),
    'lightvla': ('lightvla', {}),
    'lightvla keep': ('lightvla', {'keep': 9}),
    'scout': ('scout', {}),
    'specprune': ('specprune', {}),
    'specprune generous': ('specprune', {'alpha': 6.0, 'confidence_weighting': False}),
    'vla_cache': ('vla_cache', {}),
    'vla_cache eager to reuse': ('vla_cache', {'refresh_below': 0.0, 'relevant_k': 1}),
    'vla_cache by entropy': ('vla_cache', {'preset': 'paper'}),  # not recorded, see its plan
    'vla_pruner': ('vla_pruner', {'warm': 'window', 'window': 4}),
}

SLOW = {'random as vla_cache', 'specprune generous', 'vla_cache eager to reuse', 'random'}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('warm_up'), seed=2)


def queries(n, rng, most, change=256):
    """Observations of which a random part changes, with instructions of 1 to `most` words."""
    words = 1
    for i in range(n):
        if i % 3 == 0:
            words = int(rng.integers(1, most)) if i else most
        o, other = observation(0, 0.4 * i, 'pick ' * words), observation(int(rng.integers(1, 99)))
        images = {name: image.copy() for name, image in o.images.items()}
        for name in images:
            side = int(rng.integers(0, change + 1))
            images[name][:side, :side] = other.images[name][:side, :side]
        yield replace(o, images=images)


def agree(recorded, plain, o):
    ours, theirs = recorded.step(o), plain.step(o)
    np.testing.assert_array_equal(ours.kept, theirs.kept)
    np.testing.assert_allclose(ours.actions, theirs.actions, rtol=0, atol=1e-4)
    for key, value in theirs.stats.items():
        assert ours.stats[key] == value, key
    return ours


@pytest.mark.parametrize(
    'case',
    [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES],
)
def test_after_warm_up_nothing_is_recorded_whatever_is_asked(directory, case):
    ask_for_everything(directory, *CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['specprune', 'vla_cache', 'lightvla'])
def test_after_warm_up_nothing_is_recorded_with_as_many_patches_as_published(tmp_path, mode):
    towers = {
        'featurizer': TowerConfig(24, 2, 2, 48, 14, 224, reg_tokens=2, class_token=True),
        'fused_featurizer': TowerConfig(16, 2, 2, 31, 14, 224),
    }
    directory = tiny_checkpoint(tmp_path, llama=LlamaConfig(32, 12, 4, 56, 256), **towers)
    ask_for_everything(directory, mode, {})


def ask_for_everything(directory, mode, options):
    recorded, plain = (
        VLAPolicy.from_pretrained(directory, mode, runtime=runtime, **options)
        for runtime in ('graphs', 'plain')
    )
    budgets = CLASSES if recorded.budget_kind != 'none' else ()
    recorded.warm_up(budgets=budgets)
    before, rng = recorded.runtime_stats(), np.random.default_rng(5)
    one = recorded.processor.prompt('pick ')[0].shape[1]
    most = recorded._engine._space.prompt_capacity - one + 1
    for i, o in enumerate(queries(16, rng, most)):
        if budgets and i >= 8:
            share = float(rng.choice(budgets))
            for policy in (recorded, plain):
                policy.set_budget(share)
        ours = agree(recorded, plain, o)
        assert ours.stats['runtime'] == 'replay', (i, len(o.instruction.split()))
        if i % 4 == 3:
            assert recorded.audit() is not None
        speed = rng.uniform(-1, 1) * np.ones((3, 7))
        for policy in (recorded, plain):
            policy.observe(o.images)
            policy.record_executed(speed)
    after = recorded.runtime_stats()
    assert after['captures'] == before['captures'] and after['evicted'] == 0
    assert after['fallbacks'] == 0, after['last_fallback']


def test_what_a_warm_up_could_not_know_runs_eagerly_until_there_is_time(directory):
    recorded, plain = (
        VLAPolicy.from_pretrained(directory, runtime=runtime) for runtime in ('graphs', 'plain')
    )
    recorded.warm_up()
    captures = recorded.runtime_stats()['captures']
    assert not recorded.catch_up()
    steps = iter(range(100))
    for words, (mode, options) in [
        (3, ('fastv', {})),  # another mode
        (70, ('vla_cache', {})),  # longer than there is room for: everything moves
        (70, ('specprune', {})),
    ]:
        for policy in (recorded, plain):
            policy.set_pruning(mode, **options)
        said = []
        for _ in range(8):
            o = observation(0, 0.4 * next(steps), 'pick ' * words)
            said.append(agree(recorded, plain, o).stats['runtime'])
            assert recorded.runtime_stats()['captures'] == captures  # not in the loop
            while recorded.catch_up():
                captures += 1
                assert recorded.runtime_stats()['captures'] == captures
        assert said[0] == f'plain: {UNKNOWN}'
        assert said[-2:] == ['replay'] * 2


def test_catching_up_changes_no_chunk_that_follows(directory):
    """Repeated work writes what it wrote before, into caches too."""
    plain = VLAPolicy.from_pretrained(directory, 'vla_cache', refresh_below=0.0)
    recorded = VLAPolicy.from_pretrained(directory, runtime='graphs')
    recorded.warm_up()
    recorded.set_pruning('vla_cache', refresh_below=0.0)
    reused = 0
    for o in queries(12, np.random.default_rng(1), 2, change=64):
        o = replace(o, instruction='pick')
        ours = agree(recorded, plain, o)
        recorded.catch_up()
        reused += ours.stats['reused'] > 0
    assert reused > 3


@pytest.mark.parametrize('views', [1, 2])
def test_classes_of_prompts_cover_every_length(views):
    model = tiny_model(3)
    with torch.inference_mode():
        space = GraphEngine(model).workspace(views, 12)
    assert space.prompt_capacity >= PROMPT
    for shortest in (2, 12, 40, space.prompt_capacity):
        classes = space.prompt_classes(shortest)
        assert classes[-1] == space.prompt_capacity
        for length in range(shortest, space.prompt_capacity + 1):
            longest = min(n for n in classes if n >= length)
            here, there = space.layout(length), space.layout(longest)
            assert space._full(here) == space._full(there)
            for rows in (
                lambda layout: layout.text,
                lambda layout: layout.visual,
                lambda layout: layout.placeholders,
                lambda layout: range(layout.eos, layout.length),
                lambda layout: range(layout.proprio, layout.eos),
                lambda layout: range(layout.length),
            ):
                room = space.room_for(rows(here), here)
                assert len(rows(here)) <= room == space.room_for(rows(there), there)
    assert len(space.prompt_classes(12)) <= 1 + PROMPT // TEXT_STEP
