# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""VLA-Pruner on planted tokens: two votes, remembered action attention, no duplicates."""

from itertools import combinations

import pytest
import torch
from planted import Planted
from rig import SIZES, Rig, deep_config, model
from test_pruning_controls import attention_maps
from tiny import tiny_config

from vla_prune_ros.pruning import make_selector
from vla_prune_ros.pruning.vla_pruner import least_alike

CONFIG = tiny_config()  # 16 patches of each of two cameras
N = 32


def attention(patches, low=1e-4):
    """Most attention on some patches, the first most; the rest falls with the place."""
    values = low * torch.linspace(1, 0.5, N)
    for rank, patch in enumerate(patches):
        values[patch] = 1.0 - 0.01 * rank
    return values


def pruner(keep, **options):
    return Planted(CONFIG, 'vla_pruner', keep=keep / N, floor_share=0.0, **options)


def test_both_votes_count():
    rig, looks = pruner(6), Planted(CONFIG, 'vla_pruner').looks()
    rig.query(looks, attention([]), attention([5, 20, 7]))
    kept = rig.query(looks, attention([2, 17, 9]), attention([11, 12, 13]))
    assert {2, 17, 9} <= kept or {5, 20, 7} <= kept  # six of each vote; the least alike stay
    for only, wanted in (('use_semantic', {5, 20, 7}), ('use_action', {2, 17, 9})):
        rig = pruner(3, **{only: False})
        rig.query(looks, attention([]), attention([5, 20, 7]))
        assert rig.query(looks, attention([2, 17, 9]), attention([])) == wanted
    rig = pruner(4, redundancy=False)
    rig.query(looks, attention([]), attention([5, 20, 7, 9]))
    assert 9 in rig.query(looks, attention([9, 2, 17, 3]), attention([]))  # both name it


def test_of_duplicates_one_goes():
    rig = pruner(4)
    looks = rig.looks().clone()
    looks[6] = looks[2]
    rig.query(looks, attention([]), attention([2, 6, 20, 25]))
    kept = rig.query(looks, attention([2, 6, 20, 30]), attention([]))
    assert len(kept) == 4 and len(kept & {2, 6}) == 1
    assert kept - {2, 6} == {20, 25, 30}


