# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""VLA-Cache: reuse changes nothing on a repeated frame, and old or changed slots are not used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import INSTRUCTIONS, inputs, observation, tiny_checkpoint, tiny_config, tiny_model

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import History, Tick, make_selector
from vla_prune_ros.pruning.cache_schedule import entropy_shares, parse_stages, released_shares
from vla_prune_ros.pruning.frames import to_patches
from vla_prune_ros.pruning.vla_cache import CacheState
from vla_prune_ros.pruning.vla_cache_options import PRESETS
from vla_prune_ros.vla.config import LlamaConfig, OpenVLAConfig
from vla_prune_ros.vla.processor import pixel_values
from vla_prune_ros.vla.selection import SlotCache, TokenLayout

DATA = Path(__file__).parent / 'data' / 'vla_cache_patches' / 'pairs.npz'
BASE = tiny_config()
LARGER = {
    'llama': LlamaConfig(48, 9, 3, 80, 256),
    'featurizer': replace(BASE.featurizer, image_size=84),
    'fused_featurizer': replace(BASE.fused_featurizer, image_size=84),
}
MODELS = {'small': tiny_model(), 'larger': tiny_model(**LARGER)}
TEMPLATE = 3
REUSE_ALL = {'static_k': 10_000, 'relevant_k': 0, 'max_age': 0, 'refresh_below': 0.0}


def noise(model, seed, views=2):
    size = model.config.image_size
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (views, size, size, 3), dtype=np.uint8)


