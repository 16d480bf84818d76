# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Placeholder assets: primitive shapes under the names that LIBERO's code asks for.

With them LIBERO's code, task files, official initial states, controller and goal predicates run
without a download. Looks and contacts are not those of the benchmark, so no number that was made
with them is a LIBERO score; `NOTICE` is printed wherever one could be taken for it.

The geometry is our own. Names, joint ranges and the heights at which the official initial states
put things follow LIBERO's asset files (MIT licence, Copyright (c) 2023 Lifelong Robot Learning).
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
import zlib
from pathlib import Path

from vla_prune_ros.sim.libero.fixtures import fixtures
from vla_prune_ros.sim.libero.shapes import (
    WOOD,
    Colour,
    Vector,
    body,
    dish,
    geom,
    model,
    site,
    tray,
)

NOTICE = 'placeholder assets, not LIBERO scores'
MARK = 'PLACEHOLDER.txt'
LICENCE = f"""\
{NOTICE}

Primitive shapes written by vla_prune_ros (Apache-2.0) in the place of LIBERO's meshes. Body, joint
and site names, joint ranges and sizes of regions follow the asset files of LIBERO:

MIT License

Copyright (c) 2023 Lifelong Robot Learning

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

# -- movable things ------------------------------------------------------------------------------
# Everything is a little smaller than life, so that a gripper finds room between neighbours.


def _upright(half: Vector, y_up: bool) -> Vector:
    """Half sizes of a box whose third number is its height, for bodies with y or z upward."""
    a, b, c = half
    return (a, c, b) if y_up else half


Y_UP = (
    'alphabet_soup', 'tomato_sauce', 'ketchup', 'milk', 'orange_juice', 'salad_dressing',
    'new_salad_dressing',
)  # fmt: skip
BOXES: dict[str, tuple[Vector, Colour]] = {  # half sizes with the height last, colour
    'alphabet_soup': ((0.025, 0.025, 0.03), (0.8, 0.2, 0.15)),
    'tomato_sauce': ((0.025, 0.025, 0.03), (0.7, 0.1, 0.1)),
    'ketchup': ((0.02, 0.02, 0.055), (0.85, 0.1, 0.1)),
    'milk': ((0.025, 0.025, 0.05), (0.9, 0.9, 0.95)),
    'orange_juice': ((0.025, 0.025, 0.05), (1.0, 0.6, 0.1)),
    'salad_dressing': ((0.02, 0.02, 0.055), (0.6, 0.75, 0.2)),
    'new_salad_dressing': ((0.02, 0.02, 0.055), (0.6, 0.75, 0.2)),
    'bbq_sauce': ((0.02, 0.02, 0.05), (0.4, 0.15, 0.1)),
    'butter': ((0.035, 0.02, 0.012), (0.95, 0.9, 0.5)),
    'cream_cheese': ((0.035, 0.02, 0.012), (0.75, 0.85, 0.95)),
    'chocolate_pudding': ((0.035, 0.025, 0.015), (0.35, 0.2, 0.1)),
    'cookies': ((0.03, 0.04, 0.012), (0.7, 0.5, 0.25)),
    'wine_bottle': ((0.02, 0.02, 0.06), (0.2, 0.35, 0.2)),
    'moka_pot': ((0.025, 0.025, 0.04), (0.6, 0.6, 0.65)),
    'black_book': ((0.015, 0.05, 0.06), (0.1, 0.1, 0.1)),
    'yellow_book': ((0.015, 0.05, 0.06), (0.9, 0.8, 0.2)),
}
DISHES: dict[str, tuple[float, float, float, Colour]] = {  # radius, half height, wall, colour
    'akita_black_bowl': (0.031, 0.02, 0.004, (0.08, 0.08, 0.09)),
    'white_bowl': (0.031, 0.02, 0.004, (0.95, 0.95, 0.95)),
    'glazed_rim_porcelain_ramekin': (0.032, 0.014, 0.006, (0.85, 0.8, 0.75)),
    'plate': (0.062, 0.006, 0.004, (0.92, 0.92, 0.98)),
    'chefmate_8_frypan': (0.06, 0.012, 0.004, (0.15, 0.15, 0.15)),
    'porcelain_mug': (0.028, 0.03, 0.004, (0.95, 0.95, 0.95)),
    'red_coffee_mug': (0.028, 0.03, 0.004, (0.8, 0.1, 0.1)),
    'white_yellow_mug': (0.028, 0.03, 0.004, (0.95, 0.9, 0.5)),
}
FOLDER = {
    **dict.fromkeys(
        ('akita_black_bowl', 'white_bowl', 'glazed_rim_porcelain_ramekin', 'plate',
         'chefmate_8_frypan', 'basket'), 'stable_scanned_objects',
    ),
    **dict.fromkeys(
        ('wine_bottle', 'moka_pot', 'black_book', 'yellow_book', 'porcelain_mug',
         'red_coffee_mug', 'white_yellow_mug', 'wine_rack', 'wooden_tray', 'desk_caddy',
         'wooden_two_layer_shelf'), 'turbosquid_objects',
    ),
}  # fmt: skip


def movable() -> dict[str, str]:
    """Boxes, dishes, basket and tray: name -> XML."""
    things = {}
    for name, (half, rgb) in BOXES.items():
        shape = geom('box', _upright(half, name in Y_UP), (0, 0, 0), rgb)
        things[name] = model(name, shape, -0.06, 0.06, 0.03)
    for name, (radius, height, wall, rgb) in DISHES.items():
        things[name] = model(name, dish(radius, height, wall, rgb), -0.06, 0.06, 0.03)
    inner = body('contain', site('contain_region', (0.06, 0.06, 0.03), (0, 0, 0)))
    things['basket'] = model(
        'basket', tray((0.075, 0.075, 0.035), 0.006, WOOD) + inner, -0.06, 0.06, 0.03
    )
    inner = body('contain', site('contain_region', (0.11, 0.08, 0.03), (0, 0, 0.02)))
    things['wooden_tray'] = model(
        'wooden_tray', tray((0.12, 0.09, 0.02), 0.006, WOOD) + inner, -0.06, 0.06, 0.03
    )
    return things


# -- scenes --------------------------------------------------------------------------------------

CAMERAS = {  # LIBERO moves `agentview`; the others it only wants to exist
    'frontview': '1.6 0 1.45', 'birdview': '-0.2 0 3', 'agentview': '0.5 0 1.35',
    'sideview': '0 1.3 1.5',
}  # fmt: skip


def scene(table: str, top: float | None) -> str:
    """A room; `top` is the height of a table that LIBERO does not place itself."""
    floor = '<geom name="floor" type="plane" size="3 3 .1" group="1" condim="3" material="floor"/>'
    walls = ''.join(
        f'<geom type="box" size="{size}" pos="{pos}" group="1" contype="0" conaffinity="0"'
        f' material="wall" name="wall_{k}"/>'
        for k, (pos, size) in enumerate(
            (('-2 0 1.5', '.01 3 1.5'), ('0 3 1.5', '3 .01 1.5'), ('0 -3 1.5', '3 .01 1.5'))
        )
    )
    if table == 'floor':
        ground = f'<body name="floor">{floor}</body>'
    elif top is None:  # the arena class resizes these
        legs = ''.join(
            f'<geom name="table_leg{k}_visual" type="cylinder" size="0.02 0.1" group="1"'
            ' contype="0" conaffinity="0" material="table"/>'
            for k in range(1, 5)
        )
        ground = (
            f'{floor}<body name="{table}" pos="0 0 0.4">'
            '<geom name="table_collision" type="box" size="0.4 0.4 0.4" group="0"/>'
            '<geom name="table_visual" type="box" size="0.4 0.4 0.4" group="1" contype="0"'
            ' conaffinity="0" material="table"/>'
            f'<site name="table_top" pos="0 0 0.4" size="0.001" rgba="0 0 0 0"/>{legs}</body>'
        )
    else:
        slab = geom('box', (0.4, 0.8, 0.02), (0, 0, top - 0.02), WOOD)
        ground = f'<body name="floor">{floor}</body><body name="{table}">{slab}</body>'
    cameras = ''.join(
        f'<camera mode="fixed" name="{name}" pos="{pos}" quat="0.653 0.271 0.271 0.653"/>'
        for name, pos in CAMERAS.items()
    )
    return (
        f'<mujoco model="{table}_placeholder"><asset>'
        '<texture builtin="gradient" type="skybox" width="64" height="64" rgb1=".9 .9 1"'
        ' rgb2=".2 .3 .4"/>'
        '<texture file="../textures/light-gray-floor-tile.png" type="2d" name="texplane"/>'
        '<texture file="../textures/light-gray-plaster.png" type="2d" name="tex-wall"/>'
        '<material name="floor" texture="texplane" texrepeat="2 2"/>'
        '<material name="wall" texture="tex-wall" texrepeat="3 3"/>'
        '<material name="table" rgba="0.75 0.68 0.58 1"/></asset><worldbody>'
        f'{ground}{walls}<light pos="1 1 3" dir="-0.2 -0.2 -1" directional="true"'
        f' diffuse="0.7 0.7 0.7" castshadow="false"/>{cameras}</worldbody></mujoco>\n'
    )


SCENES = {  # file -> table body, height if it is not set by LIBERO
    'libero_tabletop_base_style': ('table', None),
    'libero_kitchen_tabletop_base_style': ('table', None),
    'libero_study_base_style': ('study_table', None),
    'libero_living_room_tabletop_base_style': ('living_room_table', 0.41),
    'libero_coffee_table_base_style': ('coffee_table', 0.41),
    'libero_floor_base_style': ('floor', None),
}
TEXTURES = {  # file -> colour; the names of LIBERO's floor and wall styles
    'light-gray-floor-tile': (170, 170, 170), 'light-gray-plaster': (205, 205, 200),
    'gray_ceramic_tile': (140, 140, 145), 'yellow_linen_wall_texture': (215, 205, 160),
    'seamless_wood_planks_floor': (150, 110, 75), 'dark_gray_plaster': (110, 110, 110),
    'gray_plaster': (150, 150, 150), 'brown_ceramic_tile': (130, 100, 80),
    'white_marble_floor': (225, 225, 225), 'rustic_floor': (120, 90, 70),
    'dark_floor_texture': (80, 75, 70), 'tile_grigia_caldera_porcelain_floor': (160, 160, 155),
    'light_blue_wall': (170, 195, 215), 'dark_blue_wall': (60, 80, 120),
    'dark_green_plaster_wall': (70, 100, 80), 'ceramic': (215, 215, 210),
    'white_wall': (235, 235, 235),
}  # fmt: skip


def flat_png(rgb: tuple[int, int, int], side: int = 4) -> bytes:
    """A square image of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data
            + struct.pack('>I', zlib.crc32(kind + data))
        )  # fmt: skip

    rows = (b'\0' + bytes(rgb) * side) * side
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    )  # fmt: skip


