# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The decoder with a shrinking token set, against independent dense references."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from tiny import inputs, tiny_model

from vla_prune_ros.vla.config import LlamaConfig
from vla_prune_ros.vla.decoder import Decoder, RMSNorm, rope_table
from vla_prune_ros.vla.operations import rotate
from vla_prune_ros.vla.selection import (
    PassPlan,
    ScoreRequest,
    SlotCache,
    TokenLayout,
)
from vla_prune_ros.vla.walk import check_kept


@dataclass
class Scripted:
    """Selector that follows a script: cut point -> visual ids that stay."""

    cuts: dict[int, list[int]] = field(default_factory=dict)
    scores: dict[int, ScoreRequest] = field(default_factory=dict)
    skip: frozenset[int] = frozenset()
    cache: SlotCache | None = None
    seen: dict = field(default_factory=dict)

    def begin(self, layout, embeddings):
        self.layout = layout
        return PassPlan(frozenset(self.cuts), self.scores, self.skip, self.cache)

    def select(self, point, tokens):
        self.seen[point] = tokens
        return tokens.layout.keep(torch.tensor(self.cuts[point], dtype=torch.int64))

    def end(self, tokens):
        self.seen['end'] = tokens


@pytest.fixture(scope='module')
def model():
    return tiny_model()


@pytest.fixture(scope='module')
def sequence(model):
    pixels, ids, proprio = inputs(model.config)
    with torch.inference_mode():
        return model.assemble(model.encode_images(pixels), ids, proprio)


def decode(model, sequence, selector=None, **kwargs):
    with torch.inference_mode():
        return model.decoder(
            sequence.embeddings, selector=selector, layout=sequence.layout, **kwargs
        )


def explicit_attention(model, x, layer, ids=None):
    """Probabilities [heads, n, n] of a layer for input states x [n, D], written out."""
    attn = model.decoder.layers[layer].self_attn
    config = model.config.llama
    h = model.decoder.layers[layer].input_layernorm(x)
    ids = torch.arange(len(x)) if ids is None else ids
    frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    angle = torch.outer(ids.float(), frequency)

    def heads(linear):
        y = linear(h).view(len(x), config.n_heads, config.head_dim).transpose(0, 1)
        a, b = y[..., : config.head_dim // 2], y[..., config.head_dim // 2 :]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q, k = heads(attn.q_proj), heads(attn.k_proj)
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(config.head_dim), -1)


def all_visual(sequence):
    return list(sequence.layout.visual)


@pytest.mark.parametrize('point', [0, 1, 3, 4])
def test_keeping_everything_equals_dense_bit_for_bit(model, sequence, point):
    dense = decode(model, sequence)
    kept = decode(model, sequence, Scripted({point: all_visual(sequence)}))
    assert torch.equal(kept.hidden, dense.hidden)
    assert torch.equal(kept.ids, dense.ids)


@pytest.mark.parametrize('point', [0, 2])
def test_survivors_behave_as_if_the_others_were_masked(model, sequence, point):
    """Positions stay original: renumbering would not agree with a masked dense pass."""
    kept = [1, 4, 5, 16, 17, 30]
    out = decode(model, sequence, Scripted({point: kept}))
    rows = sequence.layout.keep(torch.tensor(kept))
    mask = torch.zeros(1, sequence.layout.length, dtype=torch.bool)
    mask[:, rows] = True
    config = model.config.llama
    rope = rope_table(
        torch.arange(sequence.layout.length), config.head_dim, config.rope_theta, torch.float32
    )
    x = sequence.embeddings
    with torch.inference_mode():
        for index, layer in enumerate(model.decoder.layers):
            x = layer(x, rope, mask[:, None, None] if index >= point else None)
    torch.testing.assert_close(out.hidden, x[:, rows], rtol=0, atol=1e-5)
    assert torch.equal(out.ids, rows)


def test_renumbered_positions_would_differ(model, sequence):
    out = decode(model, sequence, Scripted({0: [1, 4, 30]}))
    with torch.inference_mode():
        renumbered = model.decoder(sequence.embeddings[:, out.ids]).hidden
        original = model.decoder(sequence.embeddings[:, out.ids], position_ids=out.ids).hidden
    assert (renumbered - out.hidden).abs().max() > 1e-3
    torch.testing.assert_close(original, out.hidden, rtol=0, atol=1e-6)


def test_several_cuts_nest_and_the_last_layer_is_reported(model, sequence):
    selector = Scripted({0: list(range(1, 21)), 2: [2, 4, 6], 4: [4]})
    out = decode(model, sequence, selector)
    layout = sequence.layout
    assert selector.seen[2].ids.tolist() == layout.keep(torch.arange(1, 21)).tolist()
    assert out.entered.tolist() == layout.keep(torch.tensor([2, 4, 6])).tolist()
    assert out.ids.tolist() == layout.keep(torch.tensor([4])).tolist()
    assert torch.equal(selector.seen['end'].hidden, out.hidden[0])


