# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The plain path to compare with: OpenVLA-OFT computed the way its released code computes it.

Our own statement of that code (moojink/openvla-oft 213c5ff on its fork of transformers 4.40.1 and
timm 0.9.10), operation by operation, on the weights of a model of ours; doc/benchmark.md says line
by line what is done and why. It gives the actions of the dense model and none of its savings:
every camera and tower for itself, every block of the towers, separate q, k, v, gate and up,
rotary tables and masks made anew in each layer or call, all hidden states and keys kept, logits
of every row in float32, text and pictures processed anew.

`attention` chooses between the two baselines in use: `maps` computes attention maps with a float32
softmax, as every published pruning method that reads scores runs its baseline; `fused` is
the released policy as it is, whose decoder calls torch's fused kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vla_prune_ros.policy import ActionChunk, Observation
from vla_prune_ros.runtime.timers import StageTimer
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import complete_tensors, unused_shapes
from vla_prune_ros.vla.config import (
    DINO_MEAN,
    DINO_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    OpenVLAConfig,
    TowerConfig,
)
from vla_prune_ros.vla.pictures import preprocess_image
from vla_prune_ros.vla.processor import Processor

ATTENTION = ('maps', 'fused')
_IGNORED, _FIRST_ACTION_ID = -100, 31743  # labels of the released code


