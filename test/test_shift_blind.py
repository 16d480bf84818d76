# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Does the suite find out a mode that goes blind when the world changes?

The planted mode keeps everything until something happens, and from then on drops the patches that
show the target: unchanged, it is dense; after a change it never looks at what changed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

from vla_prune_ros.evaluation.rollouts import Entry, Episode, Session, Setup
from vla_prune_ros.evaluation.shift_report import cells
from vla_prune_ros.evaluation.shift_runs import Runs
from vla_prune_ros.pruning import MODES, PruningMethod
from vla_prune_ros.pruning.overlay import patch_of_pixel
from vla_prune_ros.vla.selection import PassPlan

MODES_RUN = ('none', 'vla_cache', 'blind')
STATES = [(task, 0) for task in range(8)]
AROUND = 1  # patches around the target's that show it, too


class Blind(PruningMethod):
    """Drops the patches that show the target after a change; it is told where they are."""

    name = 'blind'
    summary = 'test equipment'
    robot = None

    def begin(self, layout, embeddings):
        """Cut in front of everything."""
        return PassPlan(points=frozenset({0}))

    def select(self, point, tokens):
        """All patches but those."""
        layout, side = tokens.layout, self.config.featurizer.grid
        kept = np.ones((layout.n_views, side, side), bool)
        for view, camera in enumerate(self.robot.cameras if self.robot.events else ()):
            place = patch_of_pixel(camera.width, side)
            ((x, y),) = self.robot.landmarks(camera.name)['instructed block']
            if not (0 <= x < camera.width and 0 <= y < camera.height):
                continue
            column, row = place[int(x)], place[int(y)]
            rows = slice(max(0, row - AROUND), row + AROUND + 1)
            kept[view, rows, max(0, column - AROUND) : column + AROUND + 1] = False
        return layout.keep(1 + torch.from_numpy(np.flatnonzero(kept)))


def play(shift):
    session = Session(Setup(checkpoint='tabletop', shift=shift))
    Blind.robot = session.robot
    try:
        return {
            mode: {(t, s): session.run(Episode(Entry(mode, mode), t, s)) for t, s in STATES}
            for mode in MODES_RUN
        }
    finally:
        session.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('shift', ['jump:3', 'swap:3', 'push:3'])
def test_a_mode_that_never_looks_at_what_changed_comes_out_last(monkeypatch, shift):
    monkeypatch.setitem(MODES, 'blind', Blind)
    weights, modes = dict.fromkeys(MODES_RUN, ''), {mode: mode for mode in MODES_RUN}
    runs = Runs({'none': play(''), shift: play(shift)}, weights, modes)
    for by_mode in runs.records.values():
        assert not [r.error for records in by_mode.values() for r in records.values() if r.error]
    rows = {(row['shift'], row['entry']): row for row in cells(runs)}
    plain, blind = rows['none', 'blind'], rows[shift, 'blind']
    assert plain['success'] == rows['none', 'none']['success'] > 0.9  # nothing is seen of it there
    others = [rows[shift, mode] for mode in MODES_RUN if mode != 'blind']
    assert all(blind['success'] < row['success'] - 0.3 for row in others), rows
    assert blind['interaction']['high'] < 0.0
    assert blind['next_target'] == blind['after_target'] == 0.0
    assert all(row['next_target'] > 0.0 for row in others)


def test_the_planted_mode_is_dense_until_something_happens(monkeypatch):
    monkeypatch.setitem(MODES, 'blind', Blind)
    session = Session(Setup(checkpoint='tabletop', shift='jump:5'))
    Blind.robot = session.robot
    try:
        start = [session.run(Episode(Entry(m, m), 0, 0, 8, True)) for m in ('none', 'blind')]
    finally:
        session.close()
    assert [r.error for r in start] == [None, None]
    assert start[0].events == []
    np.testing.assert_allclose(start[0].actions, start[1].actions, atol=1e-6)