def test_attention_is_bidirectional(model, sequence):
    """The first patch's layer-1 output sees EOS and the last prompt token."""
    for row in (sequence.layout.eos, sequence.layout.text[-1]):
        changed = sequence.embeddings.clone()
        changed[0, row] += 1.0
        rope = rope_table(torch.arange(sequence.layout.length), 8, 1e4, torch.float32)
        with torch.inference_mode():
            before, after = (
                model.decoder.layers[1](model.decoder.layers[0](x, rope), rope)[0, 1]
                for x in (sequence.embeddings, changed)
            )
        assert (before - after).abs().max() > 1e-5


def test_side_product_equals_explicit_attention(model, sequence):
    layout = sequence.layout
    request = ScoreRequest(layout.text, layout.visual, entropy=True)
    selector = Scripted({2: [3, 5, 8, 21]}, {0: request, 1: request, 3: request})
    out = decode(model, sequence, selector)
    scores = selector.seen['end'].scores
    rope = rope_table(torch.arange(layout.length), 8, 1e4, torch.float32)
    with torch.inference_mode():
        x = sequence.embeddings
        for index in range(2):
            probs = explicit_attention(model, x[0], index)
            text = probs[:, layout.text.start : layout.text.stop]
            visual = text[..., 1 : 1 + layout.n_visual]
            torch.testing.assert_close(scores[index].probs, visual, rtol=0, atol=1e-6)
            torch.testing.assert_close(scores[index].received(), visual.mean((0, 1)))
            torch.testing.assert_close(scores[index].given(), visual.mean(0).sum(-1))
            entropy = -(text * text.log()).sum(-1).mean()
            torch.testing.assert_close(scores[index].entropy, entropy)
            x = model.decoder.layers[index](x, rope)
        x = x[:, out.ids]
        x = model.decoder.layers[2](x, rope[..., out.ids, :])
        probs = explicit_attention(model, x[0], 3, out.ids)
    text = probs[:, (out.ids >= layout.text.start) & (out.ids < layout.text.stop)]
    received = scores[3].received()
    survivors = torch.tensor([3, 5, 8, 21]) - 1
    torch.testing.assert_close(received[survivors], text.mean((0, 1))[1:5])
    others = torch.ones(layout.n_visual, dtype=torch.bool)
    others[survivors] = False
    assert bool((received[others] == -torch.inf).all())


def test_visual_rows_can_be_queries_too(model, sequence):
    layout = sequence.layout
    selector = Scripted({0: [2, 9]}, {1: ScoreRequest(layout.visual, layout.text)})
    out = decode(model, sequence, selector)
    given = selector.seen['end'].scores[1].given()
    assert given.isfinite().nonzero().flatten().tolist() == [1, 8]
    rope = rope_table(torch.arange(layout.length), 8, 1e4, torch.float32)[..., out.ids, :]
    with torch.inference_mode():
        x = model.decoder.layers[0](sequence.embeddings[:, out.ids], rope)
        probs = explicit_attention(model, x[0], 1, out.ids)
    columns = (out.ids >= layout.text.start) & (out.ids < layout.text.stop)
    torch.testing.assert_close(given[[1, 8]], probs[:, 1:3][..., columns].mean(0).sum(-1))


def test_skipping_a_layer_equals_a_model_without_it(model, sequence):
    skipped = decode(model, sequence, Scripted(skip=frozenset({1, 2})))
    rope = rope_table(torch.arange(sequence.layout.length), 8, 1e4, torch.float32)
    with torch.inference_mode():
        x = model.decoder.layers[3](model.decoder.layers[0](sequence.embeddings, rope), rope)
    assert torch.equal(skipped.hidden, x)


def new_cache(model, sequence):
    llama = model.config.llama
    return SlotCache(
        llama.n_layers, sequence.layout.length, llama.n_heads, llama.head_dim, torch.float32, 'cpu'
    )


def test_cache_with_everything_live_equals_dense_bit_for_bit(model, sequence):
    dense = decode(model, sequence)
    cache = new_cache(model, sequence)
    for _ in range(2):
        assert torch.equal(decode(model, sequence, Scripted(cache=cache)).hidden, dense.hidden)


def test_reused_slots_on_a_repeated_input_equal_dense(model, sequence):
    dense = decode(model, sequence)
    cache = new_cache(model, sequence)
    decode(model, sequence, Scripted(cache=cache))
    selector = Scripted({1: list(range(1, 20)), 3: [1, 2, 3]}, cache=cache)
    out = decode(model, sequence, selector)
    assert len(out.ids) == sequence.layout.length - sequence.layout.n_visual + 3
    torch.testing.assert_close(out.hidden, dense.hidden[:, out.ids], rtol=0, atol=1e-5)


