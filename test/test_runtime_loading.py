# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is loaded into its final form: the same weights, and nothing in memory twice."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny import inputs, tiny_checkpoint

from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.runtime.loading import Quantising, taker
from vla_prune_ros.runtime.quantization import SmallLinear, quantised, quantize
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import save_pretrained
from vla_prune_ros.vla.fusing import SideBySide, as_one_matrix
from vla_prune_ros.vla.parts import LlamaConfig

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('loading'), seed=4)


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """150 MB in float32, the largest tensor 12 MB."""
    return tiny_checkpoint(
        tmp_path_factory.mktemp('large'), llama=LlamaConfig(1024, 3, 4, 2816, 256)
    )


def run(model):
    with torch.inference_mode():
        return model(*(t.to(model.dtype) if t.is_floating_point() else t
                       for t in inputs(model.config))).actions  # fmt: skip


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_side_by_side_is_the_same_model_under_the_same_names(directory, tmp_path, dtype):
    plain = OpenVLAOFT.from_pretrained(directory, dtype)
    joined = OpenVLAOFT.from_pretrained(directory, dtype, take=SideBySide(dtype, CPU))
    own, theirs = joined.state_dict(), plain.state_dict()
    assert [*own] == [*theirs] and all(torch.equal(own[k], theirs[k]) for k in own)
    with torch.no_grad():
        for layer in joined.decoder.layers:
            assert as_one_matrix(layer.self_attn.inward) is not None
            assert as_one_matrix(layer.mlp.inward) is not None
    places = [p.data_ptr() for p in joined.parameters()]
    joined.decoder.fuse()
    assert places == [p.data_ptr() for p in joined.parameters()]
    plain.decoder.fuse()
    assert torch.equal(run(joined), run(plain))
    save_pretrained(joined, tmp_path, torch.float32)
    if dtype == torch.float32:
        before, after = (load_file(d / 'model.safetensors') for d in (directory, tmp_path))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    joined.decoder.pack()  # takes the matrix as it is
    assert joined.decoder.layers[0].mlp.packed.weight.data_ptr() in places


@pytest.mark.parametrize('kind', ['int8', 'int4'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_quantised_while_it_is_read_is_quantised_afterwards(directory, kind, dtype):
    small = OpenVLAOFT.from_pretrained(directory, dtype, take=Quantising(kind, dtype, CPU))
    after = OpenVLAOFT.from_pretrained(directory, dtype)
    quantize(after, kind)
    own, theirs = small.state_dict(), after.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)
    assert all(own[k].dtype == theirs[k].dtype for k in own)
    before = [m for m in small.modules() if isinstance(m, SmallLinear)]
    quantize(small, kind)
    assert [m for m in small.modules() if isinstance(m, SmallLinear)] == before
    assert torch.equal(run(small), run(after))
    with pytest.raises(ValueError, match='cannot be saved'):
        save_pretrained(small, directory / 'nowhere')


def test_float8_is_that_of_the_whole_weight_and_what_does_not_fit_stays_wide(directory):
    small = OpenVLAOFT.from_pretrained(
        directory, torch.bfloat16, take=Quantising('fp8', torch.bfloat16, CPU)
    )
    wide = OpenVLAOFT.from_pretrained(directory, torch.bfloat16)
    wide.decoder.pack()
    for ours, theirs in zip(small.decoder.layers, wide.decoder.layers, strict=True):
        values, scales = quantised(theirs.self_attn.packed.weight, 'fp8')[:2]
        packed = ours.self_attn.packed
        assert torch.equal(packed.weight.float(), values.float())
        assert torch.equal(packed.scales, scales)
        down = ours.mlp.down_proj  # 56 inputs are no multiple of 16
        assert type(down) is torch.nn.Linear
        assert torch.equal(down.weight, theirs.mlp.down_proj.weight)


def test_a_policy_takes_weights_over_as_it_needs_them(directory):
    policy = VLAPolicy.from_pretrained(directory, quantization='int8')
    assert policy.info()['quantization'] == 'int8'
    assert isinstance(policy.model.decoder.layers[0].mlp.packed, SmallLinear)
    assert taker('none', torch.float32, 'cpu') is None
    assert isinstance(taker('none', torch.bfloat16, 'cuda'), SideBySide)
    with pytest.raises(ValueError, match='int5'):
        VLAPolicy.from_pretrained(directory / 'not read', quantization='int5')


CODE = """
import json, sys, torch
from vla_prune_ros.runtime.loading import Quantising
from vla_prune_ros.runtime.quantization import quantize
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.fusing import SideBySide

small, large, way, kind = sys.argv[1:]
torch.set_num_threads(1)

def load(directory):
    cpu = torch.device('cpu')
    if kind == 'none':
        if way == 'while':
            return OpenVLAOFT.from_pretrained(directory, take=SideBySide(torch.float32, cpu))
        model = OpenVLAOFT.from_pretrained(directory)
        model.decoder.fuse()
        return model
    if way == 'while':
        take = Quantising(kind, torch.float32, cpu)
        return OpenVLAOFT.from_pretrained(directory, take=take)
    model = OpenVLAOFT.from_pretrained(directory)
    quantize(model, kind)
    return model

def memory(name):
    with open('/proc/self/status') as status:
        (line,) = (line for line in status if line.startswith(name))
    return int(line.split()[1]) * 1024

load(small)  # libraries are in memory from here on
before = memory('VmRSS')
with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # the peak starts anew
model = load(large)
tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
           for t in [*model.parameters(), *model.buffers(), *model.unused.values()]}
print(json.dumps({'before': before, 'peak': memory('VmHWM'), 'after': memory('VmRSS'),
                  'model': sum(tensors.values())}))
"""


def measured(small, large, way, kind):
    """Bytes beyond the model: at most while it was loaded, and at the end."""
    run = subprocess.run(
        [sys.executable, '-c', CODE, str(small), str(large), way, kind],
        capture_output=True, text=True, check=True,
        # Whatever is freed goes back to the system at once.
        env={**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'},
    )  # fmt: skip
    found = json.loads(run.stdout)
    used = found['before'] + found['model']
    return found['peak'] - used, found['after'] - used


@pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason='peaks need Linux')
@pytest.mark.parametrize(
    'kind',
    ['none', 'int8', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('int4', 'fp8'))],
)
def test_loading_holds_no_second_copy(directory, large, kind):
    stored = load_file(large / 'model.safetensors')
    largest = max(t.numel() * t.element_size() for t in stored.values())
    spare = 6 << 20
    peak, end = measured(directory, large, 'while', kind)
    assert end < spare
    assert peak - end < largest + spare
    if kind == 'int8':  # it is measured: what is converted afterwards was all there before
        late, _ = measured(directory, large, 'afterwards', kind)
        assert late > 6 * largest
