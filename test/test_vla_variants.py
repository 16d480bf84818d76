# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Variants of a checkpoint: declared, derived or asked for, never guessed; what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    VARIANTS,
    inputs,
    norm_stats,
    shaken,
    tiny_checkpoint,
    tiny_config,
    tiny_model,
    variant,
)

from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained, unused_shapes
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.film import is_modulation
from vla_prune_ros.vla.heads import TokenHead
from vla_prune_ros.vla.normalisation import Normaliser
from vla_prune_ros.vla.selection import TokenLayout
from vla_prune_ros.vla.variant import KEYS, PRESETS, declared

DECLARED = (*KEYS, 'pruning_trained')


def silent(directory, **said):
    """Make a `config.json` as the authors' scripts leave it: nothing of the variant in it."""
    path = directory / 'config.json'
    data = {k: v for k, v in json.loads(path.read_text()).items() if k not in DECLARED}
    path.write_text(json.dumps(data | said))
    return directory


@pytest.fixture(params=VARIANTS)
def name(request):
    return request.param


def test_what_is_saved_is_loaded_and_gives_the_same_actions(name, tmp_path):
    model = shaken(tiny_model(**variant(name)))
    save_pretrained(model, tmp_path)
    loaded = OpenVLAOFT.from_pretrained(tmp_path)
    config = replace(loaded.config, source=None, origins={})
    assert config == model.config
    assert set(loaded.config.origins.values()) == {'config.json'}
    data = inputs(config, views=config.n_views)
    with torch.inference_mode():
        ours, theirs = model(*data), loaded(*data)
    assert torch.equal(ours.actions, theirs.actions)
    assert ours.actions.shape == (1, config.chunk_len, config.action_dim)
    assert ours.embeddings.shape[1] == ours.layout.length