class ReferencePolicy:
    """Observation in, chunk out, as `VLAPolicy`, but plain. One object serves one thread."""

    def __init__(
        self,
        model: OpenVLAOFT,
        processor: Processor,
        attention: str = 'maps',
        cameras: tuple[str, ...] | None = None,
    ) -> None:
        """Take the weights of a model; nothing is copied but what the model does not hold.

        Args:
            model: the network; tensors that it never had (lm_head, last blocks) are drawn.
            processor: for the same checkpoint.
            attention: `maps` or `fused`, see the module's text.
            cameras: names of the images; default those of the checkpoint.

        Raises:
            ValueError: unknown attention, or a variant that this is not for.
        """
        if model.config.head != 'l1' or model.config.film:
            raise ValueError('the plain reference is for an L1 head without FiLM')
        if attention not in ATTENTION:
            raise ValueError(f'attention {attention!r} is not one of {", ".join(ATTENTION)}')
        self.config = model.config
        self.processor = processor
        self.attention = attention
        self.cameras = model.config.cameras if cameras is None else cameras
        self.weights = published_weights(model)
        self.action_head = model.action_head
        self.proprio_projector = getattr(model, 'proprio_projector', None)
        self.dtype, self.device = model.dtype, model.device
        self._sequence = 0

    @torch.inference_mode()
    def step(self, observation: Observation) -> ActionChunk:
        """Answer an observation with a chunk; every visual token is kept."""
        timer = StageTimer(self.device)
        config, processor = self.config, self.processor
        ids, pixels = self._inputs(observation)
        proprio = None
        if self.proprio_projector is not None:
            proprio = processor.normaliser.normalise_proprio(observation.proprio)
        timer.mark('preprocess')
        ids, mask = self._complete_prompt(ids)
        words = functional.embedding(ids, self.weights['language_model.model.embed_tokens.weight'])
        words[~mask].reshape(1, -1, words.shape[2])  # for FiLM; made, and not used, without it
        visual = self._project(self._see(pixels))
        timer.mark('vision')
        n_visual = visual.shape[1]
        if proprio is not None:
            state = torch.tensor(proprio).to(self.device, self.dtype)
            state = self.proprio_projector(state.reshape(1, -1))[:, None]
            visual = torch.cat([visual, state], dim=1)  # [1, V + 1, D]
        words = words * ~mask[..., None]
        sequence = torch.cat([words[:, :1], visual, words[:, 1:]], dim=1)  # [1, n, D]
        states, _ = self._decode(sequence)
        timer.mark('decoder')
        n_slots = config.n_placeholders
        first = visual.shape[1] + ids.shape[1] - n_slots - 2  # the last prompt token
        out = self.action_head(states[-1][:, first : first + n_slots])
        normalised = out.reshape(config.chunk_len, config.action_dim).float().cpu().numpy()
        timer.mark('head')
        actions = processor.normaliser.unnormalise_actions(normalised)
        self._sequence += 1
        timer.mark('postprocess')
        return ActionChunk(
            actions=actions,
            stamp=observation.stamp,
            kept=np.arange(1, 1 + n_visual),
            mode=f'reference_{self.attention}',
            timing=timer.finish(),
            sequence=self._sequence - 1,
            reset_reason=None,
            n_visual=n_visual,
        )

    # -- inputs --------------------------------------------------------------------------------
    def _inputs(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Prompt ids [1, L-1] and pixels [1, 6*views, S, S]; the prompt once per camera."""
        pixels, prompts = [], []
        for camera in self.cameras:
            image = preprocess_image(observation.images[camera], self.config.image_size)
            prompt = self.processor.tokenizer.prompt_ids(observation.instruction)
            prompts.append(torch.tensor([prompt]).to(self.device))
            pixels.append(self._normalise(image).to(self.device, self.dtype))
        # The tokenizer's own answer ends in front of the blank piece, which is appended later.
        self._blank = prompt[-1]
        return prompts[0][:, :-1], torch.cat(pixels, dim=1)

    @staticmethod
    def _normalise(image: np.ndarray) -> Tensor:
        """Both normalisations of one policy image, one after the other; [1, 6, S, S]."""
        towers = []
        for mean, std in ((DINO_MEAN, DINO_STD), (SIGLIP_MEAN, SIGLIP_STD)):
            pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div(255)
            mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
            towers.append(pixels.sub(mean).div(std))
        return torch.vstack(towers)[None]

    def _complete_prompt(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Append blank piece, placeholders and stop token; mask of the placeholders [1, L+57]."""
        if not torch.all(ids[:, -1] == self._blank):
            blank = torch.tensor([[self._blank]]).to(self.device)
            ids = torch.cat([ids, blank], dim=1)
        labels = torch.full_like(ids, _IGNORED)
        n_slots = self.config.n_placeholders
        slots = torch.ones(1, n_slots).to(self.device).to(ids.dtype)
        stop = torch.ones(1, 1).to(self.device).to(ids.dtype) * self.config.eos_id
        ids = torch.cat([ids, slots, stop], dim=-1)
        fake = torch.ones(1, n_slots + 1).to(self.device).to(ids.dtype) * (_FIRST_ACTION_ID + 1)
        labels = torch.cat([labels, fake], dim=-1)
        labels[:, -1] = self.config.eos_id
        count = torch.cumsum(labels != _IGNORED, dim=1)
        action = labels > _FIRST_ACTION_ID
        current = (count >= 1) & (count <= self.config.action_dim) & action
        following = (count > self.config.action_dim) & action
        return ids, current | following

    # -- vision --------------------------------------------------------------------------------
    def _see(self, pixels: Tensor) -> Tensor:
        """Features of all cameras [1, V, vision_dim]: one call per camera and tower."""
        views = []
        for image in torch.split(pixels, 6, dim=1):
            first, second = torch.split(image, [3, 3], dim=1)
            features = [
                self._tower('featurizer', self.config.featurizer, first),
                self._tower('fused_featurizer', self.config.fused_featurizer, second),
            ]
            views.append(torch.cat(features, dim=2))
        return torch.cat(views, dim=1)

    def _tower(self, name: str, config: TowerConfig, pixels: Tensor) -> Tensor:
        """All blocks of a tower; the states behind the last but one are the features."""
        w = _Part(self.weights, f'vision_backbone.{name}.')
        x = functional.conv2d(
            pixels, w['patch_embed.proj.weight'], w['patch_embed.proj.bias'], config.patch_size
        )
        x = x.flatten(2).transpose(1, 2) + w['pos_embed']
        prefix = [w[n] for n, there in _prefix(config) if there]
        if prefix:
            x = torch.cat([*prefix, x], dim=1)
        taken = x
        for index in range(config.depth):
            x = self._block(w.part(f'blocks.{index}.'), config, x)
            if index == config.depth - 2:
                taken = x
        return taken[:, config.n_prefix :]

    @staticmethod
    def _block(w: _Part, config: TowerConfig, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        h = functional.layer_norm(x, (dim,), w['norm1.weight'], w['norm1.bias'], 1e-6)
        qkv = w.linear('attn.qkv', h).reshape(b, n, 3, config.heads, dim // config.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        h = functional.scaled_dot_product_attention(q, k, v)  # timm's ViT is fused by default
        h = w.linear('attn.proj', h.transpose(1, 2).reshape(b, n, dim))
        x = x + (h * w['ls1.scale_factor'] if config.layer_scale else h)
        h = functional.layer_norm(x, (dim,), w['norm2.weight'], w['norm2.bias'], 1e-6)
        h = w.linear('mlp.fc2', functional.gelu(w.linear('mlp.fc1', h)))
        return x + (h * w['ls2.scale_factor'] if config.layer_scale else h)

    def _project(self, features: Tensor) -> Tensor:
        w = _Part(self.weights, 'projector.')
        h = functional.gelu(w.linear('fc1', features))
        return w.linear('fc3', functional.gelu(w.linear('fc2', h)))

    # -- decoder -------------------------------------------------------------------------------
    def _decode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """All hidden states, the last one normed, and the float32 logits of all rows."""
        config = self.config.llama
        n = x.shape[1]
        positions = torch.arange(n, device=x.device)[None]
        mask = None
        if self.attention == 'maps':  # the fused path finds that nothing is masked, and has none
            mask = torch.zeros(1, 1, n, n, dtype=x.dtype, device=x.device)
        states, cache = [], []
        for index in range(config.n_layers):
            states.append(x)
            w = _Part(self.weights, f'language_model.model.layers.{index}.')
            h, keys_values = self._attend(w, self._norm(x, w['input_layernorm.weight']),
                                          positions, mask)  # fmt: skip
            cache.append(keys_values)
            x = x + h
            h = self._norm(x, w['post_attention_layernorm.weight'])
            gate = functional.silu(w.linear('mlp.gate_proj', h))
            x = x + w.linear('mlp.down_proj', gate * w.linear('mlp.up_proj', h))
        x = self._norm(x, self.weights['language_model.model.norm.weight'])
        states.append(x)
        logits = functional.linear(x, self.weights['language_model.lm_head.weight']).float()
        return states, logits

    def _attend(
        self, w: _Part, x: Tensor, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        heads, head_dim = self.config.llama.n_heads, self.config.llama.head_dim
        q, k, v = (
            w.linear(f'self_attn.{name}_proj', x)
            .view(1, x.shape[1], heads, head_dim)
            .transpose(1, 2)
            for name in 'qkv'
        )
        cos, sin = self._rope(positions, head_dim, x.dtype)
        q, k = ((t * cos) + (_rotate_half(t) * sin) for t in (q, k))
        if self.attention == 'fused':
            out = functional.scaled_dot_product_attention(q, k, v)
        else:
            maps = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(head_dim)  # [1, heads, n, n]
            maps = maps + mask  # one name: never three buffers of this size alive, as upstream
            maps = functional.softmax(maps, dim=-1, dtype=torch.float32).to(q.dtype)
            out = torch.matmul(maps, v)
        out = out.transpose(1, 2).contiguous().view(1, x.shape[1], -1)
        return w.linear('self_attn.o_proj', out), (k, v)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.llama.norm_eps)
        return weight * wide.to(x.dtype)

    def _rope(self, positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, 1, n, head_dim], made anew in every layer."""
        steps = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions.device).float()
        frequency = 1.0 / (self.config.llama.rope_theta ** (steps / head_dim))
        angle = (frequency[None, :, None] @ positions[:, None].float()).transpose(1, 2)
        angle = torch.cat([angle, angle], dim=-1)[:, None]
        return angle.cos().to(dtype), angle.sin().to(dtype)


class _Part:
    """Weights whose published names start alike."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str) -> None:
        self._weights, self._prefix = weights, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._prefix + name]

    def part(self, prefix: str) -> _Part:
        return _Part(self._weights, self._prefix + prefix)

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight = self[f'{name}.weight']
        return functional.linear(x, weight, self._weights.get(f'{self._prefix}{name}.bias'))


def published_weights(model: OpenVLAOFT) -> dict[str, Tensor]:
    """Every published tensor on the device and in the type of the model, by name.

    Tensors that a model was never given (a random one has no lm_head) are drawn at random: zeros
    would cost less power on a GPU.
    """
    generator = torch.Generator().manual_seed(0)
    given = complete_tensors(model)
    for name, shape in unused_shapes(model.config).items():
        if name not in model.unused:
            given[name] = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    return {name: t.detach().to(model.device, model.dtype) for name, t in given.items()}


def extra_flops(config: OpenVLAConfig, n_views: int, length: int) -> dict[str, int]:
    """FLOPs that this path spends beyond the dense model: last blocks and logits."""
    extra = 0
    for tower in (config.featurizer, config.fused_featurizer):
        n = tower.n_patches + tower.n_prefix
        extra += 2 * n * (4 * tower.dim**2 + 2 * tower.dim * tower.mlp_hidden)
        extra += 2 * 2 * n * n * tower.dim
    llama = config.llama
    return {
        'vision': n_views * extra,
        'decoder': 2 * length * llama.hidden_size * llama.vocab_size,
    }


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def _prefix(config: TowerConfig) -> tuple[tuple[str, bool], ...]:
    return ('cls_token', config.class_token), ('reg_token', bool(config.reg_tokens))
