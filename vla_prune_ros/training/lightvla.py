# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LightVLA fine-tuning: the selector in the training pass, and LoRA for large models.

Source: LightVLA (arXiv 2509.12594) and its released code: L1 on the action chunk alone, no budget
and no sparsity term; noise on the scores that fades out over the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vla_prune_ros.pruning.lightvla import (
    NOISES,
    LightVLA,
    draw_noise,
    noise_scale,
    select_for_training,
)
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.heads import ActionHead, ProprioProjector

_HEADS = ('action_head', 'proprio_projector')


@dataclass(frozen=True)
class Finetuning:
    """What makes a stage a LightVLA stage.

    noise: 'uniform' (as released) or 'gumbel' (as the paper says); lora_rank: rank of the
    adapters on all linear layers but the heads, 0 trains every weight; fresh_heads: start with
    new action head and proprio projector, as the released recipe does.
    """

    noise: str = 'uniform'
    lora_rank: int = 0
    fresh_heads: bool = False

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise ValueError(f'unknown noise {self.noise!r}; valid: {", ".join(NOISES)}')
        if self.lora_rank < 0:
            raise ValueError(f'a LoRA rank of {self.lora_rank} is below 0')


def prepare(model: OpenVLAOFT, finetuning: Finetuning) -> None:
    """Put fresh heads and adapters in place, and note what the weights are trained for.

    Raises:
        ModuleNotFoundError: LoRA is wanted and peft is not installed.
    """
    config = replace(model.config, pruning_trained=LightVLA.name)
    model.config = config
    if finetuning.fresh_heads:
        width, to = config.llama.hidden_size, {'dtype': model.dtype, 'device': model.device}
        model.action_head = ActionHead(config).to(**to)
        model.proprio_projector = ProprioProjector(config.proprio_dim, width).to(**to)
    if finetuning.lora_rank:
        _add_lora(model, finetuning.lora_rank)


def training_pass(
    model: OpenVLAOFT,
    pixel_values: Tensor,
    input_ids: Tensor,
    proprio: Tensor,
    attention_mask: Tensor,
    finetuning: Finetuning,
    progress: tuple[int, int],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Run the policy with straight-through selection on a padded batch.

    Args:
        model: the policy.
        pixel_values: see `OpenVLAOFT.forward`.
        input_ids: see `OpenVLAOFT.forward`.
        proprio: see `OpenVLAOFT.forward`.
        attention_mask: see `OpenVLAOFT.forward`.
        finetuning: kind of noise.
        progress: optimiser step and number of steps of the run.
        generator: of the noise, on the model's device.

    Returns:
        Normalised actions [B, chunk_len, action_dim], and how many different patches a sample
        chose on average, scalar.
    """
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        visual = model.encode_images(pixel_values)
        sequence = model.assemble(visual, input_ids, proprio, attention_mask)
        batch, n_visual = visual.shape[:2]
        noise = draw_noise(
            (batch, n_visual, n_visual), finetuning.noise, generator, device=visual.device
        )
        embeddings, positions = select_for_training(
            sequence.embeddings,
            sequence.layout,
            sequence.key_mask,
            noise * noise_scale(*progress),
        )
        hidden = model.decoder(
            embeddings, position_ids=positions, key_mask=sequence.key_mask
        ).hidden
        actions = model.action_head(model.read_out(hidden, key_mask=sequence.key_mask))
    chosen = positions[:, 1 : 1 + n_visual].sort().values
    return actions.float(), 1.0 + (chosen.diff() > 0).sum(1).float().mean()


def merged(model: OpenVLAOFT) -> OpenVLAOFT:
    """Return the model for saving: with LoRA a plain copy on the CPU, else the model itself."""
    if not any('.lora_' in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import LoraLayer

    state = {
        name.replace('.base_layer.', '.'): parameter.detach().cpu()
        for name, parameter in model.named_parameters()
        if '.lora_' not in name
    }
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight.detach()
            delta = layer.get_delta_weight('default').detach().float()
            state[f'{name}.weight'] = (weight.float() + delta).to(weight.dtype).cpu()
    with torch.device('meta'):
        plain = OpenVLAOFT(model.config)
    plain.load_state_dict(state, assign=True)
    plain.unused = model.unused
    return plain


def _add_lora(model: OpenVLAOFT, rank: int) -> None:
    """Freeze the model but for new adapters on its linear layers and for its heads."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'LoRA fine-tuning needs the package peft (pip install peft); '
            'without it, train all weights (LoRA rank 0)'
        ) from error
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(_HEADS)
    ]
    config = LoraConfig(
        r=rank,
        lora_alpha=min(rank, 16),  # as released: 16 at rank 32
        lora_dropout=0.0,
        target_modules=targets,
        init_lora_weights='gaussian',
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        trained = '.lora_' in name or name.startswith(_HEADS)
        parameter.requires_grad_(trained)
        if trained:  # small steps are lost in bfloat16
            parameter.data = parameter.data.float()
