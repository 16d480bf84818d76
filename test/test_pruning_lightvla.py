# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LightVLA: the authors' numbers, selection rule, training gradients, a fixed number."""

import math
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import inputs, observation, tiny_checkpoint, tiny_config, tiny_model

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import make_selector
from vla_prune_ros.pruning.lightvla import (
    draw_noise,
    noise_scale,
    patch_scores,
    select_for_training,
    straight_through,
    unit,
)
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.config import LlamaConfig
from vla_prune_ros.vla.processor import pixel_values
from vla_prune_ros.vla.selection import TokenLayout, TokenState

DATA = Path(__file__).parent / 'data'
CASES = (0, 1, 2)
READOUTS = {'training': -58, 'released': -56}
LARGER = {'llama': LlamaConfig(48, 6, 3, 80, 256), 'chunk_len': 4}
pytestmark = pytest.mark.filterwarnings('ignore:mode lightvla runs on weights')


def load(folder, name):
    with np.load(DATA / folder / f'{name}.npz') as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def golden_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp('golden')
    with zipfile.ZipFile(DATA / 'oft_tiny' / 'checkpoint.zip') as archive:
        archive.extractall(directory)
    return OpenVLAOFT.from_pretrained(directory)


def run(model, data, **options):
    selector = make_selector('lightvla', model.config, **options)
    with torch.inference_mode():
        return model(*data, selector=selector), selector


def golden_inputs(number):
    case = load('oft_tiny', f'case_{number}')
    ids = torch.from_numpy(np.append(case['prompt_ids'], 29871))[None]
    return pixel_values(case['frames']), ids, torch.from_numpy(case['state_norm']).float()[None]


def golden_embeddings(number=0):
    return torch.from_numpy(load('oft_tiny', f'case_{number}')['embeddings'])


def relative_to_largest(ours, reference):
    return (ours - reference).abs().max() / reference.abs().max()


# -- the authors' numbers ----------------------------------------------------------------------
@pytest.mark.parametrize('number', CASES)
def test_scores_and_kept_sets_are_those_of_the_released_code(golden_model, number):
    reference, x = load('lightvla_tiny', f'case_{number}'), golden_embeddings(number)
    scores = patch_scores(x[1:513], x[513:])
    np.testing.assert_array_equal(scores.argmax(-1), reference['score_argmax'])
    np.testing.assert_allclose(scores[::32], reference['score_rows'], rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores.amax(-1), reference['score_top1'], rtol=0, atol=1e-4)
    with torch.inference_mode():
        out = golden_model(
            *golden_inputs(number), selector=make_selector('lightvla', golden_model.config)
        )
    np.testing.assert_array_equal(out.kept - 1, reference['kept_indices'])
    np.testing.assert_array_equal(out.position_ids, reference['position_ids'])