def repaint(frames, view, patch, value=255):
    """The frames with one patch replaced."""
    frames, grid = frames.copy(), frames.shape[1] // 14
    row, column = divmod(patch, grid)
    frames[view, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = value
    return frames


class Run:
    """A model under vla_cache with a history, as the policy drives it."""

    def __init__(self, model, views=2, length=12, **options):
        self.model, self.views = model, views
        self.selector = make_selector('vla_cache', model.config, **options)
        self.history = History()
        _, self.ids, self.proprio = inputs(model.config, length=length, views=views)

    @property
    def state(self):
        return self.history.slots['vla_cache']

    def step(self, frames, ids=None, proprio=None):
        self.selector.observe(Tick(frames, TEMPLATE, self.history))
        out = self.dense(frames, ids, proprio, self.selector)
        self.history.close_query(frames)
        self.stats = self.selector.stats()
        return out

    def dense(self, frames, ids=None, proprio=None, selector=None):
        ids = self.ids if ids is None else ids
        proprio = self.proprio if proprio is None else proprio
        with torch.inference_mode():
            return self.model(pixel_values(frames), ids, proprio, selector=selector)


@pytest.fixture(params=[('small', 2), ('small', 1), ('larger', 2), ('larger', 1)], ids=str)
def sized(request):
    """Models of two sizes, two cameras and one."""
    name, views = request.param
    return MODELS[name], views


# -- nothing reused, and repeated frames -------------------------------------------------------
@pytest.mark.parametrize('options', [{'static_k': 0, 'refresh_below': 0.0}, {'static_k': 0}])
def test_without_reuse_every_pass_equals_dense_bit_for_bit(sized, options):
    model, views = sized
    run = Run(model, views, **options)
    for seed in (0, 0, 1):
        frames = noise(model, seed, views)
        out, dense = run.step(frames), run.dense(frames)
        assert torch.equal(out.actions, dense.actions)
        assert torch.equal(out.readout, dense.readout)
        assert len(out.kept) == out.layout.n_visual
        assert run.stats['reused'] == 0


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('options', [{}, REUSE_ALL, {'stages': '1:1.0', **REUSE_ALL}])
def test_a_repeated_input_reuses_and_equals_dense(sized, preset, options):
    model, views = sized
    run = Run(model, views, preset=preset, **options)
    frames = noise(model, 0, views)
    dense = run.dense(frames)
    for _ in range(4):
        out = run.step(frames)
        torch.testing.assert_close(out.actions, dense.actions, rtol=0, atol=1e-5)
        torch.testing.assert_close(out.readout, dense.readout, rtol=0, atol=1e-5)
        if run.stats['state'] == 'warm' and preset == 'default':
            assert run.stats['reused'] > 0
            assert len(out.kept) == out.layout.n_visual - run.stats['reused']


def test_one_reused_slot_on_a_repeated_frame_equals_dense(sized):
    model, views = sized
    run = Run(model, views, stages='1:1.0', **{**REUSE_ALL, 'static_k': 1})
    frames = noise(model, 3, views)
    run.step(frames)
    out = run.step(frames)
    assert len(out.kept) == out.layout.n_visual - views
    torch.testing.assert_close(out.actions, run.dense(frames).actions, rtol=0, atol=1e-5)


def test_reuse_on_a_changed_frame_is_near_dense_but_not_dense():
    """So that the equalities above are not those of a mode that never reuses."""
    model = MODELS['small']
    run = Run(model, **REUSE_ALL, tau=-1.0)
    run.step(noise(model, 0))
    changed = noise(model, 1)
    out, dense = run.step(changed), run.dense(changed)
    assert float((out.actions - dense.actions).abs().max()) > 1e-4


# -- what is reused ----------------------------------------------------------------------------
def test_changed_patches_are_recomputed_and_static_ones_are_not(sized):
    model, views = sized
    run = Run(model, views, stages='1:1.0', **REUSE_ALL)
    frames = noise(model, 0, views)
    run.step(frames)
    patches = model.config.patches_per_view
    changed = repaint(frames, 0, 5)
    changed = repaint(changed, views - 1, patches - 1, 0)
    out = run.step(changed)
    assert out.kept.tolist() == [6, views * patches]


def test_patches_the_instruction_looked_at_are_recomputed(sized):
    model, views = sized
    run = Run(model, views, stages='1:1.0', **{**REUSE_ALL, 'relevant_k': 3})
    frames = noise(model, 0, views)
    run.step(frames)
    relevance = run.state.relevance.clone()
    out = run.step(frames)
    expected = []
    for view in range(views):
        best = relevance[view].argsort(descending=True)[:3] + 1 + view * relevance.shape[1]
        expected += sorted(best.tolist())
    assert out.kept.tolist() == expected


def test_relevance_is_the_attention_of_the_instruction_in_the_previous_pass():
    model = MODELS['small']
    run = Run(model)
    frames = noise(model, 0)
    run.step(frames)
    layer = run.selector.relevance_layer
    captured = {}
    attention = model.decoder.layers[layer].self_attn
    original = attention.attend
    attention.attend = lambda q, k, v, mask, live: (
        captured.update(q=q[0], k=k[0]),
        original(q, k, v, mask, live),
    )[1]
    run.dense(frames)
    del attention.attend
    rows = slice(34 + TEMPLATE, 34 + 11 - 1)  # prompt after BOS and boilerplate, without the blank
    probs = torch.softmax(captured['q'][:, rows] @ captured['k'].transpose(1, 2) / 8**0.5, -1)
    expected = probs.mean((0, 1))[1:33]
    torch.testing.assert_close(run.state.relevance.flatten(), expected, rtol=1e-4, atol=1e-7)


def test_relevance_by_threshold_protects_those_above_it():
    model = MODELS['small']
    run = Run(model, relevance='threshold', relevance_threshold=0.3, stages='1:1.0', **REUSE_ALL)
    frames = noise(model, 0)
    run.step(frames)
    r = run.state.relevance.flatten()
    scaled = (r - r.min()) / (r.max() - r.min())
    expected = (1 + (scaled >= 0.3).nonzero().flatten()).tolist()
    assert run.step(frames).kept.tolist() == expected
    assert 0 < len(expected) < 32


def test_the_most_similar_and_least_relevant_are_reused_first():
    model = MODELS['small']
    run = Run(model, tau=0.5, stages='1:0.5', **REUSE_ALL)
    frames = noise(model, 0)
    run.step(frames)
    changed = np.clip(frames.astype(int) + np.random.default_rng(1).integers(-9, 10, frames.shape),
                      0, 255).astype(np.uint8)  # fmt: skip
    relevance = run.state.relevance.flatten().double()
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    a, b = (to_patches(f, 14).flatten(0, 1).double() for f in (changed, frames))
    similarity = torch.nn.functional.cosine_similarity(a, b)
    merit = similarity * (1 - relevance)
    out = run.step(changed)
    expected = sorted((1 + merit.argsort()[:16]).tolist())
    assert out.kept.tolist() == expected


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 50),
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_stages_nest_keep_their_budget_and_protect(seed, shares):
    model = MODELS['small']
    stages = ','.join(f'{1 + i}:{share}' for i, share in enumerate(shares))
    run = Run(model, stages=stages, **{**REUSE_ALL, 'static_k': 11})
    frames = noise(model, seed)
    run.step(frames)
    rows = []
    handles = [
        layer.mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
        for layer in model.decoder.layers
    ]
    out = run.step(frames)
    for handle in handles:
        handle.remove()
    n, reused = out.layout.length, 0
    assert rows[0] == n
    for share, live in zip(shares, rows[1:], strict=True):
        reused = max(reused, int(np.floor(share * 22 + 1e-9)))
        assert live == n - reused
    assert out.kept.tolist() == sorted(set(out.kept.tolist()))
    tail = [0, *range(1 + out.layout.n_visual, n)]
    assert set(tail) <= set(out.position_ids.tolist())


