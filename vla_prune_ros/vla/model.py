# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA-OFT: towers, decoder and head together.

Source: OpenVLA-OFT (arXiv 2502.19645): one to three cameras, with or without proprioception, with
an L1 head or discrete tokens, with or without FiLM; see `variant`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.decoder import Decoder
from vla_prune_ros.vla.heads import ProprioProjector, make_head
from vla_prune_ros.vla.selection import SelectorProxy, TokenLayout, TokenSelector
from vla_prune_ros.vla.space import Mark, Rows, Run, Space, Stage, directly, unmarked
from vla_prune_ros.vla.vision import Modulation, VisionBackbone, VisionProjector


@dataclass
class TokenSequence:
    """Assembled input of the decoder.

    Attributes:
        embeddings: [B, n, D].
        layout: meaning of the rows; with padding, of the longest sample.
        key_mask: bool [B, n], False on padding behind EOS, or None without padding.
    """

    embeddings: Tensor
    layout: TokenLayout
    key_mask: Tensor | None = None


@dataclass
class OFTOutput:
    """Everything a pass produces.

    Attributes:
        actions: normalised, [B, chunk_len, action_dim].
        readout: states given to the head, after the final norm, [B, n_placeholders, D].
        embeddings: assembled sequence before any selection, [B, n, D].
        entered: absolute ids of the rows that entered the last layer, ascending, int64; where
            their number is known to the device only, ids that are no token's follow.
        left: of the rows that left it, likewise.
        layout: the complete sequence.
        rows: rows computed per layer, the mean over all layers; those that only fill up a
            recorded stage count, too, as they take time.
        dense: every token went through every layer.
    """

    actions: Tensor
    readout: Tensor
    embeddings: Tensor
    entered: Tensor
    left: Tensor
    layout: TokenLayout
    rows: float
    dense: bool

    @property
    def kept(self) -> Tensor:
        """Ids of the visual tokens that entered the last layer, int64; may wait for the device."""
        return self.entered[(self.entered > 0) & (self.entered <= self.layout.n_visual)]

    @property
    def position_ids(self) -> Tensor:
        """Position ids of the rows that left the last layer, int64 [m]; may wait likewise."""
        return self.left[self.left < self.layout.length]


@dataclass(frozen=True)
class ReadOut(Stage):
    """The states for the head, and the actions.

    Attributes:
        rows: what left the decoder.
        start: see `OFTNetwork.read_out`.
    """

    name = 'head'
    rows: Rows
    start: int

    def work(self, network: nn.Module, space: Space) -> list[Tensor]:
        """Return actions [B, chunk_len, action_dim] and states [B, n_placeholders, D]."""
        x = space.rows(self.rows)
        there, _ = space.shown(self.rows.cut, self.rows.count)
        states = network.read_out(x, self.start, there)
        return [network.action_head(states), states]


