# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The FLOP count against torch's own counter, a hand count and the published model."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vla_prune_ros.evaluation.flops import (
    LayerWork,
    PassWork,
    WorkMeter,
    layer_flops,
    query_flops,
    tower_flops,
)
from vla_prune_ros.runtime.engine import GraphEngine
from vla_prune_ros.runtime.workspace import TEXT_STEP, bucket_counts
from vla_prune_ros.vla import LlamaConfig, OpenVLAConfig, OpenVLAOFT, TowerConfig
from vla_prune_ros.vla.selection import PassPlan, ScoreRequest, SlotCache, TokenLayout

TINY = OpenVLAConfig(
    featurizer=TowerConfig(24, 3, 2, 40, 14, 42, reg_tokens=2, class_token=True, layer_scale=True),
    fused_featurizer=TowerConfig(16, 4, 2, 36, 14, 42),
    llama=LlamaConfig(hidden_size=32, n_layers=5, n_heads=4, mlp_hidden=48, vocab_size=60),
    chunk_len=4,
    pad_id=0,
)
VIEWS, PROMPT = 2, 11


class Scripted:
    """Keeps the first visual tokens of the live ones, as many as `cuts` says at each point."""

    def __init__(self, cuts, **plan):
        self.cuts = cuts
        self.plan = PassPlan(points=frozenset(cuts), **plan)

    def begin(self, layout, embeddings):
        return self.plan

    def select(self, point, tokens):
        visual = tokens.ids[(tokens.ids >= 1) & (tokens.ids < tokens.layout.proprio)]
        return tokens.layout.keep(visual[: self.cuts[point]])

    def end(self, tokens):
        pass


class ListedCuts(Scripted):
    """A cut that keeps everything by answering None."""

    def select(self, point, tokens):
        return None


def run(model, selector, count):
    pixels = torch.rand(1, 6 * VIEWS, 42, 42)
    prompt = torch.randint(3, 60, (1, PROMPT))
    with torch.no_grad():
        if not count:
            return model(pixels, prompt, torch.zeros(1, 8), selector=selector)
        # The counter does not know the CPU's fused kernel: let it count the plain one.
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with plain, FlopCounterMode(display=False) as counter:
            model(pixels, prompt, torch.zeros(1, 8), selector=selector)
    return counter.get_total_flops()


def full_cache(model):
    """A cache that a complete pass has filled."""
    llama, layout = TINY.llama, TokenLayout(VIEWS, 9, PROMPT, TINY.n_placeholders)
    cache = SlotCache(
        llama.n_layers, layout.length, llama.n_heads, llama.head_dim, torch.float32, 'cpu'
    )
    run(model, Scripted({}, cache=cache), count=False)
    return cache


PLANS = {
    'dense without selector': lambda model: None,
    'dense with selector': lambda model: ListedCuts({2: 0}),
    'cut before layer 0': lambda model: Scripted({0: 7}),
    'two cuts': lambda model: Scripted({1: 12, 3: 4}),
    'cut after the last layer': lambda model: Scripted({5: 3}),
    'skipped layers': lambda model: Scripted({2: 8}, skip_layers=frozenset({3, 4})),
    'scores on the way': lambda model: Scripted(
        {2: 6}, scores={0: ScoreRequest(range(20, 25), range(1, 19))}
    ),
    'scores behind a cut': lambda model: Scripted(
        {1: 6}, scores={3: ScoreRequest(range(20, 25), range(1, 19))}
    ),
    'cached keys': lambda model: Scripted({1: 5}, cache=full_cache(model)),
    'scores over cached keys': lambda model: Scripted(
        {1: 5},
        cache=full_cache(model),
        scores={3: ScoreRequest(range(20, 25), range(1, 19))},
    ),
}