@pytest.mark.parametrize('released', [False, True])
def test_the_window_weighs_by_age(released):
    rig = pruner(1, use_semantic=False, window=3, decay=0.5, released_weights=released,
                 warm='window', redundancy=False)  # fmt: skip
    looks, uniform = rig.looks(), torch.ones(N)
    maps = [torch.rand(N, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    for k in range(4):
        if k < 3:
            rig.query(looks, uniform, maps[k])
            assert rig.dense
    seen = [m / m.sum() for m in maps[:3]]  # oldest first
    weights = [1.0, 0.5, 0.25] if released else [0.25, 0.5, 1.0]
    wanted = sum(w * m for w, m in zip(weights, seen, strict=True)) / 1.75
    memory = rig.history.slots['vla_pruner']
    torch.testing.assert_close(rig.selector._remembered(memory), wanted)
    assert rig.query(looks, uniform, maps[3]) == {int(wanted.argmax())}
    assert not rig.dense
    assert len(memory.maps) == 3


def test_a_dropped_patch_returns_through_the_prefill_only():
    rig, looks = pruner(4, window=1), Planted(CONFIG, 'vla_pruner').looks()
    rig.query(looks, attention([]), attention([1, 2, 3, 4]))
    rig.query(looks, attention([1, 2, 3, 4]), attention([1, 2, 3, 4]))
    for _ in range(4):  # the action slots would look at 30 now, but it is not there
        assert 30 not in rig.query(looks, attention([1, 2, 3, 4]), attention([30]))
    assert 30 in rig.query(looks, attention([30, 2, 3, 4]), attention([30]))


@pytest.mark.parametrize(('warm', 'complete'), [('first', 1), ('window', 3)])
def test_first_queries_are_complete(warm, complete):
    rig, uniform = pruner(4, warm=warm), torch.ones(N)
    assert rig.selector.dense_queries == complete
    for turn in range(2):
        dense = []
        for _ in range(5):
            rig.query(rig.looks(), uniform, uniform)
            dense.append(rig.dense)
        assert dense == [True] * complete + [False] * (5 - complete), turn
        rig.history.reset('reset')


@pytest.mark.parametrize(
    ('options', 'first'),
    [({'joint': True}, 8), ({'floor_share': 0.25}, 6), ({'joint': False}, 4)],
)
@pytest.mark.parametrize('redundancy', [True, False])
def test_a_camera_gets_its_floor(options, first, redundancy):
    rig = Planted(
        CONFIG, 'vla_pruner', keep=8 / N, redundancy=redundancy, **{'floor_share': 0.0, **options}
    )
    one = torch.where(torch.arange(N) < 16, 1.0, 0.0)
    rig.query(rig.looks(), one, one)
    kept = rig.query(rig.looks(), one, one)
    assert len(kept) == 8
    assert sum(patch < 16 for patch in kept) == first


def test_a_larger_budget_than_what_was_seen_is_filled_up():
    for options in ({}, {'use_semantic': False}, {'redundancy': False}):
        rig = pruner(4, window=1, **options)
        looks, uniform = rig.looks(), torch.ones(N)
        for share, count in ((0.0, 32), (0.0, 4), (0.5, 16), (0.75, 24), (0.125, 4)):
            rig.selector.set_budget(share)
            assert len(rig.query(looks, uniform, uniform)) == count


def test_least_alike_equals_the_greedy_rule_by_hand():
    g = torch.Generator().manual_seed(3)
    looks = torch.nn.functional.normalize(torch.randn(12, 5, generator=g), dim=-1)
    voted = torch.rand(12, generator=g) > 0.3
    rows = voted.nonzero().flatten().tolist()
    far = {(a, b): 1 - float(looks[a] @ looks[b]) for a in rows for b in rows if a != b}
    chosen = [max(rows, key=lambda a: min(far[a, b] for b in rows if a != b))]
    while len(chosen) < 5:
        rest = [a for a in rows if a not in chosen]
        chosen.append(max(rest, key=lambda a: min(far[a, b] for b in chosen)))
    assert least_alike(looks, voted, 5, [0]).tolist() == chosen
    by_view = least_alike(looks, torch.ones(12, dtype=torch.bool), 4, [2, 2]).tolist()
    assert sorted(row // 6 for row in by_view) == [0, 0, 1, 1]


@pytest.mark.parametrize('rows', ['live', 'all'])
@pytest.mark.parametrize('size', SIZES)
def test_votes_are_the_attention_that_was_paid(size, rows):
    rig = Rig(model(size), 'vla_pruner', full_layers=15, rows=rows)
    first = rig.tick(0)
    layout, depth = first.layout, rig.model.config.llama.n_layers
    visual = slice(layout.visual.start, layout.visual.stop)
    action, cut = -(-15 * depth // 32), rig.selector.full_layers
    with torch.inference_mode():
        maps = attention_maps(rig.model, first.embeddings, action)
    seen = maps[:, [*layout.placeholders]].mean((0, 1))[visual]
    torch.testing.assert_close(rig.history.slots['vla_pruner'].maps[0], seen, atol=1e-6, rtol=1e-5)
    second = rig.tick(1)
    with torch.inference_mode():
        maps = attention_maps(rig.model, second.embeddings, cut - 1)
    asked = [*range(layout.proprio, layout.eos)] if rows == 'live' else [*range(layout.length)]
    received = maps[:, asked].mean((0, 1))[visual]
    torch.testing.assert_close(rig.trace.scores[cut - 1], received, atol=1e-6, rtol=1e-5)


def test_layers_are_scaled_to_the_model():
    deep, flat = (make_selector('vla_pruner', c) for c in (deep_config(), CONFIG))
    assert (deep.full_layers, deep.action_layer) == (3, 15)
    assert (flat.full_layers, flat.action_layer) == (1, 2)
    for changes in combinations((False, True), 2):
        values = dict(zip(('use_semantic', 'use_action'), changes, strict=True))
        assert make_selector('vla_pruner', CONFIG, **values).values | values
    with pytest.raises(ValueError, match='use_semantic, use_action'):
        make_selector('vla_pruner', CONFIG, use_semantic=False, use_action=False)