# -- age, reference frame, refresh -------------------------------------------------------------
@pytest.mark.parametrize('max_age', [1, 2, 3])
def test_no_slot_older_than_the_limit_is_used(sized, max_age):
    model, views = sized
    run = Run(model, views, max_age=max_age, relevant_k=2)
    frames = noise(model, 0, views)
    written = {}
    oldest = 0
    for tick in range(14):
        frames = repaint(frames, 0, tick % 5, tick)
        out = run.step(frames)
        kept = set(out.kept.tolist())
        for token in out.layout.visual:
            if token in kept:
                written[token] = tick
            else:
                oldest = max(oldest, tick - written[token])
        assert run.stats['oldest'] <= max_age
        writer = run.state.writer.flatten().tolist()
        assert writer == [written[token] for token in out.layout.visual]
        age = run.state.age.flatten().tolist()
        assert age == [tick - written[token] for token in out.layout.visual]
    assert oldest == max_age


def drift(model, steps, rate):
    """Frames that each resemble the last one closely and move away from the first."""
    a, b = (f.astype(float) for f in (noise(model, 0), noise(model, 1)))
    angle = np.arccos(rate)
    for k in range(steps):
        mixed = np.cos(k * angle) * (a - 128) + np.sin(k * angle) * (b - 128)
        yield np.clip(mixed * 0.5 + 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(('reference', 'caught'), [('writer', True), ('previous', False)])
def test_slow_drift_is_caught_by_comparing_with_the_writers_frame(reference, caught):
    model = MODELS['small']
    options = {**REUSE_ALL, 'relevant_k': 0}
    run = Run(model, reference=reference, stages='1:1.0', tau=0.997, **options)
    recomputed = [len(run.step(f).kept) for f in drift(model, 16, 0.99)]
    assert recomputed[0] == 32
    assert (sum(recomputed[1:]) > 32) == caught
    if caught:
        assert float(run.state.age.max()) < 15


def test_the_reference_is_a_copy_of_an_earlier_frame():
    model = MODELS['small']
    run = Run(model, stages='1:1.0', **REUSE_ALL)
    frames = noise(model, 0)
    run.step(frames)
    frames[:] = 255 - frames  # the camera driver reuses its buffer
    out = run.step(frames)
    assert len(out.kept) == 32
    assert int(run.state.writer.min()) == run.state.inference == 1
    torch.testing.assert_close(run.state.ref_patch, to_patches(frames, 14), rtol=0, atol=0)


def test_nothing_to_reuse_is_a_dense_pass_without_exception(sized):
    model, views = sized
    run = Run(model, views)
    run.step(noise(model, 0, views))
    other = noise(model, 1, views)
    out = run.step(other)
    assert run.stats['state'] == 'refresh' and run.stats['candidates'] == 0
    assert torch.equal(out.actions, run.dense(other).actions)
    assert int(run.state.age.max()) == 0


def test_refresh_below_the_least_reusable_share():
    model = MODELS['small']
    frames = noise(model, 0)
    for share, state in ((0.25, 'warm'), (0.26, 'refresh')):
        run = Run(model, static_k=4, relevant_k=0, refresh_below=share)
        run.step(frames)
        run.step(frames)
        assert run.stats['state'] == state


def test_with_an_age_limit_of_one_warm_and_dense_passes_alternate_on_a_still_scene():
    model = MODELS['small']
    run = Run(model)
    states = []
    for _ in range(6):
        run.step(noise(model, 0))
        states.append(run.stats['state'])
    assert states == ['cold', 'warm', 'refresh', 'warm', 'refresh', 'warm']


def test_strict_refreshes_as_soon_as_a_slot_is_too_old():
    model = MODELS['small']
    lax, strict = (Run(model, refresh_below=0.0, strict=s, relevant_k=0) for s in (False, True))
    states = []
    for run in (lax, strict):
        for _ in range(3):
            run.step(noise(model, 0))
        states.append((run.stats['state'], int(run.state.age.max())))
    assert states == [('warm', 1), ('refresh', 0)]


# -- resets ------------------------------------------------------------------------------------
def test_a_reset_clears_every_field_and_the_next_pass_is_dense():
    model = MODELS['small']
    run = Run(model, **REUSE_ALL)
    frames = noise(model, 0)
    run.step(frames)
    run.step(frames)
    run.history.reset('reset')
    run.selector.reset()
    assert 'vla_cache' not in run.history.slots
    out = run.step(frames)
    assert run.stats['state'] == 'cold'
    assert torch.equal(out.actions, run.dense(frames).actions)
    assert int(run.state.writer.max()) == run.state.inference == 0


def test_another_prompt_length_forces_a_cold_pass():
    model = MODELS['small']
    run = Run(model, **REUSE_ALL)
    frames = noise(model, 0)
    run.step(frames)
    longer = torch.cat([run.ids, run.ids[:, -1:]], dim=1)
    out = run.step(frames, longer)
    assert run.stats['state'] == 'cold' and len(out.kept) == 32
    assert torch.equal(out.actions, run.dense(frames, longer).actions)


def test_a_pass_that_failed_is_not_built_upon():
    model = MODELS['small']
    run = Run(model, **REUSE_ALL)
    frames = noise(model, 0)
    run.step(frames)

    def fail(*_):
        raise RuntimeError('out of memory')

    handle = model.decoder.layers[2].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='memory'):
        run.step(noise(model, 1))
    handle.remove()
    out = run.step(frames)
    assert run.stats['state'] == 'cold' and len(out.kept) == 32


