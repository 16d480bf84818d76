# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scout on planted objects: it follows, it patrols, it forgets nothing, and it never waits."""

import math

import pytest
import torch
from planted import Planted
from rig import Rig, deep_config, model, moves
from tiny import tiny_config

from vla_prune_ros.pruning import make_selector
from vla_prune_ros.pruning.scout import followed, fused, unlike
from vla_prune_ros.vla.selection import TokenLayout

CONFIG = tiny_config()  # 16 patches of each of two cameras
N = 32


def attention(*patches, low=0.01):
    """Most attention on some patches."""
    values = torch.full((N,), low)
    values[[*patches]] = 1.0
    return values


def scene(rig, where, seed=0):
    """Background that stays where it is, and an object on one patch."""
    looks = rig.looks(seed).clone()
    looks[where] = rig.looks(99)[0]
    return looks


@pytest.mark.parametrize('follow', [True, False])
def test_an_object_that_moves_by_one_patch_per_query_is_followed(follow):
    rig = Planted(CONFIG, 'scout', keep=4 / N, explore=0.0, follow=follow)
    found = []
    for step in range(12):
        where = step if step < 6 else 27 - step  # along the first camera, then in the second
        if step == 6:
            rig.history.reset('reset')
        kept = rig.query(scene(rig, where), attention(where), attention(where))
        found.append(where in kept)
    assert found[0] and found[6]  # complete
    assert all(found) == follow


@pytest.mark.parametrize('patrol', ['diverse', 'age'])
def test_an_object_that_appears_far_away_is_found_in_time(patrol):
    keep, explore = 8, 0.25
    rig = Planted(CONFIG, 'scout', keep=keep / N, explore=explore, patrol=patrol)
    rig.query(scene(rig, 3), attention(3), attention(3))
    for _ in range(3):
        rig.query(scene(rig, 3), attention(3), attention(3))
    took = 1
    while 29 not in rig.query(scene(rig, 29), attention(29), attention(29)):
        took += 1
    assert took <= N / (keep * explore)
    # Once seen it is remembered, wherever the patrol goes next.
    assert all(29 in rig.query(scene(rig, 29), attention(29), attention(29)) for _ in range(6))


def test_without_a_patrol_it_would_stay_unseen():
    rig = Planted(CONFIG, 'scout', keep=8 / N, explore=0.0, follow=False)
    rig.query(scene(rig, 3), attention(3), attention(3))
    missed = [29 not in rig.query(scene(rig, 29), attention(29), attention(29)) for _ in range(20)]
    assert all(missed)


@pytest.mark.parametrize(('patrol', 'alike'), [('age', False), ('diverse', True)])
def test_no_patch_is_left_longer_than_a_round_of_the_patrol(patrol, alike):
    keep, explore = 8, 0.25
    rig = Planted(CONFIG, 'scout', keep=keep / N, explore=explore, patrol=patrol)
    looks = torch.ones(N, 16) if alike else rig.looks(1)
    g = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(60):
        rig.query(looks, torch.rand(N, generator=g), torch.rand(N, generator=g))
        worst = max(worst, float(rig.history.slots['scout'].age.max()))
    assert 0 < worst <= N / (keep * explore)


def test_a_patch_like_a_chosen_one_waits_longer_but_not_for_ever():
    rig = Planted(CONFIG, 'scout', keep=8 / N, explore=0.25)
    looks = rig.looks(1).clone()
    looks[20] = looks[0]  # a twin of what is always kept
    seen = [20 in rig.query(looks, attention(0), attention(0)) for _ in range(600)]
    assert seen[0] and any(seen[1:])


def test_dropped_patches_keep_their_scores_and_computed_ones_their_sum():
    rig = Planted(CONFIG, 'scout', keep=8 / N, follow=False)
    g = torch.Generator().manual_seed(0)
    looks = rig.looks(0)
    rig.query(looks, torch.rand(N, generator=g), torch.rand(N, generator=g))
    for _ in range(10):
        before = rig.history.slots['scout'].scores.clone()
        kept = sorted(rig.query(looks, torch.rand(N, generator=g), torch.rand(N, generator=g)))
        after = rig.history.slots['scout'].scores
        dropped = sorted({*range(N)} - {*kept})
        assert torch.equal(after[:, dropped], before[:, dropped])
        torch.testing.assert_close(after[:, kept].sum(1), before[:, kept].sum(1))
        assert not torch.equal(after[:, kept], before[:, kept])


