# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""EfficientVLA: skipped layers, the three kinds of patches, and whose importance is accepted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import UNNORM_KEY, inputs, observation, tiny_checkpoint, tiny_config, tiny_model

from vla_prune_ros.evaluation.calibrate import main, measure
from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import make_selector
from vla_prune_ros.pruning.budget import camera_quotas
from vla_prune_ros.pruning.efficient_vla import PRESETS, choose_patches
from vla_prune_ros.pruning.layer_importance import (
    ImportanceProbe,
    LayerImportance,
    file_beside,
)
from vla_prune_ros.vla.checkpoint import weights_digest
from vla_prune_ros.vla.config import LlamaConfig, OpenVLAConfig
from vla_prune_ros.vla.selection import TokenLayout

pytestmark = pytest.mark.filterwarnings('ignore:mode efficient_vla leaves out')
BASE = tiny_config()
LARGER = {
    'llama': LlamaConfig(48, 9, 3, 80, 256),
    'featurizer': replace(BASE.featurizer, image_size=84),
    'fused_featurizer': replace(BASE.fused_featurizer, image_size=84),
}
MODELS = {'small': tiny_model(), 'larger': tiny_model(**LARGER)}
ALL = {'preset': 'tokens_only', 'keep': 1000}


@pytest.fixture(params=[('small', 2), ('small', 1), ('larger', 2), ('larger', 1)], ids=str)
def sized(request):
    """Models of two sizes, two cameras and one, and inputs."""
    name, views = request.param
    model = MODELS[name]
    return model, inputs(model.config, views=views)


def run(model, data, **options):
    selector = make_selector('efficient_vla', model.config, **options)
    with torch.inference_mode():
        return model(*data, selector=selector), selector


def dense(model, data):
    with torch.inference_mode():
        return model(*data)


# -- layers ------------------------------------------------------------------------------------
def test_no_layer_skipped_and_every_patch_kept_equals_dense_bit_for_bit(sized):
    model, data = sized
    out, selector = run(model, data, **ALL)
    assert torch.equal(out.actions, dense(model, data).actions)
    assert len(out.kept) == out.layout.n_visual
    assert selector.stats()['layers_by'] == 'none'


@pytest.mark.parametrize('layer', [1, 2, 3])
def test_a_skipped_layer_equals_a_model_without_it(sized, layer):
    model, data = sized
    skipped, _ = run(model, data, **ALL, layers=str(layer))
    kept = [block for i, block in enumerate(model.decoder.layers) if i != layer]
    config = model.config
    shorter = type(model)(
        replace(config, llama=replace(config.llama, n_layers=config.llama.n_layers - 1))
    )
    shorter.load_state_dict(model.state_dict(), strict=False)
    shorter.decoder.layers = torch.nn.ModuleList(kept)
    assert torch.equal(skipped.actions, dense(shorter.eval(), data).actions)
    assert not torch.equal(skipped.actions, dense(model, data).actions)


def test_scores_come_from_the_nearest_earlier_layer_that_is_left():
    config = MODELS['larger'].config
    options = {'layers': '2,3', 'select_after': 4}
    assert make_selector('efficient_vla', config, **options).score_layer == 1
    assert make_selector('efficient_vla', config, select_after=4, layers='5').score_layer == 3
    out, selector = run(MODELS['larger'], inputs(config), **options, preset='paper')
    assert len(out.kept) == selector.kept_tokens(out.layout)


def test_first_layers_are_left_out_only_when_asked_for():
    config = MODELS['larger'].config  # 9 layers: 2 of 32 are 1 of 9
    with pytest.raises(ValueError, match='skip_early'):
        make_selector('efficient_vla', config, layers='0')
    with pytest.raises(ValueError, match='before the cut'):
        make_selector('efficient_vla', config, layers='0', skip_early=True)
    options = {'layers': '0', 'skip_early': True, 'select_after': 2}
    assert make_selector('efficient_vla', config, **options).score_layer == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'layers': '4'}, '0..3'),
        ({'layers': 'x'}, 'list'),
        ({'layers': '0,1,2,3', 'skip_early': True}, 'leaves no layer'),
        ({'skip': 4}, 'at most 3 of 4'),
        ({'select_after': 5}, 'select_after'),
        ({'select_after': 0}, 'select_after'),
        ({'key_tokens': 0}, 'key_tokens'),
        ({'keep': 0}, 'keep'),
        ({'preset': 'fast'}, 'preset'),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_selector('efficient_vla', BASE, **options)


