# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels against torch on odd shapes: in Triton's interpreter on a CPU, or on a GPU.

Not collected by itself: test_kernels.py runs it in a process of its own, with the interpreter
switched on before Triton is imported. The interpreter has no correct bfloat16.
"""

import os

import numpy as np
import pytest
import torch
from tiny import inputs, tiny_model

from vla_prune_ros.runtime import engine, fast, images
from vla_prune_ros.runtime.kernels import pictures
from vla_prune_ros.runtime.kernels.attention import attention
from vla_prune_ros.runtime.kernels.compact import compact
from vla_prune_ros.runtime.kernels.gelu import bias_gelu
from vla_prune_ros.runtime.kernels.layer_norm import add_scale_layer_norm
from vla_prune_ros.runtime.kernels.linear_small import linear_small
from vla_prune_ros.runtime.kernels.mark_best import mark_best
from vla_prune_ros.runtime.kernels.operations import TritonOperations
from vla_prune_ros.runtime.kernels.rms_norm import add_rms_norm
from vla_prune_ros.runtime.kernels.rope import rope
from vla_prune_ros.runtime.kernels.small import add_rms_norm_small, rescaled, swiglu_small
from vla_prune_ros.runtime.kernels.swiglu import swiglu
from vla_prune_ros.runtime.quantization import quantised, quantize
from vla_prune_ros.vla import jpeg
from vla_prune_ros.vla.decoder import rope_table
from vla_prune_ros.vla.operations import GROUP, TORCH, rotate, use
from vla_prune_ros.vla.pictures import crop_table, preprocess_image
from vla_prune_ros.vla.selection import PassPlan

F = torch.nn.functional
DEVICE = os.environ.get('KERNEL_DEVICE', 'cpu')
TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
TYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == 'cuda' else [])]
SHAPES = [(1, 32), (5, 100), (3, 4096), (2, 1152)]


@pytest.fixture(params=TYPES, ids=str)
def dtype(request):
    torch.manual_seed(0)
    return request.param


def draw(dtype, *shape):
    return torch.randn(shape, device=DEVICE).to(dtype)


def close(found, wanted, dtype, factor=1):
    tolerance = factor * TOLERANCE[dtype]
    torch.testing.assert_close(found.float(), wanted.float(), rtol=tolerance, atol=tolerance)


def close_in_bits(small, wanted):
    """Whether 8 bits and scales are those of torch; an edge may fall on either side."""
    values, scales = small
    exact = quantised(wanted, 'int8')
    torch.testing.assert_close(scales, exact.scales, rtol=1e-5, atol=0)
    difference = (values.int() - exact.values.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.01


@pytest.mark.parametrize('with_delta', [True, False])
@pytest.mark.parametrize(('m', 'd'), SHAPES)
def test_add_rms_norm(m, d, with_delta, dtype):
    wide, delta, weight = draw(dtype, m, d + 7), draw(dtype, m, d), draw(dtype, d)
    x = wide[:, :d]  # rows that are apart
    before, total = x.clone(), x + delta if with_delta else x
    found = add_rms_norm(x, delta if with_delta else None, weight, 1e-6)
    assert torch.equal(x, before)
    if with_delta:
        assert torch.equal(delta, total)
    wanted = F.rms_norm(total.float(), (d,), weight.float(), 1e-6)
    close(found, wanted, dtype)
    if with_delta:
        delta.copy_(total - x)  # about: the sum is rounded again
        total = x + delta
        wanted = F.rms_norm(total.float(), (d,), weight.float(), 1e-6)
    close_in_bits(
        add_rms_norm_small(x, delta if with_delta else None, weight, 1e-6, 'int8'), wanted
    )


@pytest.mark.parametrize('kind', ['scaled', 'plain', 'alone'])
@pytest.mark.parametrize(('m', 'd'), SHAPES)
def test_add_scale_layer_norm(m, d, kind, dtype):
    x, delta, weight, bias, scale = (draw(dtype, *s) for s in ((m, d), (m, d), (d,), (d,), (d,)))
    scale = scale if kind == 'scaled' else None
    wanted = x if kind == 'alone' else x + delta if scale is None else x.addcmul(delta, scale)
    found = add_scale_layer_norm(x, None if kind == 'alone' else delta, scale, weight, bias, 1e-6)
    if kind != 'alone':
        close(delta, wanted, dtype)
    wanted = F.layer_norm(
        (x if kind == 'alone' else delta).float(), (d,), weight.float(), bias.float(), 1e-6
    )
    close(found, wanted, dtype, 4)


@pytest.mark.parametrize(('m', 'width'), [(3, 56), (2, 1500), (1, 11008)])
def test_activations(m, width, dtype):
    x, bias = draw(dtype, m, 2 * width), draw(dtype, 2 * width)
    gate, up = x.float().chunk(2, -1)
    close(swiglu(x), F.silu(gate) * up, dtype)
    small = swiglu_small(x, 'int8')
    close_in_bits(small, F.silu(gate) * up)
    close(bias_gelu(x.clone(), bias), F.gelu(x.float() + bias.float()), dtype)


@pytest.mark.parametrize(('heads', 'width', 'm'), [(4, 8, 7), (3, 20, 5), (32, 128, 2)])
def test_rope(heads, width, m, dtype):
    qkv, ids = draw(dtype, m, 3 * heads * width), torch.randint(0, 600, (m,), device=DEVICE)
    table = rope_table(torch.arange(600, device=DEVICE), width, 1e4, dtype)[..., ids, :]
    parts = qkv.view(1, m, 3, heads, width).permute(2, 0, 3, 1, 4)
    wanted, values = rotate(parts[:2].float(), table.float()), parts[2].clone()
    rope(qkv, table, heads)
    close(parts[:2], wanted, dtype)
    assert torch.equal(parts[2], values)


@pytest.mark.parametrize(
    ('heads', 'width', 'm', 'live'),
    [(2, 24, 9, 9), (3, 128, 70, 65), (1, 16, 130, 3), (2, 8, 1, 1)],
)
def test_attention_over_the_first_keys(heads, width, m, live, dtype):
    packed = draw(dtype, m, 3, heads, width)
    packed[live:] = torch.nan  # nothing behind the count is read
    q, k, v = packed.permute(1, 2, 0, 3)
    found = attention(q, k, v, torch.tensor([live], dtype=torch.int32, device=DEVICE))
    q, k, v = (t[:, :live].float() for t in (q, k, v))
    wanted = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(live, -1)
    close(found[:live], wanted, dtype)
    assert not found[live:].any()


def test_products_of_small_numbers_are_rescaled(dtype):
    whole = torch.randint(-40000, 40000, (5, 1100), dtype=torch.int32, device=DEVICE)
    rows, columns = (torch.rand(n, 1, device=DEVICE) / 1000 for n in whole.shape)
    found = rescaled(whole, rows, columns, dtype)
    assert found.dtype == dtype
    close(found, TORCH.rescaled(whole, rows, columns, dtype), dtype)


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize(
    ('m', 'k', 'n', 'splits'),
    [(1, 16, 3, None), (5, 300, 70, 1), (17, 300, 70, 3), (40, 520, 65, 5), (70, 128, 130, None),
     (300, 200, 9, 2)],
)  # fmt: skip
def test_products_with_small_weights(m, k, n, splits, bits, dtype):
    values = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=DEVICE)
    rows = torch.rand(m, 1, device=DEVICE) / 100
    if bits == 8:
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=DEVICE)
        columns = torch.rand(n, 1, device=DEVICE) / 100
    else:
        groups = -(-k // GROUP)
        weight = torch.randint(0, 256, (n, groups * GROUP // 2), dtype=torch.uint8, device=DEVICE)
        columns = (torch.randn(n, groups, device=DEVICE) / 100).to(dtype)
    for _ in range(2):  # the counters of the first run are at 0 again
        found = linear_small(values, rows, weight, columns, dtype, splits)
        if bits == 8:
            whole = (values.double() @ weight.double().t()).int()  # sizes that libraries refuse
            wanted = TORCH.rescaled(whole, rows, columns, dtype)
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        else:  # sums of a group are exact; those of groups are rounded in another order
            wanted = TORCH.linear_small(values, rows, weight, columns, torch.float32)
            scale = wanted.abs().max().item()
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=1e-6 * scale)


def test_the_best_are_marked_as_a_stable_sort_does(dtype):
    rng = np.random.default_rng(0)
    for views, patches, tables in ((1, 1, 1), (2, 33, 3), (3, 130, 1)):
        for few in (2, 1000):  # many equal ones, and hardly any
            drawn = rng.integers(-few, few, (tables, views, patches)).astype(np.float32)
            drawn[rng.random(drawn.shape) < 0.2] = -np.inf
            drawn[rng.random(drawn.shape) < 0.05] = np.inf
            drawn[rng.random(drawn.shape) < 0.05] = np.nan
            drawn[rng.random(drawn.shape) < 0.05] = -0.0
            values = torch.from_numpy(drawn).to(DEVICE, dtype)
            for table in (values, values[0].t().contiguous().t()):
                for counts in ([patches // 2] * views, [*range(views)]):
                    assert torch.equal(mark_best(table, counts), TORCH.mark_best(table, counts))
            assert mark_best(values, [patches + 1] * views).equal((values > -np.inf).any(0))


@pytest.mark.parametrize(('rows', 'width'), [(1, 8), (13, 100), (130, 72), (7, 4096)])
def test_kept_rows_are_moved_together_and_counted_on_the_device(rows, width, dtype):
    ids = torch.arange(rows, device=DEVICE) * 3 + 1
    for share in (0.0, 0.3, 1.0):
        keep = torch.rand(rows, device=DEVICE) < share
        x = draw(dtype, rows, width + 5)[:, :width]  # rows that are apart
        x[~keep] = torch.nan  # nothing of what goes is seen again
        for capacity in {1, (rows + 1) // 2, rows, rows + 3}:
            found, wanted = (
                (torch.full((capacity,), -1, device=DEVICE),
                 torch.full((1,), -1, dtype=torch.int32, device=DEVICE))
                for _ in range(2)
            )  # fmt: skip
            packed = compact(keep, x, ids, *found, 99)
            assert torch.equal(packed, TORCH.compact(keep, x, ids, *wanted, 99))
            there = min(capacity, int(keep.sum()))
            assert packed.dtype == dtype and torch.equal(packed[:there], x[keep][:there])
            assert not packed[there:].any()
            for ids_there, count in (found, wanted):
                assert count.tolist() == [there]
                assert torch.equal(ids_there[:there], ids[keep][:there])
                assert ids_there[there:].eq(99).all()


# -- pictures -------------------------------------------------------------------------------
@pytest.mark.parametrize(('height', 'width'), [(16, 16), (17, 33), (3, 5), (1, 1), (40, 24)])
def test_pictures_to_the_last_bit(height, width):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    frames[1] = (rng.random((height, width, 1)) > 0.5) * 255
    given = torch.from_numpy(frames).to(DEVICE)
    decoded = pictures.jpeg_round_trip(given, *jpeg.tables(given.device))
    assert torch.equal(decoded, jpeg.round_trip(given))
    rows, columns = (images._taps(n, 24, given.device) for n in (height, width))
    small = pictures.resize(given, rows, columns)
    assert torch.equal(small, images.TorchSteps.resize(given, rows, columns))
    crop = [torch.from_numpy(t).to(DEVICE) for t in crop_table(24)]
    assert torch.equal(pictures.crop(small, *crop), images.TorchSteps.crop(small, *crop))


def test_the_pipeline_with_kernels_gives_the_pictures_of_the_host(monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, 'triton')
    pipeline = images.DeviceImages(28, torch.device(DEVICE))
    pipeline._on_host = False
    frames = np.random.default_rng(1).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    for picture, frame in zip(pipeline([*frames]).cpu().numpy(), frames, strict=True):
        np.testing.assert_array_equal(picture, preprocess_image(frame, 28))


# -- the whole network through the same seams ---------------------------------------------------
@pytest.mark.parametrize('film', [False, True])
def test_the_network_gives_the_same_with_kernels(film):
    model = tiny_model(3, film=film).to(DEVICE)
    model.decoder.fuse()
    ask = [tensor.to(DEVICE) for tensor in inputs(model.config)]
    outs = []
    for operations in (TORCH, TritonOperations()):
        use(model, operations)
        with torch.inference_mode():
            outs.append(model(*ask))
    torch.testing.assert_close(outs[1].actions, outs[0].actions, rtol=0, atol=2e-5)
    torch.testing.assert_close(outs[1].readout, outs[0].readout, rtol=0, atol=2e-4)
    assert not torch.equal(outs[1].readout, outs[0].readout), 'no kernel was used'


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_a_network_of_small_numbers_gives_the_same_with_kernels(kind):
    model = tiny_model(3).to(DEVICE)
    quantize(model, kind)
    ask = [tensor.to(DEVICE) for tensor in inputs(model.config)]
    outs = []
    for operations in (TORCH, TritonOperations()):
        use(model, operations)
        with torch.inference_mode():
            outs.append(model(*ask).actions)
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=0.02)
    assert not torch.equal(outs[1], outs[0]), 'no kernel was used'


class Cut:
    """Leaves some visual tokens before layer 1 and fewer before layer 2."""

    def begin(self, layout, embeddings):
        return PassPlan(frozenset({1, 2}))

    def select(self, point, tokens):
        count = 11 if point == 1 else 5
        return tokens.layout.keep(torch.arange(1, 1 + count, device=tokens.ids.device))

    def end(self, tokens):
        pass


class Again:
    """Stands for a graph where none can be recorded: does the work once more."""

    name = 'again'

    def __init__(self, device):
        pass

    def capture(self, work, written=()):
        graph = Again(None)
        graph.work, graph.outputs = work, list(work())
        return graph

    def replay(self):
        for output, result in zip(self.outputs, self.work(), strict=True):
            output.copy_(result)

    def used_bytes(self):
        return 0


def test_filled_rows_change_nothing_with_kernels(monkeypatch):
    if DEVICE == 'cpu':
        monkeypatch.setitem(engine.BACKENDS, 'cpu', Again)
    model = tiny_model(3).to(DEVICE)
    model.decoder.fuse()
    frames = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8).numpy()
    ask = frames, inputs(model.config)[1], torch.zeros(8).numpy()
    use(model, TORCH)
    wanted = engine.PlainEngine(model)(*ask, Cut())
    use(model, TritonOperations())
    filled = engine.GraphEngine(model)
    for _ in range(2):
        found = filled(*ask, Cut())
        torch.testing.assert_close(found.actions, wanted.actions, rtol=0, atol=2e-5)
        assert torch.equal(found.kept, wanted.kept)
    assert filled._space.cuts[2].count.item() == len(wanted.position_ids)


def test_the_switch_finds_the_kernels(monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, 'triton')
    assert fast.operations_for(torch.device(DEVICE)).name == 'triton'
    monkeypatch.setenv(fast.VARIABLE, 'torch')
    assert fast.operations_for(torch.device(DEVICE)) is TORCH