def test_it_starts_afresh_after_a_reset_and_for_another_sequence():
    rig = Planted(CONFIG, 'scout')
    looks, uniform = rig.looks(), torch.ones(N)
    dense = []
    for step in range(6):
        if step == 2:
            rig.history.reset('gap')
        if step == 4:
            rig.layout = TokenLayout(2, 16, 13, CONFIG.n_placeholders)
        rig.query(looks, uniform, uniform)
        dense.append(rig.dense)
    assert dense == [True, False, True, False, True, False]


@pytest.mark.parametrize('on', [True, False])
def test_a_gripper_event_asks_for_a_complete_query_if_wanted(on):
    rig = Planted(CONFIG, 'scout', dense_on_grip=on)
    looks, uniform = rig.looks(), torch.ones(N)
    opened, closed = moves(4), moves(4)
    closed[:, -1] = 0.0
    dense = []
    for actions in ((), opened, opened, closed, closed, [*closed[:2], *opened[:2]], opened):
        rig.query(looks, uniform, uniform, actions)
        dense.append(rig.dense)
    wanted = [True, False, False, on, False, on, False]
    assert dense == wanted


@pytest.mark.parametrize('joint', [True, False])
def test_cameras_share_the_budget_by_rank_or_equally(joint):
    rig = Planted(CONFIG, 'scout', keep=8 / N, explore=0.0, joint=joint)
    first = torch.where(torch.arange(N) < 16, 1.0, 0.01)  # all attention in one camera
    rig.query(rig.looks(), first, first)
    kept = rig.query(rig.looks(), first, first)
    assert sum(patch < 16 for patch in kept) == (8 if joint else 4)


def test_sources_are_those_of_the_options_at_any_depth():
    deep, flat = (make_selector('scout', c).sources for c in (deep_config(), CONFIG))
    assert deep == [('action', 8), ('action', 16), ('action', 31), ('text', 8)]
    assert flat == [('action', 1), ('action', 2), ('action', 3), ('text', 1)]
    assert make_selector('scout', CONFIG, text_layers='', action_layers='31').sources == [
        ('action', 3)
    ]
    with pytest.raises(ValueError, match='action_layers'):
        make_selector('scout', CONFIG, action_layers='x')
    with pytest.raises(ValueError, match='action_layers, text_layers'):
        make_selector('scout', CONFIG, action_layers='', text_layers='')


@pytest.mark.parametrize('views', [1, 2, 3])
def test_scores_are_the_attention_that_was_paid(views):
    from test_pruning_controls import attention_maps

    rig = Rig(model('grid 4, 4 layers'), 'scout', views)
    out = rig.tick(0)
    layout, memory = out.layout, rig.history.slots['scout']
    visual = slice(layout.visual.start, layout.visual.stop)
    for (rows, layer), found in zip(rig.selector.sources, memory.scores, strict=True):
        with torch.inference_mode():
            maps = attention_maps(rig.model, out.embeddings, layer)
        asked = layout.placeholders if rows == 'action' else layout.text
        wanted = maps[:, [*asked]].mean((0, 1))[visual]
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


# -- its parts -----------------------------------------------------------------------------------
def test_scores_follow_the_most_similar_patch_of_the_same_camera_and_never_fall():
    a, b, c, d = torch.eye(4)
    last = torch.stack([torch.stack([a, b]), torch.stack([c, d])])
    today = torch.stack([torch.stack([b, a]), torch.stack([a, d])])
    scores = torch.tensor([[1.0, 0.0, 0.0, 0.5]])
    found = followed(scores, today, last)
    far = math.exp(-1 / 0.05)
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 0.5 * far, 0.5]]))


def test_ranks_are_fused_whatever_the_scale_of_a_source():
    scores = torch.tensor([[3.0, 2.0, 1.0], [0.1, 0.3, 0.2]])
    expected = torch.tensor([1 / 2 + 1 / 4, 1 / 3 + 1 / 2, 1 / 4 + 1 / 3])
    torch.testing.assert_close(fused(scores), expected)
    torch.testing.assert_close(fused(scores * torch.tensor([[1.0], [1000.0]])), expected)


def test_the_patrol_goes_where_it_looks_unlike_everything_chosen():
    looks = torch.eye(6)[[0, 0, 1, 1, 2, 3]]
    ones = torch.ones(6)
    rows = unlike(looks, torch.tensor([0]), ones, 3).tolist()
    assert rows == [0, 2, 4, 5]
    old = ones.clone()
    old[3] = 2.0
    assert unlike(looks, torch.tensor([0]), old, 1).tolist() == [0, 3]
    assert sorted(unlike(looks, torch.tensor([], dtype=torch.int64), ones, 6).tolist()) == [
        *range(6)
    ]
