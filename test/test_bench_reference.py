# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The plain path of the benchmark gives what the model gives, and does the work it stands for."""

import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import observation
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from vla_prune_ros.benchmark.reference import (
    ATTENTION,
    ReferencePolicy,
    _Part,
    extra_flops,
    published_weights,
)
from vla_prune_ros.evaluation.flops import LayerWork, PassWork, query_flops
from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.processor import pixel_values
from vla_prune_ros.vla.selection import TokenLayout

GOLDEN = Path(__file__).parent / 'data' / 'oft_tiny'


@pytest.fixture(scope='module')
def policy(checkpoint):
    return VLAPolicy.from_pretrained(checkpoint)


@pytest.mark.parametrize('attention', ATTENTION)
def test_actions_are_those_of_the_dense_policy(policy, attention):
    reference = ReferencePolicy(policy.model, policy.processor, attention)
    for seed in range(3):
        seen = observation(seed, stamp=0.4 * seed)
        ours, plain = policy.step(seen), reference.step(seen)
        np.testing.assert_allclose(plain.actions, ours.actions, rtol=0, atol=2e-5)
        np.testing.assert_array_equal(plain.kept, ours.kept)
        assert {'preprocess', 'vision', 'decoder', 'head', 'postprocess', 'total'} == {
            *plain.timing
        }


@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('number', [0, 1, 2])
def test_states_of_the_released_code_come_out(tmp_path_factory, attention, number):
    directory = tmp_path_factory.mktemp('golden')
    with zipfile.ZipFile(GOLDEN / 'checkpoint.zip') as archive:
        archive.extractall(directory)
    model = OpenVLAOFT.from_pretrained(directory)
    reference = ReferencePolicy(model, None, attention)
    with np.load(GOLDEN / f'case_{number}.npz') as arrays:
        case = dict(arrays)
    ids = torch.from_numpy(np.append(case['prompt_ids'], 29871))[None]
    with torch.inference_mode():
        visual = reference._project(reference._see(pixel_values(case['frames'])))
        np.testing.assert_allclose(
            visual[0], case['embeddings'][1 : 1 + visual.shape[1]], rtol=0, atol=1e-5
        )
        reference._blank = 29871
        complete, mask = reference._complete_prompt(ids[:, :-1])
        assert complete[0, : ids.shape[1]].tolist() == ids[0].tolist()
        slots = mask[0].nonzero().flatten()
        assert slots.tolist() == [*range(ids.shape[1], ids.shape[1] + 56)]
        states, logits = reference._decode(torch.from_numpy(case['embeddings'])[None])
        last = states[-1][:, -58:-2]
        actions = model.action_head(last)
    np.testing.assert_allclose(last[0], case['readout'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(actions[0], case['actions_norm'], rtol=0, atol=1e-5)
    assert logits.dtype == torch.float32
    assert logits.shape[1] == case['embeddings'].shape[0]


class LiveBuffers(TorchDispatchMode):
    """The largest number of buffers of one size that were alive at the end of an operation."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.most, self._seen = numel, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.numel() == self.numel:
                storage = tensor.untyped_storage()
                self._seen[storage.data_ptr()] = weakref.ref(storage)
                del storage
        alive = sum(storage() is not None for storage in self._seen.values())
        self.most = max(self.most, alive)
        return out


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_eager_is_llamas_eager_attention_in_values_and_in_buffers(policy, dtype):
    # A further map alive in the softmax costs a third of the attention's processor time.
    sizes = policy.config.llama
    config = LlamaConfig(
        hidden_size=sizes.hidden_size, num_attention_heads=sizes.n_heads,
        num_hidden_layers=1, rope_theta=sizes.rope_theta, attn_implementation='eager',
    )  # fmt: skip
    reference = ReferencePolicy(policy.model, policy.processor, 'maps')
    prefix, n = 'language_model.model.layers.0.', 37
    weights = {k: v.to(dtype) for k, v in reference.weights.items() if k.startswith(prefix)}
    theirs = LlamaAttention(config, 0).to(dtype).eval()
    theirs.load_state_dict({
        name: weights[f'{prefix}self_attn.{name}'] for name in theirs.state_dict()
    })  # fmt: skip
    x = torch.randn(1, n, sizes.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    positions = torch.arange(n)[None]
    mask = torch.zeros(1, 1, n, n, dtype=dtype)
    with torch.inference_mode():
        rope = LlamaRotaryEmbedding(config)(x, positions)
        with LiveBuffers(sizes.n_heads * n * n) as upstream:
            wanted = theirs(x, rope, mask)[0]
        with LiveBuffers(sizes.n_heads * n * n) as ours:
            out, _ = reference._attend(_Part(weights, prefix), x, positions, mask)
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(out, wanted, rtol=0, atol=tolerance)
    assert ours.most == upstream.most


def test_it_spends_what_the_dense_model_saves_and_nothing_else(policy):
    reference = ReferencePolicy(policy.model, policy.processor, 'maps')
    seen = observation()
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter:
        reference.step(seen)
    config = policy.config
    length = policy.processor.prompt(seen.instruction)[0].shape[1]
    layout = TokenLayout(2, config.patches_per_view, length, config.n_placeholders)
    n = layout.length
    dense = query_flops(config, PassWork(layout, (LayerWork(n, n),) * config.llama.n_layers))
    rope = 2 * config.llama.n_layers * n * config.llama.head_dim // 2  # angles as a product
    extra = sum(extra_flops(config, 2, n).values())
    assert counter.get_total_flops() == sum(dense.values()) + extra + rope


def test_every_published_tensor_is_there_and_those_of_the_model_are_shared(policy):
    weights = published_weights(policy.model)
    head = weights['language_model.lm_head.weight']
    assert head.shape == (policy.config.llama.vocab_size, policy.config.llama.hidden_size)
    shared = weights['language_model.model.layers.0.mlp.up_proj.weight']
    own = policy.model.decoder.layers[0].mlp.up_proj.weight
    assert shared.data_ptr() == own.data_ptr()


def test_an_unknown_attention_is_refused(policy):
    with pytest.raises(ValueError, match='maps, fused'):
        ReferencePolicy(policy.model, policy.processor, 'flash')
