# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Towers, sequence and read-out of the model."""

import pytest
import torch
from tiny import inputs, tiny_config, tiny_model
from torch.nn.functional import conv2d, gelu, layer_norm, linear

from vla_prune_ros.pruning import make_selector
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import unused_shapes
from vla_prune_ros.vla.selection import TokenLayout


@pytest.fixture(scope='module')
def model():
    return tiny_model()


def full_tower(weights, config, pixels, read_at):
    """Return the output of block `read_at` of a complete ViT, written out from its weights."""
    w = weights
    x = conv2d(
        pixels, w['patch_embed.proj.weight'], w['patch_embed.proj.bias'], stride=config.patch_size
    )
    x = x.flatten(2).transpose(1, 2) + w['pos_embed']
    prefix = [w[k].expand(len(x), -1, -1) for k in ('cls_token', 'reg_token') if k in w]
    x = torch.cat([*prefix, x], 1)
    states = []
    for i in range(config.depth):
        b = {k.removeprefix(f'blocks.{i}.'): v for k, v in w.items() if f'blocks.{i}.' in k}
        h = layer_norm(x, (config.dim,), b['norm1.weight'], b['norm1.bias'], 1e-6)
        qkv = linear(h, b['attn.qkv.weight'], b['attn.qkv.bias'])
        q, k, v = (
            t.unflatten(-1, (config.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1)
        )
        probs = torch.softmax(q @ k.transpose(2, 3) * (config.dim / config.heads) ** -0.5, -1)
        h = linear(
            (probs @ v).transpose(1, 2).flatten(2), b['attn.proj.weight'], b['attn.proj.bias']
        )
        x = x + h * b.get('ls1.scale_factor', 1.0)
        h = layer_norm(x, (config.dim,), b['norm2.weight'], b['norm2.bias'], 1e-6)
        h = gelu(linear(h, b['mlp.fc1.weight'], b['mlp.fc1.bias']))
        x = x + linear(h, b['mlp.fc2.weight'], b['mlp.fc2.bias']) * b.get('ls2.scale_factor', 1.0)
        states.append(x[:, config.n_prefix :])
    return states[read_at]


@pytest.mark.parametrize('name', ['featurizer', 'fused_featurizer'])
def test_truncated_tower_equals_the_full_one_read_at_the_same_block(model, name):
    tower, config = getattr(model.vision_backbone, name), getattr(model.config, name)
    prefix = f'vision_backbone.{name}.'
    g = torch.Generator().manual_seed(1)
    weights = {k: torch.randn(v.shape, generator=g) * 0.2 for k, v in tower.state_dict().items()}
    tower = type(tower)(config)
    tower.load_state_dict(weights)
    weights |= {
        k.removeprefix(prefix): torch.randn(shape, generator=g)
        for k, shape in unused_shapes(model.config).items()
        if k.startswith(prefix)
    }
    pixels = torch.randn(2, 3, config.image_size, config.image_size, generator=g)
    with torch.inference_mode():
        ours = tower(pixels)
        reference = full_tower(weights, config, pixels, config.depth - 2)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_views_share_weights_and_keep_their_order(model):
    pixels, _, _ = inputs(model.config)
    swapped = torch.cat([pixels[:, 6:], pixels[:, :6]], 1)
    n = model.config.patches_per_view
    with torch.inference_mode():
        a, b = model.encode_images(pixels), model.encode_images(swapped)
    torch.testing.assert_close(a[:, :n], b[:, n:], rtol=0, atol=1e-6)
    assert (a[:, :n] - a[:, n:]).abs().max() > 1e-3


@pytest.mark.parametrize('length', [3, 12, 20])
@pytest.mark.parametrize('views', [1, 2, 3])
def test_sequence_follows_the_index_table(model, length, views):
    pixels, ids, proprio = inputs(model.config, length=length, views=views)
    config, embed = model.config, model.decoder.embed_tokens
    with torch.inference_mode():
        visual = model.encode_images(pixels)
        x = model.assemble(visual, ids, proprio).embeddings[0]
        v = views * config.patches_per_view
        assert len(x) == v + length + 56 + 2
        assert torch.equal(x[0], embed.weight[ids[0, 0]])
        assert torch.equal(x[1 : v + 1], visual[0])
        assert torch.equal(x[v + 1], model.proprio_projector(proprio)[0])
        assert torch.equal(x[v + 2 : v + 1 + length], embed.weight[ids[0, 1:]])
        assert not x[v + 1 + length : -1].any()
        assert torch.equal(x[-1], embed.weight[config.eos_id])


@pytest.mark.parametrize('start', [-58, -57, -56])
@pytest.mark.parametrize('rows', [60, 75])
def test_readout_takes_consecutive_rows_counted_from_the_end(model, start, rows):
    marked = torch.arange(1.0, rows + 1)[None, :, None] * torch.tensor([1.0, -1.0] * 16)
    model_norm = model.decoder.norm
    try:
        model.decoder.norm = torch.nn.Identity()
        states = model.read_out(marked, start)
    finally:
        model.decoder.norm = model_norm
    expected = [*range(1, rows + 1)][start : start + 56 or None]
    assert states[0, :, 0].tolist() == expected


def test_default_readout_is_the_last_prompt_token_and_all_placeholders_but_one(model):
    pixels, ids, proprio = inputs(model.config)
    with torch.inference_mode():
        out = model(pixels, ids, proprio)
        explicit = model(pixels, ids, proprio, readout_start=-58)
        hidden = model.decoder.norm(model.decoder(out.embeddings).hidden)[0]
        late = model(pixels, ids, proprio, readout_start=-57)
    layout = out.layout
    rows = [layout.text[-1], *layout.placeholders[:-1]]
    assert torch.equal(out.readout[0], hidden[rows])
    assert torch.equal(out.actions, explicit.actions)
    assert not torch.equal(out.actions, late.actions)


@pytest.mark.parametrize('start', [-55, -500, 0])
def test_readout_outside_the_sequence_is_refused(model, start):
    with pytest.raises(ValueError, match='readout_start'):
        model.read_out(torch.zeros(1, 100, 32), start)


def test_padded_batch_equals_single_passes(model):
    pixels, ids, proprio = inputs(model.config, batch=3, length=12)
    lengths = [12, 7, 9]
    mask = torch.stack([torch.arange(12) < n for n in lengths])
    ids[~mask] = 9999  # a padding id may lie outside the vocabulary
    with torch.inference_mode():
        out = model(pixels, ids, proprio, attention_mask=mask)
        for i, n in enumerate(lengths):
            one = model(pixels[i : i + 1], ids[i : i + 1, :n], proprio[i : i + 1])
            torch.testing.assert_close(out.actions[i], one.actions[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(out.readout[i], one.readout[0], rtol=0, atol=1e-5)


def test_kept_and_positions_are_absolute_ids(model):
    pixels, ids, proprio = inputs(model.config)
    selector = make_selector('random', model.config, keep=3, layer=1)
    with torch.inference_mode():
        dense = model(pixels, ids, proprio)
        pruned = model(pixels, ids, proprio, selector)
    assert dense.kept.tolist() == list(range(1, 33))
    assert dense.position_ids.tolist() == list(range(dense.layout.length))
    assert len(pruned.kept) == 6
    assert pruned.position_ids.tolist() == [0, *pruned.kept, *range(33, dense.layout.length)]
    assert torch.equal(pruned.embeddings, dense.embeddings)


def test_stages_are_marked_in_order(model):
    stages = []
    with torch.inference_mode():
        model(*inputs(model.config), mark=stages.append)
    assert stages == ['vision', 'assemble', 'decoder', 'head']


def test_every_parameter_receives_a_gradient():
    model = tiny_model().train()
    pixels, ids, proprio = inputs(model.config, batch=2)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    model(pixels, ids, proprio, attention_mask=mask).actions.abs().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_same_seed_gives_the_same_fresh_weights():
    a, b, c = tiny_model(3), tiny_model(3), tiny_model(4)
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.projector.fc1.weight, c.projector.fc1.weight)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda p, i, s: (p[:, :11], i, s), '6 channels'),
        (lambda p, i, s: (p, i, s[:, :7]), 'proprio'),
        (lambda p, i, s: (p, i.expand(2, -1), s), 'batch sizes'),
    ],
)
def test_malformed_inputs_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message), torch.inference_mode():
        model(*change(*inputs(model.config)))


def test_other_chunk_and_proprio_sizes_work():
    model = tiny_model(chunk_len=5, action_dim=3, proprio_dim=4)
    with torch.inference_mode():
        out = model(*inputs(model.config))
    assert out.actions.shape == (1, 5, 3)
    assert out.layout.n_placeholders == 15
    assert OpenVLAOFT(tiny_config()).action_head.model.fc1.weight.shape == (32, 7 * 32)


def test_published_lengths():
    layout = TokenLayout(2, 256, 35, 56)
    assert (layout.length, layout.proprio, layout.eos) == (570 + 35, 513, 569 + 35)
    assert (layout.text[0], layout.text[-1]) == (514, 512 + 35)
    assert (layout.placeholders[0], layout.placeholders[-1]) == (513 + 35, 568 + 35)