def test_without_frames_the_pass_is_dense_and_leaves_the_state_alone():
    model = MODELS['small']
    run = Run(model, **REUSE_ALL)
    frames = noise(model, 0)
    run.step(frames)
    before = run.state.inference
    out = run.dense(noise(model, 1), selector=run.selector)
    assert len(out.kept) == 32 and run.state.inference == before
    assert run.step(frames) and run.stats['state'] == 'warm'


def test_frames_and_cameras_must_agree():
    run = Run(MODELS['small'], views=2)
    run.selector.observe(Tick(noise(run.model, 0, views=1), TEMPLATE, run.history))
    with pytest.raises(ValueError, match='1 frames for 2 cameras'):
        run.dense(noise(run.model, 0), selector=run.selector)


def test_attention_stays_bidirectional_on_the_cached_stack():
    """A live patch sees EOS-side tokens, and live rows see reused slots."""
    model = MODELS['small']
    frames = noise(model, 0)
    changed = repaint(frames, 0, 0)
    outs = []
    for proprio in (0.0, 1.0):
        run = Run(model, stages='1:1.0', **REUSE_ALL)
        run.step(frames)
        states = []
        handle = model.decoder.layers[2].input_layernorm.register_forward_pre_hook(
            lambda _, args, states=states: states.append(args[0][0, 1])
        )
        out = run.step(changed, proprio=torch.full((1, 8), proprio))
        handle.remove()
        assert out.kept.tolist() == [1]
        outs.append(states[-1])
    assert float((outs[0] - outs[1]).abs().max()) > 1e-5


def test_state_stays_the_same_size_over_many_ticks():
    model = MODELS['small']
    run = Run(model)
    frames = noise(model, 0)
    sizes = set()
    for tick in range(60):
        frames = repaint(frames, tick % 2, tick % 16, tick)
        run.step(frames)
        state = run.state
        tensors = [v for v in vars(state).values() if isinstance(v, torch.Tensor)]
        tensors += [*state.kv.keys, *state.kv.values]
        sizes.add(sum(t.untyped_storage().nbytes() for t in tensors))
        assert len(run.history.slots) == 1
    assert len(sizes) == 1


# -- in the policy -----------------------------------------------------------------------------
@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('checkpoint'))


def test_interleaved_episodes_with_resets_equal_separate_ones(directory):
    def episode(policy, seeds):
        policy.reset()
        return [policy.step(observation(s, stamp=0.4 * i)) for i, s in enumerate(seeds)]

    together = VLAPolicy.from_pretrained(directory, pruning='vla_cache')
    a, b = (1, 1, 1, 2), (3, 1, 1)
    ours = [*episode(together, a), *episode(together, b), *episode(together, a)]
    alone = []
    for seeds in (a, b, a):
        alone += episode(VLAPolicy.from_pretrained(directory, pruning='vla_cache'), seeds)
    for mine, theirs in zip(ours, alone, strict=True):
        np.testing.assert_array_equal(mine.actions, theirs.actions)
        np.testing.assert_array_equal(mine.kept, theirs.kept)
    assert any(len(chunk.kept) < 32 for chunk in ours)