# -- patches -----------------------------------------------------------------------------------
@settings(deadline=None, max_examples=80)
@given(
    n=st.integers(1, 40),
    data=st.data(),
    key=st.integers(1, 8),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_counts_are_exact_parts_disjoint_and_diversity_by_brute_force(n, data, key, share, seed):
    keep = data.draw(st.integers(0, n))
    g = torch.Generator().manual_seed(seed)
    scores, states = torch.rand(n, generator=g), torch.randn(n, 8, generator=g)
    parts = [p.tolist() for p in choose_patches(scores, states, keep, key, share)]
    key = min(key, keep)
    n_task = math.floor(share * (keep - key))
    assert [len(p) for p in parts] == [key, n_task, keep - key - n_task]
    assert len({i for p in parts for i in p}) == keep
    if keep == 0:
        return
    ranked = sorted(range(n), key=lambda i: -scores[i])
    assert parts[0] == ranked[:key]
    assert parts[1] == ranked[key : key + n_task]

    def distance(i):
        cosine = torch.nn.functional.cosine_similarity
        return 1 - max(float(cosine(states[i], states[k], dim=0)) for k in parts[0])

    others = sorted(ranked[key + n_task :], key=distance, reverse=True)
    chosen = [distance(i) for i in parts[2]]
    assert chosen == pytest.approx([distance(i) for i in others[: len(chosen)]], abs=1e-5)


def test_an_odd_remainder_goes_to_diversity():
    parts = choose_patches(torch.rand(12), torch.randn(12, 4), keep=9, key=2, task_share=0.5)
    assert [len(p) for p in parts] == [2, 3, 4]


@settings(deadline=None, max_examples=80)
@given(
    views=st.integers(1, 4),
    patches=st.integers(1, 30),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_quotas_add_up_and_no_camera_gets_more_than_it_has(views, patches, share, data):
    total = data.draw(st.integers(1, views * patches))
    counts = camera_quotas(total, views, patches, share)
    assert sum(counts) == total
    assert all(0 <= count <= patches for count in counts)
    if views == 2 and share and math.floor(share * total + 0.5) <= patches:
        wanted = math.floor(share * total + 0.5)
        assert counts[0] == max(wanted, total - patches)
    if share == 0:
        assert max(counts) - min(counts) <= 1


def planted(model, data, **options):
    """Run a selection whose scores and states are known."""
    layout = dense(model, data).layout
    selector = make_selector('efficient_vla', model.config, **options)
    selector.begin(layout, torch.zeros(layout.length, 1))
    g = torch.Generator().manual_seed(3)
    given = torch.rand(layout.n_visual, generator=g)

    class Scores:
        def given(self):
            return given

    class State:
        hidden = torch.randn(layout.length, 6, generator=g)
        scores = {selector.score_layer: Scores()}  # noqa: RUF012

    State.layout = layout
    return selector.select(selector.select_after, State), given, layout, selector


def test_each_camera_fills_its_quota_with_its_own_best(sized):
    model, data = sized
    kept, scores, layout, selector = planted(model, data, preset='tokens_only', key_tokens=2)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert {0, *range(layout.proprio, layout.length)} <= set(kept.tolist())
    total = selector.kept_tokens(layout)
    for view in range(layout.n_views):
        ids = [i for i in layout.view(view) if i in kept.tolist()]
        assert len(ids) == camera_quotas(total, layout.n_views, layout.patches_per_view)[view]
        best = sorted(layout.view(view), key=lambda i: -scores[i - 1])[:2]
        assert set(best) <= set(ids)
    parts = {k: selector.stats()[k] for k in ('key', 'task', 'diverse')}
    assert sum(parts.values()) == total and parts['key'] == 2 * layout.n_views


def test_joint_choice_may_favour_a_camera():
    model = MODELS['small']
    data = inputs(model.config)
    options = {'preset': 'tokens_only', 'keep': 8, 'task_share': 1.0}
    kept, scores, layout, _ = planted(model, data, per_camera=False, **options)
    best = 1 + scores.argsort(descending=True)[:8]
    assert kept.tolist() == layout.keep(best).tolist()
    quota, scores, layout, _ = planted(model, data, quota=0.75, **options)
    assert sum(i in layout.view(0) for i in quota.tolist()) == 6


def test_survivors_keep_their_positions_and_the_readout_its_tail(sized):
    model, data = sized
    out, selector = run(model, data, preset='tokens_only', keep=5)
    layout = out.layout
    rows = out.position_ids.tolist()
    assert rows == [0, *out.kept.tolist(), *range(layout.proprio, layout.length)]
    assert len(out.kept) == selector.kept_tokens(layout) == 5
    assert out.kept.tolist() == sorted(set(out.kept.tolist()))


def test_scores_are_the_attention_from_patches_to_the_words(sized):
    """Against attention maps of that layer written out, in float64."""
    model, data = sized
    captured = {}
    selector = make_selector('efficient_vla', model.config, preset='tokens_only')
    attention = model.decoder.layers[selector.score_layer].self_attn
    original = attention.attend
    attention.attend = lambda q, k, v, mask, live: (
        captured.update(q=q[0].double(), k=k[0].double()),
        original(q, k, v, mask, live),
    )[1]
    select = selector.select

    def spy(point, tokens):
        captured['scores'] = tokens.scores[selector.score_layer].given()
        return select(point, tokens)

    selector.select = spy
    with torch.inference_mode():
        layout = model(*data, selector=selector).layout
    del attention.attend
    q, k = captured['q'], captured['k']
    maps = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1).mean(0)
    text = slice(layout.text.start, layout.text.stop)
    expected = maps[1 : 1 + layout.n_visual, text].sum(-1).float()
    torch.testing.assert_close(captured['scores'], expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_carried_from_tick_to_tick():
    model = MODELS['small']
    a, b = inputs(model.config, 0), inputs(model.config, 1)
    selector = make_selector('efficient_vla', model.config)
    with torch.inference_mode():
        model(*a, selector=selector)
        second = model(*b, selector=selector)
    assert torch.equal(second.actions, run(model, b)[0].actions)


# -- presets and scaling -----------------------------------------------------------------------
@pytest.mark.parametrize('preset', PRESETS)
def test_presets_at_published_sizes(preset):
    selector = make_selector('efficient_vla', OpenVLAConfig(), preset=preset)
    layout = TokenLayout(2, 256, 35, 56)
    assert (len(selector.skipped), selector.kept_tokens(layout)) == PRESETS[preset]
    assert (selector.select_after, selector.key_tokens) == (2, 4)
    assert not {0, 1, 31} & selector.skipped


def test_presets_scale_with_depth_and_patches():
    selector = make_selector('efficient_vla', BASE)  # 4 layers, 16 patches per view
    assert selector.skipped == frozenset() and selector.select_after == 1  # 4 of 32
    assert make_selector('efficient_vla', BASE, preset='paper').skipped == {2}  # 10 of 32
    assert selector.kept_tokens(TokenLayout(2, 16, 12, 56)) == 7
    assert selector.kept_tokens(TokenLayout(1, 16, 12, 56)) == 4


def test_given_counts_override_the_preset():
    selector = make_selector('efficient_vla', BASE, preset='paper', skip=0, keep=9)
    assert selector.skipped == frozenset()
    assert selector.kept_tokens(TokenLayout(2, 16, 12, 56)) == 9


# -- importance --------------------------------------------------------------------------------
def test_importance_equals_a_direct_computation(sized):
    model, data = sized
    probe = ImportanceProbe(model.config.llama.n_layers)
    sums = {'all': 0.0, 'action': 0.0}
    for seed in (0, 1):
        pixels, ids, proprio = inputs(model.config, seed, views=data[0].shape[1] // 6)
        states, handles = [], []
        for layer in model.decoder.layers:
            handles.append(
                layer.input_layernorm.register_forward_pre_hook(
                    lambda _, args, states=states: states.append(args[0][0])
                )
            )
        with torch.inference_mode():
            out = model(pixels, ids, proprio, selector=probe)
            states.append(model.decoder(out.embeddings).hidden[0])
        for handle in handles:
            handle.remove()
        states = [*states[: len(handles)], states[-1]]
        cosine = torch.nn.functional.cosine_similarity
        each = torch.stack(
            [cosine(a.double(), b.double(), dim=-1) for a, b in zip(states, states[1:])]  # noqa: B905, RUF007
        )
        first = out.layout.text[-1]
        sums['all'] += each.mean(1) / 2
        sums['action'] += each[:, first : first + 56].mean(1) / 2
    measured = probe.importance()
    for name, mean in sums.items():
        np.testing.assert_allclose(measured[name], 1 - mean, rtol=0, atol=1e-5)
    assert probe.passes == 2


def test_a_layer_that_does_nothing_has_no_importance():
    model = tiny_model()
    with torch.no_grad():
        for linear in (model.decoder.layers[2].self_attn.o_proj,
                       model.decoder.layers[2].mlp.down_proj):  # fmt: skip
            linear.weight.zero_()
    probe = ImportanceProbe(4)
    with torch.inference_mode():
        model(*inputs(model.config), selector=probe)
    for values in probe.importance().values():
        assert values[2] == pytest.approx(0.0, abs=1e-6)
        assert min(values[:2] + values[3:]) > 1e-3


def test_measuring_changes_nothing():
    model = MODELS['small']
    data = inputs(model.config)
    with torch.inference_mode():
        measured = model(*data, selector=ImportanceProbe(4))
    assert torch.equal(measured.actions, dense(model, data).actions)


@pytest.fixture
def directory(tmp_path):
    return tiny_checkpoint(tmp_path / 'policy')


def importance(directory, values=(0.9, 0.5, 0.3, 0.1), **changes):
    entry = LayerImportance(
        weights_digest(directory), UNNORM_KEY, 10, {'all': values, 'action': values[::-1]}
    )
    return replace(entry, **changes)


def test_the_file_beside_the_checkpoint_decides(directory):
    importance(directory).save(file_beside(directory))
    assert file_beside(directory).parent == directory.parent
    policy = VLAPolicy.from_pretrained(directory, pruning='efficient_vla', skip=1)
    stats = policy.step(observation()).stats
    assert (stats['skipped_layers'], stats['layers_by']) == ('3', 'calibration')
    policy.set_pruning('efficient_vla', skip=1, variant='action')
    assert policy.step(observation(stamp=0.4)).stats['skipped_layers'] == '1'  # not layer 0
    policy.set_pruning('efficient_vla', skip=2)
    assert policy.step(observation(stamp=0.8)).stats['skipped_layers'] == '2,3'
    assert 'calibrate' not in policy.info()['note']


def test_without_a_file_a_rule_decides_and_says_so_with_the_command(directory):
    with pytest.warns(UserWarning, match=f'vla_prune_ros calibrate {directory}'):
        policy = VLAPolicy.from_pretrained(directory, pruning='efficient_vla', skip=1)
    stats = policy.step(observation()).stats
    assert (stats['skipped_layers'], stats['layers_by']) == ('2', 'rule')
    assert f'calibrate {directory}' in policy.info()['note']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'sha256': '0' * 64}, 'other weights'),
        ({'suite': 'libero_goal_no_noops'}, "suite 'libero_goal_no_noops'"),
    ],
)
def test_importance_of_other_weights_or_suites_is_refused_unless_forced(
    directory, changes, message
):
    path = directory.parent / 'other.json'
    importance(directory, **changes).save(path)
    options = {'calibration': str(path), 'skip': 1}
    with pytest.raises(ValueError, match=message) as caught:
        VLAPolicy.from_pretrained(directory, pruning='efficient_vla', **options)
    assert f'calibrate {directory}' in str(caught.value) and 'force=true' in str(caught.value)
    policy = VLAPolicy.from_pretrained(directory, pruning='efficient_vla', force=True, **options)
    assert policy.step(observation()).stats['layers_by'] == 'calibration'


