# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the rooms of the package from its imports: `python doc/draw_rooms.py` writes rooms.png.

What is drawn is also in the picture's description, where a test compares it with the imports.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use('agg')
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
PACKAGE = HERE.parent / 'vla_prune_ros'
PICTURE = HERE / 'rooms.png'
WITH_ROS = ('ros', 'nodes', 'bags', 'trials')
# So that no arrow runs through a box; the floors come from the imports.
COLUMNS = {
    'vla': 0, 'pruning': 0, 'runtime': 0, 'policy': 0, 'training': 0,
    'weights': 1, 'evaluation': 1, 'benchmark': 1, 'datasets': -1,
    'sim': 2, 'bags': 2,
    'execution': 3, 'ros': 3, 'nodes': 3,
    'trials': 4, 'view': 4,
}  # fmt: skip
WIDTH, HEIGHT = 0.82, 0.46  # of a box, where its place is 1 x 1


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f'{path}: relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def rooms() -> dict[str, list[str]]:
    """Every room and the rooms that its files import."""
    names = sorted(p.parent.name for p in PACKAGE.glob('*/__init__.py'))
    found = {}
    for room in names:
        parts = (name.split('.') for p in (PACKAGE / room).rglob('*.py') for name in imports(p))
        known = {part[1] for part in parts if part[0] == PACKAGE.name and len(part) > 1}
        found[room] = sorted(known & set(names) - {room})
    return found


def shortest(known: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without the arrows that follow from others: who knows policy stands on vla anyway."""

    def below(room: str) -> set[str]:
        return set(known[room]).union(*(below(other) for other in known[room]))

    return {
        room: [o for o in others if not any(o in below(x) for x in others if x != o)]
        for room, others in known.items()
    }


def places(known: dict[str, list[str]]) -> dict[str, tuple[int, int]]:
    """Column and floor of every room; all arrows point down."""

    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in known[room]), default=-1)

    return {room: (COLUMNS.get(room, max(COLUMNS.values()) + 1), floor(room)) for room in known}


def draw() -> None:
    """Write the picture."""
    known = rooms()
    where = places(known)
    figure, axes = pyplot.subplots(figsize=(7, 4.6))
    for room, (x, y) in where.items():
        colour = '#dcebf7' if room in WITH_ROS else '#f4efe1'
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT,
            boxstyle='round,pad=0,rounding_size=0.1', zorder=2,
            facecolor=colour, edgecolor='#444444',
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(x, y, room, ha='center', va='center', fontsize=10.5, zorder=3)
    for room, others in shortest(known).items():
        for other in others:
            (x, y), (to_x, to_y) = where[room], where[other]
            axes.annotate(
                '', (to_x, to_y + HEIGHT / 2), (x, y - HEIGHT / 2),
                arrowprops={'arrowstyle': '-|>', 'color': '#666666', 'shrinkA': 0, 'shrinkB': 0},
                zorder=1,
            )  # fmt: skip
    xs = [x for x, _ in where.values()]
    axes.set_xlim(min(xs) - 0.5, max(xs) + 0.5)
    axes.set_ylim(-0.4, max(y for _, y in where.values()) + 0.4)
    axes.axis('off')
    description = {'Description': json.dumps(known), 'Software': None}
    figure.savefig(PICTURE, dpi=100, bbox_inches='tight', metadata=description)
    pyplot.close(figure)


if __name__ == '__main__':
    draw()
