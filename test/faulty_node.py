# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy node with one more pruning mode, `faulty`, that fails or dawdles when told to.

Everything else is the real node. Run it like the verb: `python faulty_node.py --ros-args ...`.
"""

from __future__ import annotations

import os
import time

import torch
from rclpy.executors import SingleThreadedExecutor

from vla_prune_ros.nodes.policy import policy_node
from vla_prune_ros.pruning import MODES
from vla_prune_ros.pruning.base import Option, PruningMethod
from vla_prune_ros.ros import process

ERRORS = {
    'error': lambda: RuntimeError('selector fault'),
    'memory': lambda: torch.OutOfMemoryError('CUDA out of memory (test)'),
    'cuda': lambda: torch.AcceleratorError('CUDA error: device-side assert triggered'),
    'exit': lambda: SystemExit('selector left'),
}


class Faulty(PruningMethod):
    """Keeps every token; fails, sleeps and counts executed actions."""

    name = 'faulty'
    summary = 'for tests'
    options = (
        Option('fail', str, 'never', 'what to raise', choices=('never', *ERRORS)),
        Option('fail_at', int, 0, 'the one pass that fails; 0: every', 0, 1000),
        Option('sleep', float, 0.0, 'duration of the pass (s)', 0.0, 60.0),
    )

    passes = 0

    def observe(self, tick) -> None:
        self.passes += 1
        self._executed = len(tick.history.executed)

    def begin(self, layout, embeddings):
        until = time.monotonic() + self.opt.sleep
        while time.monotonic() < until:
            time.sleep(0.01)
        if self.opt.fail != 'never' and self.opt.fail_at in (0, self.passes):
            raise ERRORS[self.opt.fail]()
        return super().begin(layout, embeddings)

    def stats(self) -> dict:
        return {'executed': self._executed}


if __name__ == '__main__':
    MODES['faulty'] = Faulty
    if os.environ.get('TEST_OLD_EXECUTOR'):
        process.make_executor = SingleThreadedExecutor
        print(SingleThreadedExecutor.__name__, flush=True)
    policy_node.main()