def test_a_suite_that_was_not_measured_is_refused(directory):
    importance(directory).save(file_beside(directory))
    options = {'pruning': 'efficient_vla', 'suite': 'other', 'skip': 1}
    with pytest.raises(ValueError, match='suite'):
        VLAPolicy.from_pretrained(directory, **options)


def test_changed_weights_no_longer_match_their_old_measurement(directory, tmp_path):
    importance(directory).save(file_beside(directory))
    again = tiny_checkpoint(tmp_path / 'other', seed=1)
    for file in directory.iterdir():
        (directory / file.name).write_bytes((again / file.name).read_bytes())
    with pytest.raises(ValueError, match='other weights'):
        VLAPolicy.from_pretrained(directory, pruning='efficient_vla', skip=1)


def test_weights_without_a_directory_need_force(tmp_path):
    path = tmp_path / 'i.json'
    LayerImportance('', UNNORM_KEY, 1, {'all': (1, 2, 3, 4), 'action': (1, 2, 3, 4)}).save(path)
    with pytest.raises(ValueError, match='not read from a directory'):
        make_selector('efficient_vla', BASE, skip=1, calibration=str(path))
    selector = make_selector('efficient_vla', BASE, skip=1, calibration=str(path), force=True)
    assert selector.skipped == {1}


