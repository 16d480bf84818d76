# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two runs over the same recording, tick by tick: how far apart, and whether that is too far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np

# Of normalised actions, on another device or software. Measured for float32: 2.4e-6 (doc/bags.md).
FLOAT32_ATOL, LOW_PRECISION_ATOL = 2e-5, 2e-2
GRIPPER = -1  # column of an action; raw: 1 = open, 0 = closed


@dataclass(frozen=True)
class TickOutput:
    """What came out of one tick.

    Attributes:
        stamp: of the observation, ns.
        mode: pruning mode.
        actions: float64 [chunk_len, action_dim] in robot units, as they are published.
        kept: absolute ids of the visual tokens that entered the last layer, int64.
        n_visual: visual tokens before pruning.
        reset_reason: why the history was empty before; '' if it was not.
        timing: stage -> ms.
        inputs: digest of what the policy saw and was told since the last tick; '' if unknown.
        audit: deviation from the dense policy by group of dimensions, and `overall`; empty if it
            was not looked for.
    """

    stamp: int
    mode: str
    actions: np.ndarray
    kept: np.ndarray
    n_visual: int
    reset_reason: str = ''
    timing: dict[str, float] = field(default_factory=dict)
    inputs: str = ''
    audit: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Tolerance:
    """How far a tick may be from its reference.

    Attributes:
        atol: largest difference of a normalised action (range -1..1).
        jaccard: smallest Jaccard index of the tokens kept.
        count: largest difference of the number of tokens kept.
        gripper: largest share of steps on which the gripper is on the other side of half open.
    """

    atol: float = 0.0
    jaccard: float = 1.0
    count: int = 0
    gripper: float = 0.0


def default_tolerance(same_machine: bool, dtype: str) -> Tolerance:
    """Bit for bit on the same device and software; else what rounding may make of it.

    Args:
        same_machine: the reference comes from the same device and software.
        dtype: of the weights, as in `policy.info()`.
    """
    if same_machine:
        return Tolerance()
    atol = FLOAT32_ATOL if dtype in ('float32', 'float64') else LOW_PRECISION_ATOL
    return Tolerance(atol, jaccard=0.98)


@dataclass(frozen=True)
class TickComparison:
    """One tick against its reference; `index` counts from 0.

    Attributes:
        max_diff: largest difference over the steps of the chunk, per action dimension, in robot
            units; None if one of the two is missing.
        max_diff_normalised: largest of all in normalised actions.
        where: [step, dimension] of that.
        gripper_agreement: share of steps with the gripper on the same side of half open.
        jaccard: of the tokens kept; 1 for two empty sets.
        problem: why the tick fails; '' if it does not.
    """

    index: int
    stamp: int
    mode: str
    max_diff: list[float] | None = None
    max_diff_normalised: float | None = None
    where: list[int] | None = None
    gripper_agreement: float | None = None
    kept: int | None = None
    kept_reference: int | None = None
    n_visual: int | None = None
    jaccard: float | None = None
    reset_reason: str = ''
    timing: dict[str, float] = field(default_factory=dict)
    audit: dict[str, float] = field(default_factory=dict)
    problem: str = ''

    def record(self) -> dict[str, Any]:
        """As one line of JSON."""
        return {'type': 'tick', **asdict(self)}


def compare(
    outputs: Sequence[TickOutput],
    reference: Sequence[TickOutput],
    scale: np.ndarray,
    tolerance: Tolerance | None,
    *,
    same_mode: bool = True,
) -> list[TickComparison]:
    """Compare two runs.

    Args:
        outputs: the run in question.
        reference: what it should be.
        scale: [action_dim], normalised units per robot unit.
        tolerance: None judges nothing but whether every tick was answered.
        same_mode: whether mode and reset reason must be those of the reference.
    """
    stamps = [o.stamp for o in outputs]
    expected = [r.stamp for r in reference]
    pairs: list[tuple[TickOutput | None, TickOutput | None]] = []
    for tag, a, b, c, d in SequenceMatcher(None, stamps, expected, autojunk=False).get_opcodes():
        if tag == 'equal':
            pairs += zip(outputs[a:b], reference[c:d], strict=True)
        else:
            pairs += [(None, r) for r in reference[c:d]] + [(o, None) for o in outputs[a:b]]
    return [
        _compare(index, *pair, scale, tolerance, same_mode) for index, pair in enumerate(pairs)
    ]