def test_new_instruction_mode_and_exception_start_cold(directory):
    policy = VLAPolicy.from_pretrained(directory, pruning='vla_cache')

    def state(stamp, instruction=INSTRUCTIONS[0]):
        return policy.step(observation(1, stamp, instruction)).stats['state']

    assert [state(0.0), state(0.4)] == ['cold', 'warm']
    assert [state(0.8, INSTRUCTIONS[1]), state(1.2, INSTRUCTIONS[1])] == ['cold', 'warm']
    with pytest.raises(ValueError):
        policy.step(replace(observation(1, 1.6), proprio=np.full(8, np.nan)))
    assert state(2.0) == 'cold'
    policy.set_pruning('vla_cache', max_age=2)
    assert [state(2.4), state(2.8), state(3.2)] == ['cold', 'warm', 'warm']


# -- options, schedules, the authors' sets -----------------------------------------------------
@pytest.mark.parametrize('pair', [0, 1])
@pytest.mark.parametrize(('k', 'name'), [(150, 'top150'), (130, 'single_top130')])
def test_static_sets_are_those_of_the_released_code(pair, k, name):
    with np.load(DATA) as arrays:
        frames = [arrays[f'{which}_{pair}'] for which in ('cur', 'prev')]
        expected = arrays[f'vlacache_{name}_t0996_{pair}']
    options = {'static_k': k, 'relevant_k': 0, 'max_age': 0}
    selector = make_selector('vla_cache', OpenVLAConfig(), **options)
    current, reference = (to_patches(f[None], 14) for f in frames)
    zeros = torch.zeros(1, 256)
    layout = TokenLayout(1, 256, 35, 56)
    kv = SlotCache(0, layout.length, 1, 2, torch.float32, 'cpu')
    state = CacheState(layout, kv, reference, reference, zeros.long(), zeros.long(), zeros)
    order, n = selector._candidates(state, current)
    assert order[:n].tolist() == expected.tolist()


def test_published_sizes_have_the_published_numbers():
    rule = make_selector('vla_cache', OpenVLAConfig()).rule
    assert (rule['static_k'], rule['relevant_k'], rule['max_age']) == (150, 100, 1)
    selector = make_selector('vla_cache', OpenVLAConfig(), preset='paper')
    assert (selector.rule['static_k'], selector.rule['schedule']) == (100, 'entropy')
    assert selector.relevance_layer == 15
    assert selector.stages == {2: 0.5, 6: 0.7, 9: 0.8, 11: 0.9}


def test_numbers_scale_with_depth_and_patches():
    selector = make_selector('vla_cache', tiny_config())  # 4 layers, 16 patches
    assert selector.stages == {1: 0.7, 2: 0.9}
    assert selector.relevance_layer == 2
    assert (selector.rule['static_k'], selector.rule['relevant_k']) == (9, 6)


def test_given_options_override_the_preset():
    selector = make_selector('vla_cache', BASE, preset='paper', static_k=0, max_age=3)
    assert (selector.rule['static_k'], selector.rule['max_age']) == (0, 3)
    assert selector.rule['relevance'] == 'threshold'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'preset': 'best'}, 'preset'),
        ({'relevance_layer': 4}, 'relevance_layer'),
        ({'stages': 'x'}, 'stages'),
        ({'stages': '4:0.5'}, 'layers 1..3'),
        ({'stages': '0:0.5'}, 'layers 1..3'),
        ({'stages': '1:1.5'}, 'shares 0..1'),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_selector('vla_cache', BASE, **options)


def test_entropy_schedule_of_the_paper_by_hand():
    shares = entropy_shares([4.0, 3.0, 3.6, 1.8], gain=1.0)
    # R = 1/4, -1/5, 1/2
    assert shares == pytest.approx({1: 0.25, 2: 0.05, 3: 0.55})
    assert entropy_shares([1.0, 2.0], 1.0) == {1: 0.0}
    assert entropy_shares([2.0, 1.0], 5.0) == {1: 1.0}