def test_padding_changes_nothing(name):
    model = shaken(tiny_model(**variant(name)))
    config = model.config
    pixels, ids, state = inputs(config, views=config.n_views, batch=2)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.inference_mode():
        both = model(pixels, ids, state, attention_mask=mask)
        alone = model(pixels[1:], ids[1:, :8], None if state is None else state[1:])
    torch.testing.assert_close(both.readout[1:], alone.readout, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.actions[1:], alone.actions, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(('views', 'state', 'length'), [(1, 0, 35), (3, 1, 35), (2, 1, 20)])
def test_the_index_table(views, state, length):
    slots, v = 350, views * 256
    layout = TokenLayout(views, 256, length, slots, state)
    assert layout.text == range(1 + v + state, v + state + length)
    assert layout.placeholders == range(v + state + length, v + state + length + slots)
    assert layout.eos == layout.length - 1 == v + state + length + slots
    if (views, state) == (3, 1):
        assert layout.length == 1155
    protected = {i for part in layout.protected for i in part}
    assert protected == {0, *range(1 + v, layout.length)}


def test_read_out_without_a_state():
    model = tiny_model(**variant('one_view_no_state'))
    data = inputs(model.config, views=1)
    with torch.inference_mode():
        out = model(*data)
        hidden = model.decoder.norm(model.decoder(out.embeddings).hidden)
    first = out.layout.text[-1]
    assert torch.equal(out.readout, hidden[:, first : first + 56])
    words = model.decoder.embed_tokens(data[1])
    rows = [0, *out.layout.text]
    assert torch.equal(out.embeddings[0, rows], words[0])
    assert not out.embeddings[0, list(out.layout.placeholders)].any()


def test_the_end_changes_the_first_patch_without_a_state():
    model = tiny_model(**variant('one_view_no_state'))
    data = inputs(model.config, views=1)
    with torch.inference_mode():
        before = model(*data).embeddings
        changed = before.clone()
        changed[:, -1] += 1
        one, other = (model.decoder(x).hidden[0, 1] for x in (before, changed))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(('name', 'given'), [('libero', None), ('one_view_no_state', 1)])
def test_a_state_too_many_or_too_few_is_refused(name, given):
    model = tiny_model(**variant(name))
    pixels, ids, _ = inputs(model.config, views=model.config.n_views)
    with pytest.raises(ValueError, match='proprio must be'):
        model(pixels, ids, None if given is None else torch.zeros(1, 8))


# -- what is declared, derived, asked for --------------------------------------------------------
def test_a_published_libero_directory_says_enough(tmp_path):
    config = OpenVLAConfig.from_directory(silent(tiny_checkpoint(tmp_path)))
    assert config.cameras == ('agentview', 'wrist') and config.control_rate == 20.0
    assert config.origins['head'] == 'derived from action_head--1_checkpoint.pt'
    assert config.origins['use_proprio'] == 'derived from proprio_projector--1_checkpoint.pt'
    assert config.origins['n_views'].startswith('preset libero')
    assert config.origins['film'] == 'derived from no vision_backbone file'


@pytest.mark.parametrize(
    ('name', 'preset'),
    [('aloha', 'aloha'), ('bridge', 'bridge'), ('libero_tokens', 'libero_tokens'),
     ('one_view_no_state', 'libero,n_views=1,use_proprio=false'),
     ('film', 'libero'), ('three_views', 'n_views=3')],
)  # fmt: skip
def test_a_variant_that_is_told(name, preset, tmp_path):
    written = tiny_checkpoint(tmp_path, **variant(name))
    config = OpenVLAConfig.from_directory(written)
    told = OpenVLAConfig.from_directory(silent(written, pad_to_multiple_of=0), preset)
    for key in (*VARIANTS[name], 'chunk_len', 'action_dim', 'proprio_dim', 'head', 'film'):
        assert getattr(told, key) == getattr(config, key), key
    wanted = {'n_views': 'told', 'chunk_len': 'told', 'action_dim': 'told', 'film': 'derived'}
    if name == 'three_views':
        wanted |= {'chunk_len': 'preset libero', 'action_dim': 'derived'}
    for key, origin in wanted.items():
        assert told.origins[key].startswith(origin), key


def test_what_is_told_goes_before_what_config_json_says(tmp_path):
    directory = tiny_checkpoint(tmp_path)
    config = OpenVLAConfig.from_directory(directory, 'chunk_len=3, cameras=left right')
    assert (config.chunk_len, config.cameras) == (3, ('left', 'right'))
    assert config.origins['chunk_len'] == 'told' != config.origins['n_views']


def test_a_state_that_is_switched_off_leaves_its_projector_alone(tmp_path):
    directory = tiny_checkpoint(tmp_path)
    silent(directory, use_proprio=False, proprio_dim=8, n_views=2, chunk_len=8,
           normalisation='bounds_q99', action_kind='delta_pose')  # fmt: skip
    model = OpenVLAOFT.from_pretrained(directory)
    assert model.config.proprio_dim == 0 and not hasattr(model, 'proprio_projector')


def test_a_projector_inside_the_safetensors_is_taken(tmp_path):
    directory = tiny_checkpoint(tmp_path)
    before = OpenVLAOFT.from_pretrained(directory)
    apart = directory / 'proprio_projector--1_checkpoint.pt'
    tensors = load_file(directory / 'model.safetensors')
    state = {f'proprio_projector.{k}': t for k, t in torch.load(apart).items()}
    save_file(tensors | state, directory / 'model.safetensors')
    with pytest.raises(ValueError, match=r'twice.*remove the older'):
        OpenVLAOFT.from_pretrained(directory)
    apart.unlink()
    after = OpenVLAOFT.from_pretrained(directory)
    data = inputs(before.config)
    assert torch.equal(before(*data).actions, after(*data).actions)


def test_extra_files_an_old_adapter_and_prefixes_are_accepted(tmp_path):
    directory = tiny_checkpoint(tmp_path)
    (directory / 'lora_adapter').mkdir()
    (directory / 'notes.txt').write_text('x')
    for kind in ('action_head', 'proprio_projector'):
        path = directory / f'{kind}--1_checkpoint.pt'
        state = {f'module.{k}': t.half() for k, t in torch.load(path).items()}
        path.rename(directory / f'{kind}--latest_checkpoint.pt')
        torch.save(state, directory / f'{kind}--latest_checkpoint.pt')
    assert OpenVLAOFT.from_pretrained(directory).dtype == torch.float32


def _rename(directory, rule):
    tensors = load_file(directory / 'model.safetensors')
    save_file({rule(k): t for k, t in tensors.items()}, directory / 'model.safetensors')


def _silent_l1(directory):
    silent(directory)
    head = directory / 'action_head--1_checkpoint.pt'
    state = torch.load(head)
    state['model.fc2.weight'] = state['model.fc2.weight'][:5]
    torch.save(state, head)


def _noise(directory):
    head = directory / 'action_head--1_checkpoint.pt'
    state = {f'noise_predictor.mlp_resnet.{k[6:]}': t for k, t in torch.load(head).items()}
    torch.save(state, head)


def _noise_with_projector(directory):
    _noise(directory)
    torch.save({}, directory / 'noisy_action_projector--1_checkpoint.pt')


def _only_adapter(directory):
    (directory / 'model.safetensors').unlink()
    (directory / 'lora_adapter').mkdir()


REFUSED = {
    'two heads': (
        lambda d: (d / 'action_head--2_checkpoint.pt').write_bytes(
            (d / 'action_head--1_checkpoint.pt').read_bytes()
        ),
        'more than one action_head',
    ),
    'noise without projector': (_noise, 'noise_predictor.*no noisy_action_projector'),
    'projector without noise': (
        lambda d: torch.save({}, d / 'noisy_action_projector--1_checkpoint.pt'),
        'noisy_action_projector--1_checkpoint.pt but no diffusion head',
    ),
    'diffusion': (_noise_with_projector, 'diffusion head is not supported: it takes 50 passes'),
    'head of another width': (_silent_l1, 'belongs to another checkpoint'),
    'statistics of another width': (
        lambda d: (d / 'dataset_statistics.json').write_text(json.dumps(norm_stats(14))),
        'the statistics have 14 numbers per action',
    ),
    'film without file': (
        lambda d: silent(d, film=True), 'no vision_backbone--.*film is True .config.json'
    ),
    'unmerged': (
        lambda d: _rename(d, lambda k: k.replace('q_proj.', 'q_proj.base_layer.')),
        'unmerged.*run train merge',
    ),
    'only an adapter': (_only_adapter, 'only an adapter.*needs its base'),
    'value head': (
        lambda d: _rename(d, lambda k: k.replace('language_model.lm_head', 'value_head')),
        'RL trainer.*without its value head',
    ),
    'no head': (
        lambda d: [(d / 'action_head--1_checkpoint.pt').unlink(), silent(d)],
        'discrete tokens.*original OpenVLA',
    ),
    'no state file': (
        lambda d: (d / 'proprio_projector--1_checkpoint.pt').unlink(),
        'no proprio_projector--.*declare use_proprio=false',
    ),
    'nobody states the cameras': (
        lambda d: [(d / 'proprio_projector--1_checkpoint.pt').unlink(), silent(d)],
        r'does not say n_views, chunk_len, normalisation, action_kind: declare a variant \(libero',
    ),
    'a size that is not that of the file': (
        lambda d: silent(d, action_dim=6), 'action_dim is 6 .config.json., but 7 by action_head'
    ),
    'a word in the place of a number': (
        lambda d: silent(d, n_views='two'), 'config.json: n_views must be of type int'
    ),
}  # fmt: skip


@pytest.mark.parametrize('what', REFUSED)
def test_refused_with_file_and_cure(what, tmp_path):
    directory = tiny_checkpoint(tmp_path)
    spoil, text = REFUSED[what]
    spoil(directory)
    with pytest.raises((ValueError, FileNotFoundError), match=f'(?s){text}') as caught:
        OpenVLAOFT.from_pretrained(directory)
    assert (
        str(directory) in str(caught.value)
        or 'config.json' in str(caught.value)
        or 'head' in (str(caught.value))
    )


def test_tokens_without_their_bounds_are_refused(tmp_path):
    statistics = norm_stats(14, 14)
    for block in ('action', 'proprio'):
        del statistics['tabletop'][block]['max']
    with pytest.raises(ValueError, match='no max, which normalisation bounds needs'):
        Normaliser(statistics['tabletop'], 14, 14, 'bounds')


@pytest.mark.parametrize(
    ('text', 'message'),
    [('liberty', 'not one of libero'), ('libero,views=2', 'not KEY=VALUE with a key of n_views'),
     ('libero,n_views=two', 'n_views must be of type int'), ('chunk_len=true', 'type int'),
     ('libero,aloha', "'aloha' is not KEY=VALUE"), ('film=[', 'film must be of type bool')],
)  # fmt: skip
def test_a_declaration_that_means_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        declared(text)


def test_a_declaration():
    assert declared('') == ('', {})
    assert declared(' aloha , chunk_len=50 ,control_rate=50') == (
        'aloha', {'chunk_len': 50, 'control_rate': 50.0}
    )  # fmt: skip
    for values in PRESETS.values():
        assert len(values['cameras']) == values['n_views'] and values.keys() <= KEYS.keys()


def test_cameras_and_their_number_must_agree(tmp_path):
    directory = tiny_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r'n_views is 2 .config.json., but cameras are a b c'):
        OpenVLAConfig.from_directory(directory, 'cameras=a b c')
    with pytest.raises(ValueError, match='not 2 different names'):
        tiny_config(camera_names=('one', 'one'))