class OFTNetwork(nn.Module):
    """The policy network without its files, randomly initialised; see `OpenVLAOFT`.

    `unused` holds tensors of the published layout that no output depends on (the last block and
    norm of each tower, the attention pool, lm_head), under their published names and in the dtype
    of the file, so that a loaded checkpoint can be written back complete.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.llama.hidden_size
        self.vision_backbone = VisionBackbone(config)
        self.projector = VisionProjector(config.vision_dim, hidden)
        self.decoder = Decoder(config.llama)
        if config.use_proprio:
            self.proprio_projector = ProprioProjector(config.proprio_dim, hidden)
        self.action_head = make_head(config)
        self.unused: dict[str, Tensor] = {}
        self.apply(_init_weights)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.decoder.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.norm.weight.device

    def encode_images(self, pixel_values: Tensor, modulation: Modulation | None = None) -> Tensor:
        """Map pixels [B, 6*views, size, size] to visual tokens [B, views*patches, D].

        Args:
            pixel_values: see above.
            modulation: see `modulation`.
        """
        return self.projector(self.vision_backbone(pixel_values.to(self.dtype), modulation))

    def modulation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Modulation | None:
        """What the instruction does to the vision towers (FiLM); None without.

        The mean is over BOS, prompt and EOS. Padding is left out, though training of the authors
        counts it: else the action would depend on the batch.

        Args:
            input_ids: int64 [B, L], as in `assemble`.
            attention_mask: as in `assemble`.
        """
        if not self.config.film:
            return None
        ids = nn.functional.pad(input_ids, (0, 1), value=self.config.eos_id)
        words = self.decoder.embed_tokens(ids)
        if attention_mask is None:
            return self.vision_backbone.modulation(words.mean(1))
        there = nn.functional.pad(attention_mask != 0, (0, 1), value=True)[..., None]
        mean = (words * there).sum(1) / there.sum(1)
        return self.vision_backbone.modulation(mean)

    def assemble(
        self,
        visual: Tensor,
        input_ids: Tensor,
        proprio: Tensor | None,
        attention_mask: Tensor | None = None,
    ) -> TokenSequence:
        """Put the sequence together: BOS, visual, proprio, prompt, placeholders, EOS, padding.

        Args:
            visual: visual tokens [B, V, D].
            input_ids: int64 [B, L], prompt with BOS and the closing blank piece.
            proprio: normalised state [B, proprio_dim], None for a model that takes none.
            attention_mask: [B, L], nonzero on prompt tokens, zero on padding at the right.
        """
        config, device = self.config, visual.device
        batch, length = input_ids.shape
        n_slots = config.n_placeholders
        if config.use_proprio is not (proprio is not None):
            wanted = f'[B, {config.proprio_dim}]' if config.use_proprio else 'None'
            raise ValueError(f'proprio must be {wanted} for this model')
        if not len(visual) == batch == (batch if proprio is None else len(proprio)):
            raise ValueError('pixel_values, input_ids and proprio have different batch sizes')
        if proprio is not None and proprio.shape[1:] != (config.proprio_dim,):
            raise ValueError(f'proprio must be [B, {config.proprio_dim}], not {[*proprio.shape]}')
        if attention_mask is None:
            lengths = torch.full((batch, 1), length, device=device)
        else:
            lengths = attention_mask.long().sum(1, keepdim=True)
            input_ids = input_ids.masked_fill(attention_mask == 0, config.eos_id)
        embed = self.decoder.embed_tokens
        words = embed(nn.functional.pad(input_ids, (0, 1), value=config.eos_id))
        words = torch.cat([words, words.new_zeros(batch, 1, words.shape[-1])], dim=1)
        # Columns of words: prompt 0..L-1, EOS at L, the zero vector at L+1.
        at = torch.arange(length + n_slots + 1, device=device).expand(batch, -1)
        pick = torch.where(at < lengths, at, length + 1)
        pick = torch.where(at == lengths + n_slots, length, pick)
        tail = words.gather(1, pick[..., None].expand(-1, -1, words.shape[-1]))
        parts = [tail[:, :1], visual, tail[:, 1:]]
        if proprio is not None:
            parts.insert(2, self.proprio_projector(proprio.to(self.dtype))[:, None])
        embeddings = torch.cat(parts, dim=1)
        layout = config.layout(visual.shape[1] // config.patches_per_view, length)
        if attention_mask is None:
            return TokenSequence(embeddings, layout)
        n = lengths + (layout.length - length)
        key_mask = torch.arange(layout.length, device=device).expand(batch, -1) < n
        return TokenSequence(embeddings, layout, key_mask)

    def read_out(
        self, hidden: Tensor, readout_start: int | None = None, key_mask: Tensor | None = None
    ) -> Tensor:
        """Return the final-normed states for the head, [B, n_placeholders, D].

        Args:
            hidden: states after the last layer [B, m, D].
            readout_start: first state, counted from the end; default: the last prompt token and
                all placeholders but the last, -58 at published sizes.
            key_mask: bool [B, m] where there is padding; its False rows are not counted.
        """
        n_slots, rows = self.config.n_placeholders, hidden.shape[1]
        start = -(n_slots + 2) if readout_start is None else readout_start
        _check_start(start, rows, n_slots)
        if key_mask is None:
            states = hidden.narrow(1, rows + start, n_slots)
        else:
            first = key_mask.sum(1, keepdim=True) + start
            at = first + torch.arange(n_slots, device=hidden.device)
            states = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.decoder.norm(states)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        proprio: Tensor | None = None,
        selector: TokenSelector | None = None,
        readout_start: int | None = None,
        attention_mask: Tensor | None = None,
        mark: Mark = unmarked,
    ) -> OFTOutput:
        """Run the policy network.

        Args:
            pixel_values: [B, 6*views, size, size], see `processor.pixel_values`.
            input_ids: int64 [B, L], prompt with BOS and the closing blank piece, no placeholders.
            proprio: normalised state [B, proprio_dim], None for a model that takes none.
            selector: token selector; batch size 1 only.
            readout_start: see `read_out`.
            attention_mask: [B, L] for prompts padded at the right; without a selector only.
            mark: called with 'vision', 'assemble', 'decoder', 'select', 'head' after each stage,
                and with 'pass' after several that were run as one.
        """
        visual = self.encode_images(pixel_values, self.modulation(input_ids, attention_mask))
        mark('vision')
        sequence = self.assemble(visual, input_ids, proprio, attention_mask)
        mark('assemble')
        space = self.decoder.space(sequence.embeddings, key_mask=sequence.key_mask)
        return self.act(space, sequence.layout, selector, readout_start, mark)

    def act(
        self,
        space: Space,
        layout: TokenLayout,
        selector: TokenSelector | None = None,
        readout_start: int | None = None,
        mark: Mark = unmarked,
        run: Run = directly,
        before: tuple[Stage, ...] = (),
    ) -> OFTOutput:
        """Decode the assembled sequence of a space and regress the actions; see `forward`.

        Args:
            space: holds the sequence, or will after the stages before it.
            layout: of the sequence.
            selector: see `forward`.
            readout_start: see `read_out`.
            mark: see `forward`.
            run: how stages are run.
            before: stages that assemble the sequence.
        """
        slots = self.config.n_placeholders
        start = -(slots + 2) if readout_start is None else readout_start

        def behind(rows: Rows, live: int) -> ReadOut:
            _check_start(start, live, slots)
            return ReadOut(rows, start)

        if selector is not None and -start > layout.length - layout.n_visual:
            selector = SelectorProxy(selector)  # it has to say how far back there are rows

        decoded = self.decoder(
            space,
            selector=selector,
            layout=layout,
            run=run,
            mark=mark,
            network=self,
            before=before,
            behind=behind,
        )
        actions, readout = decoded.results
        computed = sum(len(part.layers) * part.rows.count for part in decoded.segments)
        return OFTOutput(
            actions=actions,
            readout=readout,
            embeddings=space.states[0][:, : layout.length],
            entered=decoded.entered,
            left=decoded.ids,
            layout=layout,
            rows=computed / len(self.decoder.layers),
            dense=decoded.dense,
        )


def _check_start(start: int, rows: int, slots: int) -> None:
    if not -rows <= start <= -slots:
        raise ValueError(f'readout_start {start} is not within {-rows}..{-slots}')


def _init_weights(module: nn.Module) -> None:
    """Draw fresh weights: truncated normal of std 1/sqrt(fan in), zero biases, unit norms.

    At width 4096 this is about Llama's 0.02; narrow models need the wider draw to train well.
    Embeddings, those of positions included, have std 1/sqrt(width), and LayerScale starts at 1.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        std = module.weight[0].numel() ** -0.5
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        std = module.embedding_dim**-0.5
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    for name in ('pos_embed', 'cls_token', 'reg_token'):
        if isinstance(weight := getattr(module, name, None), nn.Parameter):
            std = weight.shape[-1] ** -0.5
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
