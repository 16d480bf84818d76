# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The diagnostic tasks of the policy node."""

from __future__ import annotations

import sys
from typing import Any

from vla_prune_ros.ros.diagnostics import ERROR, WARN, Memory, Report


class Health:
    """Looks at a policy node and reports; `tasks` goes to `Diagnostics`."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._memory = Memory()
        self.tasks = {
            'Node': self._life,
            'Inference': self._inference,
            'Inputs': self._inputs,
            'Pruning': self._pruning,
            'Budget': self._budget,
            'Device': self._device,
        }

    def _life(self, report: Report) -> None:
        node = self._node
        report.values |= {
            'state': node.state,
            'enabled': str(node.enabled).lower(),
            'instruction': node.instruction,
        }
        if node.state != 'active':
            report.raise_to(WARN, f'{node.state}: takes no data')
        elif not node.enabled:
            report.raise_to(WARN, 'disabled: publishes no chunks')
        elif not node.instruction:
            report.raise_to(WARN, 'waits for an instruction')

    def _in_use(self, report: Report) -> None:
        """What does nothing is not OK, whatever it did before."""
        if self._node.inference.policy is None:
            report.raise_to(WARN, f'{self._node.state}: no model is loaded')
        elif self._node.state != 'active':
            report.raise_to(WARN, f'{self._node.state}: not in use')

    def _inference(self, report: Report) -> None:
        inference, config = self._node.inference, self._node.config
        self._in_use(report)
        latency = inference.latency
        report.values |= {f'total {k}': v for k, v in latency.summary('total').items()}
        report.values |= {f'policy {k}': v for k, v in latency.summary('policy').items()}
        report.values |= {
            'inferences': latency.warm + latency.cold,
            'cold, not in the figures': latency.cold,
            'failed in a row': inference.failures,
            'superseded': inference.superseded,
            **inference.counts,
        }
        # a chunk that takes longer than it lasts leaves the robot without actions
        steps = self._node.chunk_len
        duration = 1e3 * steps / config.control_rate
        p95 = latency.percentile('total', 95)
        report.values['chunk duration (ms)'] = duration
        if steps and p95 > duration:
            report.raise_to(
                WARN, f'p95 {p95:.0f} ms is above the chunk duration {duration:.0f} ms'
            )
        if inference.failures:
            report.raise_to(ERROR, f'the last inference failed: {inference.last_error}')
        limit = config.inference_timeout
        if limit and inference.busy_for > limit:
            report.raise_to(ERROR, f'an inference has been running for {inference.busy_for:.0f} s')

    def _inputs(self, report: Report) -> None:
        node = self._node
        self._in_use(report)
        report.values |= node.inputs.health(node.get_clock().now().nanoseconds)
        if node.state == 'active' and node.inputs.streams.silent:
            report.raise_to(WARN, f'silent: {", ".join(sorted(node.inputs.streams.silent))}')
        elif node.state == 'active' and (text := node.inputs.mismatch()):
            report.raise_to(WARN, text)

    def _pruning(self, report: Report) -> None:
        chunk = self._node.last_chunk
        self._in_use(report)
        report.values['mode'] = self._node.config.pruning_mode
        if chunk is None:
            return
        report.values |= {
            'tokens kept': len(chunk.kept),
            'tokens total': chunk.n_visual,
            'last reset': chunk.reset_reason or 'none',
            **chunk.stats,
        }

    def _budget(self, report: Report) -> None:
        """What governor and audit do; WARN where no budget holds the deadline."""
        self._in_use(report)
        budgeting, config = self._node.inference.budgeting, self._node.config
        report.values |= budgeting.values()
        report.values['governor'] = 'on' if config.governed else 'off'
        report.values['audit'] = 'on' if config.audit_enabled else 'off'
        decision = budgeting.decision
        if decision is not None and decision.state == 'infeasible':
            left, needed = (1e3 * max(0.0, s) for s in (decision.deadline, decision.predicted))
            report.raise_to(
                WARN,
                f'no budget holds the deadline: {left:.0f} ms are left and {decision.share:g} of '
                f'the tokens take {needed:.0f} ms',
            )
        limit = config.audit_threshold
        if config.watched and budgeting.deviation > limit:
            text = f'pruning changed the actions by {budgeting.deviation:.3f}, above {limit:g}'
            report.raise_to(WARN, text)

    def _device(self, report: Report) -> None:
        self._memory(report)
        torch = sys.modules.get('torch')
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            report.values |= {
                'GPU memory allocated (MB)': torch.cuda.memory_allocated() / 1e6,
                'GPU memory reserved (MB)': torch.cuda.memory_reserved() / 1e6,
            }