# -- tokens --------------------------------------------------------------------------------------
@pytest.fixture
def tokens():
    return tiny_model(**variant('libero_tokens')).action_head


def test_every_bin_survives_the_way_to_a_token_and_back(tokens):
    edges = np.linspace(-1, 1, 256)
    centres = torch.from_numpy((edges[:-1] + edges[1:]) / 2)
    ids = tokens.tokens(centres)
    torch.testing.assert_close(tokens.values(ids).double(), centres, atol=1e-7, rtol=0)
    assert (ids.diff() == -1).all()


def test_labels_are_those_of_the_authors(tokens):
    """`32000 - np.digitize(clip(a, -1, 1), np.linspace(-1, 1, 256))`, openvla-oft."""
    values = np.concatenate([np.linspace(-1.2, 1.2, 1001), np.linspace(-1, 1, 256)])
    wanted = tokens.ids.stop - np.digitize(np.clip(values, -1, 1), np.linspace(-1, 1, 256))
    assert tokens.tokens(torch.from_numpy(values)).tolist() == wanted.tolist()


def test_published_ids():
    config = tiny_config(**variant('libero_tokens'), llama=replace(tiny_config().llama,
                         vocab_size=32064))  # fmt: skip
    config = replace(config, padded_vocabulary=64)
    head = TokenHead(config)
    assert (head.ids.start, head.ids.stop) == (31744, 32000)
    # 256 ids for 255 bins: the two smallest are the same largest number.
    wanted = [1 - 1 / 255, 1 - 1 / 255, 1 - 3 / 255, -1 + 1 / 255]
    ids = torch.tensor([31744, 31745, 31746, 31999])
    assert head.values(ids).tolist() == pytest.approx(wanted)