def _compare(
    index: int,
    output: TickOutput | None,
    reference: TickOutput | None,
    scale: np.ndarray,
    tolerance: Tolerance | None,
    same_mode: bool,
) -> TickComparison:
    if output is None:
        problem = 'no chunk: the observation of this tick is missing or was not answered'
        return TickComparison(index, reference.stamp, reference.mode, problem=problem)
    own = {
        'kept': len(output.kept),
        'n_visual': output.n_visual,
        'reset_reason': output.reset_reason,
        'timing': output.timing,
        'audit': output.audit,
    }
    if reference is None:
        problem = 'a chunk that the reference does not have'
        return TickComparison(index, output.stamp, output.mode, problem=problem, **own)
    if output.actions.shape != reference.actions.shape:
        problem = f'chunk of shape {output.actions.shape}, not {reference.actions.shape}'
        return TickComparison(index, output.stamp, output.mode, problem=problem, **own)
    difference = np.abs(output.actions - reference.actions)
    normalised = difference * scale
    where = np.unravel_index(np.argmax(normalised), normalised.shape)
    both = np.intersect1d(output.kept, reference.kept).size
    either = np.union1d(output.kept, reference.kept).size
    side, wanted = (chunk[:, GRIPPER] >= 0.5 for chunk in (output.actions, reference.actions))
    comparison = TickComparison(
        index,
        output.stamp,
        output.mode,
        max_diff=difference.max(axis=0).tolist(),
        max_diff_normalised=float(normalised.max()),
        where=[int(i) for i in where],
        gripper_agreement=float(np.mean(side == wanted)),
        kept_reference=len(reference.kept),
        jaccard=both / either if either else 1.0,
        **own,
    )
    problem = '' if tolerance is None else _problem(comparison, tolerance)
    if same_mode:
        other = _other_history(index, output, reference)
        problem = '; '.join(text for text in (problem, other) if text)
    return TickComparison(**{**vars(comparison), 'problem': problem})


def _problem(c: TickComparison, tolerance: Tolerance) -> str:
    found = []
    if not c.max_diff_normalised <= tolerance.atol:
        step, dimension = c.where
        found.append(
            f'normalised action differs by {c.max_diff_normalised:.3g} (step {step}, dimension'
            f' {dimension}); {tolerance.atol:g} is allowed'
        )
    if 1 - c.gripper_agreement > tolerance.gripper:
        found.append(f'the gripper agrees on {c.gripper_agreement:.0%} of the steps')
    if abs(c.kept - c.kept_reference) > tolerance.count:
        found.append(f'{c.kept} tokens kept, not {c.kept_reference}')
    if c.jaccard < tolerance.jaccard:
        found.append(f'tokens kept: Jaccard index {c.jaccard:.3f} < {tolerance.jaccard:g}')
    return '; '.join(found)


def _other_history(index: int, output: TickOutput, reference: TickOutput) -> str:
    """Other inputs, another mode, or a history that was emptied where the reference's was not."""
    if output.inputs and reference.inputs and output.inputs != reference.inputs:
        return 'other inputs than those of the reference: something is missing or was changed'
    if output.mode != reference.mode:
        return f'mode {output.mode}, not {reference.mode}'
    if index and bool(output.reset_reason) != bool(reference.reset_reason):
        return (
            f'history reset by {output.reset_reason or "nothing"},'
            f' not by {reference.reset_reason or "nothing"}'
        )
    return ''


@dataclass(frozen=True)
class Verdict:
    """What came of one mode in one tier."""

    tier: str
    track: str
    reference: str
    ticks: int
    failed: int
    first_failure: TickComparison | None

    @property
    def passed(self) -> bool:
        """Whether there was something to compare, and nothing failed."""
        return self.ticks > 0 and self.failed == 0

    def text(self) -> str:
        """One line for people."""
        head = f'{self.tier} {self.track} against {self.reference}'
        if self.first_failure is not None:
            f = self.first_failure
            return (
                f'{head}: FAIL, {self.failed} of {self.ticks} ticks; first tick {f.index}'
                f' (stamp {f.stamp / 1e9:.9f} s): {f.problem}'
            )
        return (
            f'{head}: {f"pass, {self.ticks} ticks" if self.ticks else "FAIL, nothing to compare"}'
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        first = self.first_failure
        return {
            'tier': self.tier,
            'track': self.track,
            'reference': self.reference,
            'ticks': self.ticks,
            'failed': self.failed,
            'passed': self.passed,
            'first_failure': None
            if first is None
            else {'tick': first.index, 'stamp': first.stamp, 'problem': first.problem},
        }


def judge(tier: str, track: str, reference: str, comparisons: Sequence[TickComparison]) -> Verdict:
    """Sum up one run."""
    failures = [c for c in comparisons if c.problem]
    first = failures[0] if failures else None
    return Verdict(tier, track, reference, len(comparisons), len(failures), first)