def test_entropy_schedule_of_the_release_by_hand():
    # 1 - normalised entropy: 0, 0.5, 0.25, 1; increases times 0.55: 0, 0.275, 0.25, 0.6625
    shares = released_shares([4.0, 3.0, 3.5, 2.0], {1: 0, 2: 0, 3: 0})
    assert shares == pytest.approx({1: 0.275, 2: 0.25, 3: 0.6625})
    assert released_shares([1.0, 1.0], {1: 0.9}) == {1: 0.0}


def released_schedule(maps):
    """Shares of all layers, restated from the released code; maps [heads, live rows, tokens]."""
    entropies = []
    for heads in maps:
        attention = heads.mean(0)
        attention = attention / (attention.sum(-1, keepdim=True) + 1e-10)
        entropies.append(-(attention * torch.log(attention + 1e-10)).sum(-1).mean())
    entropies = torch.stack(entropies)
    spread = entropies.max() - entropies.min() + 1e-10
    shares = (1 - (entropies - entropies.min()) / spread).tolist()
    for i in range(1, len(shares)):
        if shares[i] > shares[i - 1]:
            shares[i] = shares[i - 1] + 0.55 * (shares[i] - shares[i - 1])
    return shares


def test_the_released_preset_selects_as_the_released_code(sized, monkeypatch):
    model, views = sized
    run = Run(model, views, preset='released_oft', tau=0.9)
    patches, depth = model.config.patches_per_view, model.config.llama.n_layers
    static_k, relevant_k = (run.selector.rule[name] for name in ('static_k', 'relevant_k'))
    attention = type(model.decoder.layers[0].self_attn)
    original = attention.attend
    start = noise(model, 5, views)
    rng = np.random.default_rng(0)
    previous, maps = None, []
    for _ in range(4):
        change = rng.integers(-40, 41, start.shape) * rng.integers(0, 2, (1, *start.shape[1:3], 1))
        frames = np.clip(start.astype(int) + change, 0, 255).astype(np.uint8)
        captured = []

        def attend(self, q, k, v, mask, live, captured=captured):
            captured.append(torch.softmax(q[0] @ k[0].transpose(1, 2) / q.shape[-1] ** 0.5, -1))
            return original(self, q, k, v, mask, live)

        with monkeypatch.context() as patch:
            patch.setattr(attention, 'attend', attend)
            out = run.step(frames)
        rows = [m.shape[1] for m in captured]
        n = out.layout.length
        if previous is None:
            assert rows == [n] * depth
        else:
            shares, candidates = released_schedule(maps), []
            # Relevance is that of 34 rows from the robot state on; all of them are always live.
            first = out.layout.proprio - n
            text = slice(first, first + 34 if first + 34 < 0 else None)
            for view in range(views):
                a, b = (to_patches(f, 14)[view].double() for f in (frames, previous))
                similarity = torch.nn.functional.cosine_similarity(a, b)
                static = [i for i in similarity.argsort(descending=True).tolist()
                          if similarity[i] >= 0.9][:static_k]  # fmt: skip
                ids = out.layout.view(view)
                attended = maps[run.selector.relevance_layer].mean(0)[text, ids.start : ids.stop]
                relevant = attended.mean(0).argsort(descending=True)[:relevant_k].tolist()
                candidates += [ids.start + i for i in sorted({*static} - {*relevant})]
            reused, expected = 0, []
            for layer in range(depth):
                if layer in run.selector.stages and candidates:
                    reused = max(reused, max(1, int(shares[layer] * len(candidates))))
                expected.append(n - reused)
            assert rows == expected
            assert reused > 0
            kept = {*range(1, 1 + views * patches)} - {*candidates[:reused]}
            assert out.kept.tolist() == sorted(kept)
        previous, maps = frames, captured


def test_entropies_of_the_previous_pass_drive_the_schedule():
    model = MODELS['larger']
    run = Run(model, schedule='entropy', entropy_gain=100.0, **REUSE_ALL)
    frames = noise(model, 0)
    run.step(frames)
    run.state.entropy = torch.linspace(3.0, 2.0, 9)  # falls: everything is reused at once
    assert len(run.step(frames).kept) == 0
    run.state.entropy = torch.linspace(2.0, 3.0, 9)  # rises: nothing is
    assert len(run.step(frames).kept) == 72


def test_stage_text_and_published_stages_that_fall_together():
    assert parse_stages('1:0.5,3:0.25', 4) == {1: 0.5, 3: 0.25}
    assert parse_stages('', 32) == {2: 0.5, 6: 0.7, 9: 0.8, 11: 0.9}
    assert parse_stages('', 3) == {1: 0.8, 2: 0.9}
    assert parse_stages('', 1) == {}