def test_live_rows_overwrite_their_slots_and_only_theirs(model, sequence):
    cache = new_cache(model, sequence)
    decode(model, sequence, Scripted(cache=cache))
    before = cache.keys[2].clone()
    sequence_2 = type(sequence)(sequence.embeddings * 1.5, sequence.layout)
    decode(model, sequence_2, Scripted({2: [4, 11]}, cache=cache))
    changed = (cache.keys[2] != before).flatten(1).any(1).nonzero().flatten()
    expected = sequence.layout.keep(torch.tensor([4, 11]))
    # The zero placeholders' keys may not change in every layer; visual slots decide.
    assert set(changed.tolist()) <= set(expected.tolist())
    assert {4, 11} <= set(changed.tolist())
    assert not {1, 2, 3} & set(changed.tolist())


def test_scores_cover_cached_slots(model, sequence):
    layout = sequence.layout
    cache = new_cache(model, sequence)
    decode(model, sequence, Scripted(cache=cache))
    request = ScoreRequest(layout.text, layout.visual)
    reused, dense = Scripted({1: [5]}, {3: request}, cache=cache), Scripted({}, {3: request})
    decode(model, sequence, reused)
    decode(model, sequence, dense)
    ours, reference = (s.seen['end'].scores[3].received() for s in (reused, dense))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_cache_read_before_a_complete_pass_is_refused(model, sequence):
    cache = new_cache(model, sequence)
    with pytest.raises(ValueError, match='layer 0 of the cache'):
        decode(model, sequence, Scripted({0: [1, 2]}, cache=cache))
    decode(model, sequence, Scripted(skip=frozenset({2, 3}), cache=cache))
    with pytest.raises(ValueError, match='layer 2 of the cache'):
        decode(model, sequence, Scripted({2: [1, 2]}, cache=cache))


LAYOUT = TokenLayout(n_views=2, patches_per_view=4, prompt_length=5, n_placeholders=3)


def test_layout_names_every_token_once():
    parts = [range(1), LAYOUT.view(0), LAYOUT.view(1), [LAYOUT.proprio], LAYOUT.text]
    parts += [LAYOUT.placeholders, [LAYOUT.eos]]
    assert [i for part in parts for i in part] == list(range(LAYOUT.length))
    assert [*LAYOUT.visual] == [*LAYOUT.view(0), *LAYOUT.view(1)]


@pytest.mark.parametrize(
    ('kept', 'message'),
    [
        (torch.arange(1, LAYOUT.length), 'protected'),
        (torch.arange(0, LAYOUT.length - 1), 'protected'),
        (torch.arange(LAYOUT.length).flip(0), 'ascending'),
        (torch.arange(LAYOUT.length) + 1, 'not live'),
        (torch.arange(LAYOUT.length).float(), 'int64'),
        (torch.arange(3), '3 ids'),
    ],
)
def test_wrong_answers_of_a_selector_are_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        check_kept(kept, torch.arange(LAYOUT.length), LAYOUT)


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        (PassPlan(points=frozenset({5})), 'cut points'),
        (PassPlan(skip_layers=frozenset({4})), 'layers'),
        (PassPlan(scores={-1: ScoreRequest(range(1), range(1))}), 'layers'),
        (
            PassPlan(scores={1: ScoreRequest(range(1), range(1))}, skip_layers=frozenset({1})),
            'skipped',
        ),
    ],
)
def test_impossible_plans_are_refused(model, sequence, plan, message):
    selector = Scripted()
    selector.begin = lambda layout, embeddings: plan
    with pytest.raises(ValueError, match=message):
        decode(model, sequence, selector)


def test_selector_needs_batch_one(model, sequence):
    two = sequence.embeddings.expand(2, -1, -1)
    with pytest.raises(ValueError, match='batch size 1'):
        model.decoder(two, selector=Scripted(), layout=sequence.layout)


def test_rms_norm_uses_1e_6(model):
    assert LlamaConfig().norm_eps == 1e-6
    assert {m.eps for m in model.modules() if isinstance(m, RMSNorm)} == {1e-6}
    x = torch.full((1, 4), 1e-3)
    torch.testing.assert_close(RMSNorm(4, 1e-6)(x), torch.full((1, 4), 0.5**0.5))


def test_rotation_is_half_split_and_depends_on_the_difference_of_positions():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(i, j):
        a, b = (rope_table(torch.tensor([p]), 8, 1e4, torch.float32) for p in (i, j))
        return (rotate(q, a) * rotate(k, b)).sum()

    torch.testing.assert_close(product(3, 1), product(10, 8))
    one = rotate(
        torch.eye(8)[:1][None, None], rope_table(torch.tensor([1]), 8, 1e4, torch.float32)
    )
    torch.testing.assert_close(one[0, 0, 0, [0, 4]], torch.tensor([math.cos(1), math.sin(1)]))


def test_per_sample_positions_equal_shared_ones():
    torch.manual_seed(0)
    decoder = Decoder(LlamaConfig(16, 2, 2, 24, 10))
    x = torch.randn(2, 6, 16)
    positions = torch.tensor([0, 1, 5, 6, 9, 10])
    with torch.inference_mode():
        shared = decoder(x, position_ids=positions).hidden
        single = decoder(x, position_ids=positions.expand(2, -1)).hidden
    torch.testing.assert_close(shared, single, rtol=0, atol=1e-6)