def test_a_word_is_never_chosen(tmp_path):
    model = tiny_model(**variant('libero_tokens'),
                       llama=replace(tiny_config().llama, vocab_size=300))  # fmt: skip
    data = inputs(model.config, views=1)
    with torch.inference_mode():
        before = model(*data)
        direction = before.readout.mean(1)[0]
        model.action_head.lm_head.weight[: model.action_head.ids.start] = 100 * direction
        after = model(*data)
        logits = model.action_head.lm_head(after.readout)
    assert (logits.argmax(-1) < model.action_head.ids.start).any()
    assert torch.equal(before.actions, after.actions)


def test_a_vocabulary_without_room_for_tokens_is_refused():
    with pytest.raises(ValueError, match='no room for action tokens'):
        tiny_model(head='tokens')


# -- normalisation -------------------------------------------------------------------------------
def block(**changes):
    values = {'q01': [-0.5, 0.0, 2.0], 'q99': [0.5, 1.0, 2.0], 'min': [-1.0, -3.0, 2.0],
              'max': [1.0, 5.0, 2.0], 'mask': [True, True, True]}  # fmt: skip
    return values | changes


@pytest.mark.parametrize('kind', ['bounds_q99', 'bounds'])
def test_there_and_back(kind):
    made = Normaliser({'action': block(), 'proprio': block()}, 3, 3, kind)
    low, high = ([-1, -3], [1, 5]) if kind == 'bounds' else ([-0.5, 0], [0.5, 1])
    assert made.normalise_actions(np.array([*low, 2]))[:2] == pytest.approx([-1, -1])
    assert made.normalise_actions(np.array([*high, 2]))[:2] == pytest.approx([1, 1])
    beyond = np.array([7.0, -9.0, 2.0])
    back = made.unnormalise_actions(made.normalise_actions(beyond))
    assert back == pytest.approx(beyond)
    assert made.normalise_proprio(beyond).tolist() == [1, -1, 0]