@pytest.mark.parametrize('plan', PLANS)
def test_count_equals_torchs_counter(plan):
    torch.manual_seed(0)
    model = OpenVLAOFT(TINY).eval()
    selector = PLANS[plan](model)
    meter = WorkMeter(model.decoder)
    counted = run(model, selector, count=True)
    assert sum(query_flops(TINY, meter.last).values()) == counted


def test_recorded_passes_are_counted_with_their_filling(stand_in):
    model = OpenVLAOFT(TINY).eval()
    meter, engine = WorkMeter(model.decoder), GraphEngine(model)
    frames = np.zeros((VIEWS, 42, 42, 3), np.uint8)
    for _ in range(2):  # recorded, replayed
        engine(frames, torch.full((1, PROMPT), 5), np.zeros(8), Scripted({1: 12, 3: 4}))
        layout = meter.last.layout
        text = (layout.n_visual - layout.length) % TEXT_STEP
        rows = np.array(meter.last.visual_rows) - text
        assert rows.tolist() == [18, 12, 12, 4, 4]
    counts = bucket_counts(layout)
    engine(frames, torch.full((1, 4 * TEXT_STEP - 30), 5), np.zeros(8), Scripted({1: 17}))
    layout = meter.last.layout
    assert layout.length - layout.n_visual == 4 * TEXT_STEP  # a full class
    assert meter.last.visual_rows == (18, *[min(n for n in counts if n >= 17)] * 4)


def test_visual_rows_follow_the_cuts():
    model = OpenVLAOFT(TINY).eval()
    meter = WorkMeter(model.decoder)
    run(model, Scripted({1: 12, 3: 4}, skip_layers=frozenset({4})), count=False)
    assert meter.last.visual_rows == (18, 12, 12, 4, 0)
    run(model, None, count=False)
    assert meter.last.visual_rows == (18,) * 5


def test_watching_changes_no_bit_and_ends_with_close():
    torch.manual_seed(1)
    model = OpenVLAOFT(TINY).eval()
    torch.manual_seed(2)
    before = run(model, Scripted({1: 6}), count=False).actions
    meter = WorkMeter(model.decoder)
    torch.manual_seed(2)
    assert torch.equal(run(model, Scripted({1: 6}), count=False).actions, before)
    meter.close()
    meter.last = None
    run(model, None, count=False)
    assert meter.last is None


def test_one_layer_by_hand():
    config = OpenVLAConfig(llama=LlamaConfig(hidden_size=4, n_heads=1, mlp_hidden=6))
    # 3 rows: q, k, v, o are 4x4, gate and up 4x6, down 6x4; 5 keys, once q k^T, once p v.
    macs = 3 * (4 * 16 + 3 * 24) + 3 * 5 * 4 + 3 * 5 * 4
    assert layer_flops(config, LayerWork(rows=3, keys=5)) == 2 * macs
    assert layer_flops(config, LayerWork(0, 0)) == 0


def test_published_model_has_the_known_gigaflops():
    # By arithmetic from the published shapes, n = 601: towers 737 without their unused last
    # blocks, projector 73, decoder 7974, head 2.4 GFLOP.
    config = OpenVLAConfig()
    layout = TokenLayout(2, 256, 31, 56)
    assert layout.length == 601
    work = PassWork(layout, (LayerWork(601, 601),) * 32)
    giga = {part: flops / 1e9 for part, flops in query_flops(config, work).items()}
    assert giga['vision'] == pytest.approx(737, abs=1)
    assert giga['projectors'] == pytest.approx(73, abs=0.5)
    assert giga['decoder'] == pytest.approx(7974, abs=1)
    assert giga['head'] == pytest.approx(2.4, abs=0.05)
    # one picture, all 24 and 27 blocks: 164.6 and 219.0 GFLOP
    for tower, known in ((config.featurizer, 164.6), (config.fused_featurizer, 219.0)):
        built = tower_flops(tower) / 1e9
        assert built * tower.depth / (tower.depth - 1) == pytest.approx(known, rel=2e-3)