def test_broken_missing_or_misfitting_files_are_named(directory, tmp_path):
    def build(path, **options):
        return make_selector('efficient_vla', BASE, skip=1, calibration=str(path), **options)

    with pytest.raises(ValueError, match=r'no file .*vla_prune_ros calibrate'):
        build(tmp_path / 'missing.json')
    broken = tmp_path / 'broken.json'
    broken.write_text('{"sha256": 1}')
    with pytest.raises(ValueError, match=r'broken\.json'):
        build(broken)
    deep = tmp_path / 'deep.json'
    importance(directory, importance={'all': (1.0,) * 6, 'action': (1.0,) * 6}).save(deep)
    with pytest.raises(ValueError, match='6 layers, the model has 4'):
        build(deep, force=True)


# -- the verb ----------------------------------------------------------------------------------
def test_the_verb_measures_and_the_mode_accepts_it(directory, capsys):
    command = [str(directory), '--frames', '17', '--max-steps', '24', '--quiet']
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    assert main(command) == 0
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before
    path = file_beside(directory)
    assert str(path) in capsys.readouterr().out
    data = json.loads(path.read_text())
    assert data['frames'] == 17 and data['suite'] == UNNORM_KEY
    assert data['sha256'] == weights_digest(directory)
    assert len(data['importance']['all']) == len(data['importance']['action']) == 4
    policy = VLAPolicy.from_pretrained(directory, pruning='efficient_vla', skip=1)
    stats = policy.step(observation()).stats
    allowed = [i for i in data['least_important_first']['all'] if i > 0]
    assert stats['skipped_layers'] == str(allowed[0])


def test_measuring_by_observation_equals_the_probe_on_the_same_tensors(directory):
    policy = VLAPolicy.from_pretrained(directory)
    measured = measure(policy, [observation(0), observation(1)])
    assert measured.frames == 2
    assert LayerImportance.load(_saved(measured, directory)).importance == measured.importance
    other = measure(policy, [observation(0)])
    assert other.importance != measured.importance


def _saved(measured, directory):
    path = directory.parent / 'measured.json'
    measured.save(path)
    return path


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['--frames', '3'], 'tasks'), (['--out', '{}/x.json'], 'stays as it is')],
)
def test_the_verb_refuses_what_makes_no_sense(directory, capsys, arguments, message):
    arguments = [a.format(directory) for a in arguments]
    assert main([str(directory), '--quiet', *arguments]) == 1
    assert message in capsys.readouterr().err