@pytest.mark.parametrize('number', CASES)
@pytest.mark.parametrize(('name', 'start'), READOUTS.items())
def test_both_readouts_and_actions_are_those_of_the_released_code(
    golden_model, number, name, start
):
    reference = load('lightvla_tiny', f'case_{number}')
    selector = make_selector('lightvla', golden_model.config)
    with torch.inference_mode():
        out = golden_model(*golden_inputs(number), selector=selector, readout_start=start)
    np.testing.assert_allclose(out.readout[0], reference[f'readout_{name}'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        out.actions[0], reference[f'actions_norm_{name}'], rtol=0, atol=1e-5
    )


def test_states_between_layers_are_those_of_the_released_code(golden_model):
    reference = load('lightvla_tiny', 'case_0')['hidden_states']
    states = []
    handles = [
        layer.input_layernorm.register_forward_pre_hook(lambda _, args: states.append(args[0][0]))
        for layer in golden_model.decoder.layers
    ]
    run(golden_model, golden_inputs(0))
    for handle in handles:
        handle.remove()
    assert len(states) == len(reference)
    for ours, theirs in zip(states, reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('name', 'scale'), [('s1', 1.0), ('s025', 0.25), ('none', 0.0)])
def test_training_selection_and_its_gradient_are_those_of_the_released_code(name, scale):
    reference = load('lightvla_tiny', 'train_pruner')
    x = golden_embeddings()[None].requires_grad_()
    layout = TokenLayout(2, 256, x.shape[1] - 512 - 58, 56)
    noise = torch.from_numpy(reference['noise_u8']).float()[None] / 256 * scale
    selected, positions = select_for_training(x, layout, noise=noise)
    np.testing.assert_array_equal(positions[0], reference[f'{name}_position_ids'])
    np.testing.assert_array_equal(positions[0, 1:513] - 1, reference[f'{name}_index'])
    loss = selected[0, 1:513].square().sum()
    np.testing.assert_allclose(loss.item(), reference[f'{name}_loss'], rtol=1e-5)
    loss.backward()
    expected = torch.from_numpy(reference[f'{name}_grad_tokens'])
    assert float(x.grad[0, 0].abs().max()) == 0.0
    groups = [layout.visual, range(513, 514), layout.text, layout.placeholders]
    for group in [*groups, range(layout.eos, layout.length)]:
        rows = slice(group.start, group.stop)
        assert relative_to_largest(x.grad[0, rows], expected[rows]) < 1e-5
    if name == 's1':
        np.testing.assert_allclose(
            selected[0, 1:513].detach(), reference['s1_patches'], rtol=0, atol=1e-5
        )


def test_a_training_pass_has_the_loss_and_gradients_of_the_released_code(golden_model):
    reference = load('lightvla_tiny', 'train_forward')
    noise = torch.from_numpy(load('lightvla_tiny', 'train_pruner')['noise_u8']).float() / 256
    noise = noise[None] * float(reference['noise_scale'])
    model, (pixels, ids, state) = golden_model, golden_inputs(1)
    sequence = model.assemble(model.encode_images(pixels), ids, state)
    x, positions = select_for_training(sequence.embeddings, sequence.layout, noise=noise)
    np.testing.assert_array_equal(positions[0, 1:513] - 1, reference['index'])
    hidden = model.decoder(x, position_ids=positions).hidden
    actions = model.action_head(model.read_out(hidden))
    np.testing.assert_allclose(
        model.decoder.norm(hidden)[0].detach(), reference['last_hidden'], rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(actions[0].detach(), reference['actions_norm'], rtol=0, atol=3e-5)
    loss = (actions[0] - torch.from_numpy(reference['target'])).abs().mean()
    assert loss.item() == pytest.approx(float(reference['l1_loss']), abs=1e-6)
    loss.backward()
    parameters = dict(model.named_parameters())
    for name in reference['grad_norms_names']:
        ours = parameters[str(name).replace('language_model.model.', 'decoder.')].grad
        assert relative_to_largest(ours, torch.from_numpy(reference[f'grad:{name}'])) < 1e-4, name
    model.zero_grad(set_to_none=True)


# -- the rule ----------------------------------------------------------------------------------
@pytest.fixture(scope='module', params=[({}, 2), ({}, 1), (LARGER, 2), (LARGER, 1)])
def sized(request):
    """Models of two sizes with two cameras and one, and inputs for them."""
    changes, views = request.param
    model = tiny_model(**changes)
    return model, inputs(model.config, views=views)


def test_kept_are_the_columns_with_a_row_maximum_computed_by_hand(sized):
    model, data = sized
    out, selector = run(model, data)
    layout, x = out.layout, out.embeddings[0].double()
    n = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    patches, task = n[1 : 1 + layout.n_visual], n[1 + layout.n_visual :]
    width = math.sqrt(x.shape[-1])
    wanted = torch.softmax(patches @ task.T / width, -1) @ task
    wanted = wanted / (wanted.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    choice = (wanted @ patches.T / width).argmax(-1)
    assert out.kept.tolist() == sorted({1 + i for i in choice.tolist()})
    assert selector.stats()['kept'] == len(out.kept)


def test_survivors_enter_untouched_at_their_own_positions(sized):
    model, data = sized
    selector = make_selector('lightvla', model.config)
    seen = {}
    first = model.decoder.layers[0]
    handle = first.input_layernorm.register_forward_pre_hook(lambda _, a: seen.update(x=a[0]))
    with torch.inference_mode():
        out = model(*data, selector=selector)
    handle.remove()
    layout = out.layout
    assert torch.equal(seen['x'][0], out.embeddings[0, out.position_ids])
    rows = out.position_ids.tolist()
    assert rows == [0, *out.kept.tolist(), *range(1 + layout.n_visual, layout.length)]
    assert rows == sorted(set(rows))


def test_patches_that_choose_themselves_all_stay(sized):
    """Each patch has a direction of its own, and one task token repeats it."""
    model, data = sized
    layout = model(*data).layout
    x = torch.zeros(layout.length, layout.n_visual)
    x[1 : 1 + layout.n_visual] = torch.eye(layout.n_visual) * 3
    x[layout.proprio : layout.proprio + layout.n_visual] = torch.eye(layout.n_visual)
    state = TokenState(layout, torch.arange(layout.length), x, {})
    kept = make_selector('lightvla', model.config).select(0, state)
    assert torch.equal(kept, state.ids)


def test_the_lowest_patch_wins_among_equal_scores():
    layout = TokenLayout(2, 16, 12, 56)
    x = torch.ones(layout.length, 32)
    state = TokenState(layout, torch.arange(layout.length), x, {})
    kept = make_selector('lightvla', tiny_config()).select(0, state)
    assert kept.tolist() == layout.keep(torch.tensor([1])).tolist()


def test_zero_placeholders_change_no_score():
    g = torch.Generator().manual_seed(0)
    patches, task = (torch.randn(n, 32, generator=g) for n in (20, 6))
    with_zeros = torch.cat([task, torch.zeros(56, 32)])
    torch.testing.assert_close(
        patch_scores(patches, with_zeros), patch_scores(patches, task), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    ('dtype', 'atol'), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=['float32', 'bfloat16']
)
def test_scores_are_cosines_times_the_root_of_the_width(dtype, atol):
    g = torch.Generator().manual_seed(1)
    patches, task = (torch.randn(n, 64, generator=g) for n in (30, 9))
    p, t = unit(patches), unit(task)
    q = torch.softmax(p @ t.T / 8, -1) @ t
    cosine = torch.nn.functional.cosine_similarity(q[:, None], p[None], dim=-1)
    scores = patch_scores(patches.to(dtype), task.to(dtype))
    assert scores.dtype == dtype
    torch.testing.assert_close(scores.float(), 8 * cosine, rtol=0.02, atol=atol)


@pytest.mark.parametrize('seed', range(6))
def test_bfloat16_sets_are_those_of_attention_that_rounds_once(seed):
    """Logits and weights stay in float32; rounding them as well gave other sets mostly."""
    g = torch.Generator().manual_seed(seed)
    layout = TokenLayout(2, 128, 20, 56)
    x = torch.randn(layout.length, 64, generator=g).bfloat16()
    x[layout.placeholders.start : layout.placeholders.stop] = 0
    kept = make_selector('lightvla', tiny_config()).select(
        0, TokenState(layout, torch.arange(layout.length), x, {})
    )

    def norm(rows):
        rows = rows.float()
        return (rows / (rows.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()).bfloat16()

    patches, task = norm(x[1 : layout.proprio]), norm(x[layout.proprio :])
    weights = torch.exp(patches.float() @ task.float().T / 8)
    asked = norm(((weights / weights.sum(-1, keepdim=True)) @ task.float()).bfloat16())
    chosen = ((asked @ patches.T) / 8).argmax(-1).unique()
    assert kept.tolist() == layout.keep(1 + chosen).tolist()


def test_padded_task_tokens_are_not_seen():
    g = torch.Generator().manual_seed(2)
    patches, task = torch.randn(2, 12, 32, generator=g), torch.randn(2, 9, 32, generator=g)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    scores = patch_scores(patches, task, mask)
    torch.testing.assert_close(scores[0], patch_scores(patches[0], task[0]))
    torch.testing.assert_close(scores[1], patch_scores(patches[1], task[1, :5]))


def test_float32_scores_of_half_precision_weights_are_an_option():
    x = torch.randn(70, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    layout = TokenLayout(1, 16, 70 - 16 - 58, 56)
    state = TokenState(layout, torch.arange(70), x, {})
    wide = make_selector('lightvla', tiny_config(), precision='float32').select(0, state)
    reference = make_selector('lightvla', tiny_config()).select(
        0, TokenState(layout, state.ids, x.float(), {})
    )
    assert wide.tolist() == reference.tolist()


@pytest.mark.parametrize('readout_start', [-58, -57, -56])
@pytest.mark.parametrize('length', [3, 12, 21])
def test_readout_takes_the_same_tokens_however_many_patches_stay(readout_start, length):
    model = tiny_model()
    out, _ = run(model, inputs(model.config, length=length))
    ids = out.position_ids.tolist()
    marked = torch.as_tensor(ids, dtype=torch.float32)[None, :, None].expand(-1, -1, 32)
    rows = model.read_out(marked, readout_start)
    first = out.layout.length + readout_start
    norm = model.decoder.norm
    expected = norm(torch.arange(first, first + 56.0)[None, :, None].expand(-1, -1, 32))
    assert torch.equal(rows, expected)
    tail = {-58: out.layout.text[-1], -57: out.layout.placeholders[0]}
    assert first == tail.get(readout_start, out.layout.placeholders[1])


# -- training ----------------------------------------------------------------------------------
def test_forward_value_is_the_hard_choice_and_gradients_reach_patches_and_task():
    g = torch.Generator().manual_seed(4)
    patches = torch.randn(2, 10, 16, generator=g, requires_grad=True)
    task = torch.randn(2, 7, 16, generator=g, requires_grad=True)
    noise = draw_noise((2, 10, 10), generator=g)
    selected, chosen = straight_through(patches, task, noise=noise)
    expected = patches.gather(1, chosen[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(selected, expected, rtol=0, atol=1e-6)
    assert torch.equal(chosen, (patch_scores(patches, task) + noise).argmax(-1))
    (selected * torch.randn(2, 10, 16, generator=g)).sum().backward()
    assert float(task.grad.abs().amin(-1).min()) > 0
    assert float(patches.grad.abs().amin(-1).min()) > 0


def test_noise_starts_at_one_and_ends_at_zero_in_a_line():
    assert [noise_scale(step, 200) for step in (0, 50, 100, 200)] == [1.0, 0.75, 0.5, 0.0]
    assert noise_scale(300, 200) == 0.0


def test_uniform_and_gumbel_noise_have_their_distributions():
    g = torch.Generator().manual_seed(5)
    uniform = draw_noise((400, 400), 'uniform', g)
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    gumbel = draw_noise((400, 400), 'gumbel', g)
    assert bool(gumbel.isfinite().all())
    assert float(gumbel.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(gumbel.var()) == pytest.approx(math.pi**2 / 6, abs=0.05)
    with pytest.raises(ValueError, match='normal'):
        draw_noise((2, 2), 'normal', g)


def test_duplicates_stay_in_training_each_at_its_own_patch():
    model = tiny_model()
    pixels, ids, proprio = inputs(model.config)
    sequence = model.assemble(model.encode_images(pixels), ids, proprio)
    x, positions = select_for_training(sequence.embeddings, sequence.layout)
    layout = sequence.layout
    assert x.shape == sequence.embeddings.shape
    chosen = positions[0, 1 : 1 + layout.n_visual]
    assert len(set(chosen.tolist())) < layout.n_visual
    torch.testing.assert_close(
        x[0, 1 : 1 + layout.n_visual], sequence.embeddings[0, chosen], rtol=0, atol=1e-6
    )
    rest = torch.arange(1 + layout.n_visual, layout.length)
    assert torch.equal(positions[0, 1 + layout.n_visual :], rest)
    assert positions[0, 0] == 0


def test_a_padded_training_batch_equals_single_passes():
    model = tiny_model()
    pixels, ids, proprio = inputs(model.config, batch=2, length=12)
    mask = torch.ones(2, 12)
    mask[1, 8:] = 0
    noise = draw_noise((2, 32, 32), generator=torch.Generator().manual_seed(6))

    def readout(rows, ids, mask):
        visual = model.encode_images(pixels[rows])
        sequence = model.assemble(visual, ids, proprio[rows], mask)
        x, positions = select_for_training(
            sequence.embeddings, sequence.layout, sequence.key_mask, noise[rows]
        )
        hidden = model.decoder(x, position_ids=positions, key_mask=sequence.key_mask).hidden
        return model.read_out(hidden, key_mask=sequence.key_mask)

    with torch.no_grad():
        both = readout(slice(0, 2), ids, mask)
        first = readout(slice(0, 1), ids[:1], None)
        second = readout(slice(1, 2), ids[1:, :8], None)
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=0, atol=1e-5)


# -- a fixed number ----------------------------------------------------------------------------
@pytest.mark.parametrize('keep', [1, 5, 17, 1000])
def test_keep_takes_exactly_so_many_patches(sized, keep):
    model, data = sized
    out, selector = run(model, data, keep=keep)
    wanted = min(keep, out.layout.n_visual)
    assert len(out.kept) == wanted == selector.stats()['kept']
    assert (out.kept.diff() > 0).all()


def test_what_was_chosen_comes_before_what_fills_up(sized):
    model, data = sized
    chosen = set(run(model, data)[0].kept.tolist())
    fewer = set(run(model, data, keep=len(chosen) - 1)[0].kept.tolist())
    more = set(run(model, data, keep=len(chosen) + 1)[0].kept.tolist())
    assert fewer < chosen < more


def test_keep_of_the_chosen_number_is_the_rule_itself(sized):
    model, data = sized
    rule, _ = run(model, data)
    fixed, _ = run(model, data, keep=len(rule.kept))
    assert torch.equal(fixed.actions, rule.actions)


def test_a_fixed_number_is_noted_and_does_not_make_weights_untrained():
    config = tiny_config(pruning_trained='lightvla')
    selector = make_selector('lightvla', config, keep=4)
    assert 'fixed at 4' in selector.note
    assert selector.stats()['trained'] is True


# -- what a checkpoint was trained for ----------------------------------------------------------
def test_untrained_weights_work_with_one_warning_and_a_note(tmp_path):
    directory = tiny_checkpoint(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        policy = VLAPolicy.from_pretrained(directory, pruning='lightvla')
        chunk = policy.step(observation())
        policy.step(observation(1, stamp=0.4))
    ours = [str(w.message) for w in caught if 'lightvla' in str(w.message)]
    assert len(ours) == 1 and 'not fine-tuned' in ours[0]
    assert 'not trained for lightvla' in policy.info()['note']
    assert chunk.stats['trained'] is False
    assert 1 <= len(chunk.kept) <= 32


def test_trained_weights_say_so_and_nothing_is_warned(tmp_path):
    directory = tiny_checkpoint(tmp_path, pruning_trained='lightvla')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        policy = VLAPolicy.from_pretrained(directory, pruning='lightvla', readout_start=-56)
    info = policy.info()
    assert (info['note'], info['pruning_trained'], info['readout_start']) == ('', 'lightvla', -56)
    assert policy.step(observation()).stats['trained'] is True


def test_nothing_is_carried_from_tick_to_tick(tmp_path):
    directory = tiny_checkpoint(tmp_path)
    policy, fresh = (VLAPolicy.from_pretrained(directory, pruning='lightvla') for _ in range(2))
    policy.step(observation(5))
    again, alone = policy.step(observation(1, stamp=0.4)), fresh.step(observation(1))
    np.testing.assert_array_equal(again.actions, alone.actions)
    np.testing.assert_array_equal(again.kept, alone.kept)