def test_a_number_that_never_changes_is_0_both_ways():
    made = Normaliser({'action': block(), 'proprio': block()}, 3, 3, 'bounds')
    assert made.normalise_proprio(np.array([0.0, 1.0, 2.0]))[2] == 0
    assert made.normalise_actions(np.array([0.0, 1.0, 2.0]))[2] == 0
    assert made.unnormalise_actions(np.array([0.0, 0.0, 0.7]))[2] == pytest.approx(2.0)


def test_the_mask_holds_for_state_and_action():
    masked = block(mask=[True, False, True])
    made = Normaliser({'action': masked, 'proprio': masked}, 3, 3, 'bounds')
    assert made.unnormalise_actions(np.full(3, 0.25))[1] == 0.25
    assert made.normalise_proprio(np.array([0.0, 0.25, 2.0]))[1] == 0.25
    with pytest.raises(ValueError, match='not one of bounds_q99'):
        Normaliser({'action': masked}, 3, 0, 'gauss')


# -- FiLM ----------------------------------------------------------------------------------------
def test_published_sizes():
    """Numbers by arithmetic from the shapes of the authors' modules."""

    def count(config, select):
        with torch.device('meta'):
            model = OpenVLAOFT(config)
        used = sum(p.numel() for k, p in model.named_parameters() if select(k))
        rest = sum(math.prod(s) for k, s in unused_shapes(config).items() if select(k))
        return used, used + rest

    head = lambda key: key.startswith('action_head.')  # noqa: E731
    assert count(OpenVLAConfig(), head)[0] == 151_117_831
    assert count(OpenVLAConfig(action_dim=14, chunk_len=25), head)[0] == 268_644_366
    assert count(OpenVLAConfig(film=True), is_modulation) == (438_411_776, 456_241_920)


def test_the_film_file_has_as_many_tensors_as_the_published_layout(tmp_path):
    towers = tiny_config().featurizer, tiny_config().fused_featurizer
    first, second = (replace(t, depth=d) for t, d in zip(towers, (24, 27), strict=True))
    model = tiny_model(film=True, featurizer=first, fused_featurizer=second)
    save_pretrained(model, tmp_path)
    assert len(torch.load(tmp_path / 'vision_backbone--1_checkpoint.pt')) == 1311


def test_film_that_does_nothing_is_the_plain_tower():
    film, plain = tiny_model(**variant('film')), tiny_model()
    state = {k: p for k, p in film.state_dict().items() if 'scale.' not in k and 'shift.' not in k}
    plain.load_state_dict(state)
    for key, p in film.named_parameters():
        if '.scale.' in key or '.shift.' in key:
            torch.nn.init.zeros_(p)
    data = inputs(plain.config)
    with torch.inference_mode():
        assert torch.equal(film(*data).actions, plain(*data).actions)


def test_film_changes_every_token_between_attention_and_the_second_norm():
    """Against the formula of the authors, and the same formula in another place."""
    model = shaken(tiny_model(**variant('film')))
    tower, e = model.vision_backbone.featurizer, torch.randn(2, 32)
    x = torch.randn(2, 7, tower.config.dim)
    block, modulation = tower.blocks[0], tower.modulation(e)[0]

    def authors(late: bool):
        gamma, beta = block.scale(e)[:, None], block.shift(e)[:, None]
        y = block.ls1(x, block.attn(block.norm1(x)))
        if late:
            normed = block.norm2(y) * (1 + gamma) + beta
            return block.ls2(y, block.mlp(normed))
        y = y * (1 + gamma) + beta
        return block.ls2(y, block.mlp(block.norm2(y)))

    with torch.inference_mode():
        torch.testing.assert_close(block(x, modulation), authors(False), atol=1e-6, rtol=1e-5)
        assert (block(x, modulation) - authors(True)).abs().max() > 0.1


def test_film_sees_bos_prompt_and_end_only():
    model = shaken(tiny_model(**variant('film')))
    pixels, ids, _ = inputs(model.config, batch=1)
    words = model.decoder.embed_tokens(torch.cat([ids, torch.tensor([[2]])], 1))
    by_hand = model.vision_backbone.modulation(words.mean(1))
    for ours, wanted in zip(model.modulation(ids), by_hand, strict=True):
        assert torch.equal(ours, wanted)
    with pytest.raises(ValueError, match='need the modulation'):
        model.vision_backbone(pixels)