def asset_files() -> dict[str, bytes]:
    """Every file of the folder that LIBERO would take its assets from: relative path -> bytes."""
    files: dict[str, bytes] = {MARK: LICENCE.encode()}
    for name, text in movable().items():
        folder = FOLDER.get(name, 'stable_hope_objects')
        files[f'{folder}/{name}/{name}.xml'] = text.encode()
    files |= {path: text.encode() for path, text in fixtures().items()}
    for name, (table, top) in SCENES.items():
        files[f'scenes/{name}.xml'] = scene(table, top).encode()
    for name, rgb in TEXTURES.items():
        files[f'textures/{name}.png'] = flat_png(rgb)
    return files


def digest(files: dict[str, bytes]) -> str:
    """Short name of a version of the files."""
    total = hashlib.sha256()
    for path, data in sorted(files.items()):
        total.update(path.encode() + b'\0' + data)
    return total.hexdigest()[:12]


def write_assets(directory: str | Path, files: dict[str, bytes] | None = None) -> Path:
    """Write the assets, all of them or nothing; returns the directory.

    Args:
        directory: created if needed. One that holds them already is left as it is, so that
            processes which write at the same time do not disturb each other.
        files: from `asset_files`, the default.
    """
    root = Path(directory)
    if is_placeholder(root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix='.placeholder-') as folder:
        new = Path(folder) / 'assets'
        for path, data in (asset_files() if files is None else files).items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(data)
        try:
            new.rename(root)
        except OSError:
            if not is_placeholder(root):  # another process was first
                raise
    return root


def is_placeholder(directory: str | Path) -> bool:
    """Whether the assets in a directory are these."""
    return (Path(directory) / MARK).is_file()
