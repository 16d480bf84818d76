# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a policy takes and gives, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SOME_INSTRUCTION = 'pick up the object'  # to measure with where none is known


@dataclass(frozen=True)
class Observation:
    """What the robot sees and feels at one moment.

    Attributes:
        images: camera name -> upright uint8 RGB [H, W, 3].
        proprio: float64 [proprio_dim], for the published models [8]: end-effector xyz (m),
            axis-angle (rad), two finger joints (m). None or ignored where the model takes none.
        instruction: what to do.
        stamp: time of the observation in seconds.
    """

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray | None
    instruction: str
    stamp: float


@dataclass(frozen=True)
class ActionChunk:
    """The next actions.

    Attributes:
        actions: float64 [chunk_len, action_dim] in robot units, see `VLAPolicy.info`; the gripper
            of an end-effector policy raw, 1 = open.
        stamp: of the observation they answer.
        kept: ids (1-based in the sequence) of the visual tokens that entered the last layer.
        mode: pruning mode.
        timing: stage -> ms: preprocess, vision, select, decoder, head, postprocess, total; `pass`
            for what of these ran as one recording.
        sequence: counts the chunks of this policy from 0.
        reset_reason: why the history was empty before this chunk; None if it was not.
        n_visual: visual tokens before pruning.
        stats: numbers of the pruning mode about this pass; with recorded stages also `runtime`
            (replay, capture, or why a stage ran without a graph) and `graph_bytes`.
        rows: rows that the decoder computed per layer, the mean over all layers.
        dense: it computed every row in every layer.
    """

    actions: np.ndarray
    stamp: float
    kept: np.ndarray
    mode: str
    timing: dict[str, float]
    sequence: int
    reset_reason: str | None
    n_visual: int
    stats: dict[str, bool | int | float | str] = field(default_factory=dict)
    rows: float = 0.0
    dense: bool = False


@dataclass(frozen=True)
class PolicySettings:
    """Settings in force; swapped whole by `set_pruning`.

    Attributes:
        mode: pruning mode.
        options: all options of the mode with their values.
        cameras: names of the images, third-person view first.
        unnorm_key: statistics that scale robot state and actions.
        readout_start: first read-out state counted from the end; None is the trained one.
        max_gap: pause between observations in seconds after which the history is dropped.
    """

    mode: str
    options: Mapping[str, Any]
    cameras: tuple[str, ...]
    unnorm_key: str
    readout_start: int | None
    max_gap: float
