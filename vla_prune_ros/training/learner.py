# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is trained, as one module whose forward pass returns the losses.

Everything that has gradients is inside, so that DistributedDataParallel averages all of them.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vla_prune_ros.pruning.lightvla import noise_scale
from vla_prune_ros.sim.tabletop.tasks import COLOURS, TASKS
from vla_prune_ros.training.augment import SIDE, augment
from vla_prune_ros.training.batches import Batch
from vla_prune_ros.training.grounding import Grounding, grounding_loss
from vla_prune_ros.training.lightvla import sample_noise, training_pass
from vla_prune_ros.training.recipe import Recipe
from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.config import DINO_MEAN, DINO_STD, SIGLIP_MEAN, SIGLIP_STD
from vla_prune_ros.vla.heads import TokenHead

GROUNDED = ('block_pixels', 'plate_pixels', 'relative', 'task')  # what auxiliary losses need


class Learner(nn.Module):
    """A model with everything needed to turn a batch into losses."""

    def __init__(
        self,
        model: OpenVLAOFT,
        recipe: Recipe,
        lightvla: bool = False,
        grounding: bool = False,
        checkpointing: bool = False,
    ) -> None:
        """Take a model, on its device.

        Args:
            model: with adapters or without; its passes are changed if `checkpointing`.
            recipe: noise and number of steps.
            lightvla: train its selection.
            grounding: add the auxiliary losses of the tabletop.
            checkpointing: keep the input of each layer only and compute the rest again for the
                gradient.

        Raises:
            ValueError: LightVLA with auxiliary losses.
        """
        super().__init__()
        if lightvla and grounding:
            raise ValueError('LightVLA is trained on the L1 loss alone: switch grounding off')
        self.model, self._recipe, self._lightvla = model, recipe, lightvla
        values = (DINO_MEAN, SIGLIP_MEAN), (DINO_STD, SIGLIP_STD)
        for name, value in zip(('mean', 'std'), values, strict=True):
            shaped = torch.tensor(value, device=model.device).view(1, 2, 3, 1, 1)
            self.register_buffer(name, shaped, persistent=False)
        self.grounding = None
        if grounding:
            sizes = model.config
            self.grounding = Grounding(
                sizes.llama.hidden_size, sizes.featurizer.grid, sizes.image_size
            ).to(model.device)
        if checkpointing:
            towers = model.vision_backbone
            for layer in (
                *model.decoder.layers, *towers.featurizer.blocks, *towers.fused_featurizer.blocks
            ):  # fmt: skip
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Losses of a batch on the model's device.

        `action` is that of `action_losses`; beside it the grounding losses, and their `total`. For
        LightVLA `kept` is the mean number of different patches chosen.
        """
        images = augment(batch.images.flatten(0, 1), batch.draws.flatten(0, 1))
        x = images.permute(0, 3, 1, 2).float().div(255)  # [B*V, 3, S, S]
        pixels = ((x[:, None] - self.mean) / self.std).unflatten(0, batch.images.shape[:2])
        state = batch.proprio if self.model.config.use_proprio else None
        inputs = (pixels.flatten(1, 3), batch.ids, state)
        model, half = self.model, torch.bfloat16
        with torch.autocast(model.device.type, half, enabled=model.dtype == half):
            if self._lightvla:
                amplitude = noise_scale(step, self._recipe.steps)
                noise = None
                if amplitude:
                    n_visual = batch.images.shape[1] * model.config.patches_per_view
                    noise = sample_noise(batch.seed, n_visual, self._recipe.noise, amplitude)
                actions, readout, kept = training_pass(model, *inputs, batch.mask, noise)
                losses = action_losses(model.action_head, actions, readout, batch.actions)
                return losses | {'total': losses['action'], 'kept': kept}
            out = model(*inputs, attention_mask=batch.mask)
            losses = action_losses(model.action_head, out.actions, out.readout, batch.actions)
        losses['total'] = losses['action']
        if self.grounding is not None:
            parts = self._grounding_losses(batch, out)
            losses['total'] = losses['action'] + grounding_loss(parts)
            losses |= parts
        return losses

    def _grounding_losses(self, batch: Batch, out) -> dict[str, Tensor]:
        extras = batch.extras
        if missing := [name for name in GROUNDED if name not in extras]:
            raise ValueError(f'auxiliary losses need {", ".join(missing)}; this data has none')
        points = torch.cat([extras['block_pixels'], extras['plate_pixels'][:, :, None]], dim=2)
        size = batch.images.shape[-2]
        offset = batch.draws[:, :, None, :2] * (size - 1)  # pixels
        colours = torch.tensor([COLOURS.index(task.colour) for task in TASKS])
        return self.grounding(
            out.embeddings[:, 1 : 1 + out.layout.n_visual],
            out.readout[:, 0],
            (points - offset) / SIDE,
            colours.to(points.device)[extras['task']],
            extras['relative'],
        )


def action_losses(
    head: nn.Module, actions: Tensor, readout: Tensor, wanted: Tensor
) -> dict[str, Tensor]:
    """How far a chunk is from the one that is wanted, `action`.

    The L1 on the normalised numbers; where actions are tokens, the cross-entropy of the bins'
    tokens among all words, and beside it the `l1` of the likeliest bins.

    Args:
        head: of the model.
        actions: what it said, [B, chunk_len, action_dim].
        readout: what it said it from, [B, chunk_len*action_dim, D].
        wanted: normalised, float32 [B, chunk_len, action_dim].
    """
    if not isinstance(head, TokenHead):
        return {'action': F.l1_loss(actions.float(), wanted)}
    scores = head.lm_head(readout).float()  # with its adapter, if it has one
    loss = F.cross_entropy(scores.flatten(0, 1), head.tokens(wanted).flatten())
    bins = scores.detach()[..., head.ids.start : head.ids.stop].argmax(-1)
    said = head.values(head.ids.start + bins).view_as(wanted)
    return {'action': loss, 'l1': F.l1_loss(said, wanted)}


def parameter_groups(module: nn.Module, recipe: Recipe) -> list[dict]:
    """What AdamW gets: everything that is trained, with or without weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if recipe.decay_all or p.ndim >= 2]
    others = [p for p in trained if not recipe.decay_all and p.ndim < 2]
    return [
        {'params': decayed, 'weight_decay': recipe.weight_decay},
        {'params': others, 'weight_decay': 0.0},
    ]