def test_merged_adapters_equal_the_sum_of_both(tmp_path):
    directory = tiny_checkpoint(tmp_path, **variant('film'))
    path = directory / 'vision_backbone--1_checkpoint.pt'
    state = torch.load(path)
    stem = 'vision_backbone.featurizer.blocks.0.block.attn.qkv'
    conv = 'vision_backbone.fused_featurizer.patch_embed.proj'
    g = torch.Generator().manual_seed(0)
    for key in list(state):
        if '.lora_' in key:  # another rank than the one we write, above 16
            shape = [24 if n == 32 and d == ('lora_B' in key) else n
                     for d, n in enumerate(state[key].shape)]  # fmt: skip
            state[key] = torch.randn(shape, generator=g) * 0.1
    torch.save(state, path)
    model = OpenVLAOFT.from_pretrained(directory)
    x = torch.randn(3, 24, generator=g)

    def part(name, what):
        return state[f'{name}.lora_{what}.default.weight']

    linear = torch.nn.functional.linear
    weight, bias = state[f'{stem}.base_layer.weight'], state[f'{stem}.base_layer.bias']
    wanted = linear(x, weight, bias) + 16 / 24 * linear(
        linear(x, part(stem, 'A')), part(stem, 'B')
    )
    ours = model.vision_backbone.featurizer.blocks[0].attn.qkv
    torch.testing.assert_close(ours(x), wanted, atol=1e-6, rtol=1e-5)
    pixels, convolve = torch.randn(1, 3, 56, 56, generator=g), torch.nn.functional.conv2d
    weight, bias = state[f'{conv}.base_layer.weight'], state[f'{conv}.base_layer.bias']
    change = convolve(convolve(pixels, part(conv, 'A'), stride=14), part(conv, 'B'))
    wanted = convolve(pixels, weight, bias, stride=14) + 16 / 24 * change
    ours = model.vision_backbone.fused_featurizer.patch_embed.proj
    torch.testing.assert_close(ours(pixels), wanted, atol=1e-5, rtol=1e-5)


def test_the_film_file_goes_before_the_towers_in_the_safetensors(tmp_path):
    directory = tiny_checkpoint(tmp_path, **variant('film'))
    before = OpenVLAOFT.from_pretrained(directory)
    tensors = load_file(directory / 'model.safetensors')
    towers = {k: t + 1 for k, t in tensors.items() if k.startswith('vision_backbone.')}
    save_file(tensors | towers, directory / 'model.safetensors')
    after = OpenVLAOFT.from_pretrained(directory)
    for ours, wanted in zip(after.parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, wanted)


def test_the_film_file_has_the_names_of_the_authors(tmp_path):
    directory = tiny_checkpoint(tmp_path, **variant('film'))
    names = torch.load(directory / 'vision_backbone--1_checkpoint.pt').keys()
    first = 'vision_backbone.featurizer.blocks.2.'  # the last block, which is never read
    assert names >= {
        first + tail
        for tail in (
            *('scale.weight', 'shift.bias', 'block.norm1.weight', 'block.ls2.scale_factor'),
            *('block.mlp.fc2.base_layer.bias', 'block.attn.proj.lora_A.default.weight'),
        )
    }
    assert 'vision_backbone.fused_featurizer.attn_pool.kv.lora_B.default.weight' in names
    assert not any('.blocks.' in n and '.block.' not in n and 'scale' not in n and 'shift' not in n
                   for n in names)  # fmt: skip


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [(lambda k, t: None if 'qkv.lora_A' in k else t, 'no adapter'),
     (lambda k, t: t[:9] if 'qkv.lora_A' in k else t, 'do not fit its weight.*another model'),
     (lambda k, t: None if '.scale.' in k or '.shift.' in k else t, 'no FiLM layers')],
)  # fmt: skip
def test_a_film_file_that_does_not_fit(spoil, message, tmp_path):
    directory = tiny_checkpoint(tmp_path, **variant('film'))
    path = directory / 'vision_backbone--1_checkpoint.pt'
    state = {k: spoil(k, t) for k, t in torch.load(path).items()}
    torch.save({k: t for k, t in state.items() if t is not None}, path)
    with pytest.raises(ValueError, match=f'(?s){path.name}.*{message}'):
        OpenVLAOFT.from_pretrained(directory)
