# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The placeholders of what stands on LIBERO's tables: cabinets, stove, microwave, shelves."""

from __future__ import annotations

from vla_prune_ros.sim.libero.shapes import (
    STEEL,
    WOOD,
    Colour,
    body,
    geom,
    joint,
    model,
    site,
    tray,
)

# LIBERO places a fixture 4 cm below the table top plus its `bottom_site`.
ON_TABLE = -0.04


def cabinet(name: str, rgb: Colour) -> str:
    """Three drawers that slide toward -y, and a top to put things on."""
    width, depth, height, wall = 0.24, 0.18, 0.21, 0.004
    shell = (
        geom('box', (width / 2, wall, height / 2), (0, depth / 2, height / 2), rgb)
        + geom('box', (wall, depth / 2, height / 2), (-width / 2, 0, height / 2), rgb)
        + geom('box', (wall, depth / 2, height / 2), (width / 2, 0, height / 2), rgb)
        + geom('box', (width / 2, depth / 2, wall), (0, 0, height - wall), rgb)
        + site('top_side', (0.115, 0.085, 0.002), (0, 0, height))
    )
    drawers = ''
    for level, z in (('top', 0.165), ('middle', 0.1), ('bottom', 0.036)):
        box = tray((width / 2 - 0.012, depth / 2 - 0.012, 0.024), 0.006, WOOD, (0, -0.006, z))
        handle = geom('box', (0.04, 0.005, 0.006), (0, -depth / 2 - 0.02, z), STEEL)
        bars = ''.join(
            geom('box', (0.004, 0.012, 0.004), (x, -depth / 2 - 0.008, z), STEEL)
            for x in (-0.034, 0.034)
        )
        drawers += body(
            f'cabinet_{level}',
            joint(f'{level}_level', 'slide', '0 1 0', -0.16, 0.01, 20)
            + site(f'{level}_region', (0.1, 0.07, 0.028), (0, -0.006, z))
            + box + handle + bars,
        )  # fmt: skip
    return model(name, body('base', shell + drawers), ON_TABLE, 0.045, 0.045)


def stove() -> str:
    """A flat stove with one burner and a knob."""
    plate = body(
        'burner_plate',
        geom('box', (0.09, 0.09, 0.008), (0, 0, 0.008), STEEL)
        + geom('cylinder', (0.06, 0.002), (0, 0, 0.018), (0.15, 0.15, 0.15))
        + site('cook_region', (0.06, 0.06, 0.002), (0, 0, 0.02))
        + '<site name="burner" type="cylinder" size="0.06 0.001" pos="0 0 0.0205"'
        ' rgba="1 0.2 0.1 0" group="1"/>',
    )
    knob = body(
        'button',
        joint('button', 'hinge', '0 0 1', -0.005, 2.1, 0.2)
        + site('knob', (0.005, 0.005, 0.005), (0.12, 0, 0.02))
        + geom('cylinder', (0.015, 0.015), (0.12, 0, 0.015), STEEL)
        + geom('box', (0.005, 0.022, 0.008), (0.12, 0, 0.035), (0.8, 0.8, 0.8)),
    )
    return model('flat_stove', plate + knob, ON_TABLE, 0.02, 0.06)


def microwave() -> str:
    """A box with a door that turns about z."""
    white, dark = (0.85, 0.85, 0.85), (0.1, 0.1, 0.1)
    shell = (
        geom('box', (0.11, 0.08, 0.005), (0, 0.01, 0.005), white)
        + geom('box', (0.11, 0.08, 0.005), (0, 0.01, 0.185), white)
        + geom('box', (0.005, 0.08, 0.09), (-0.11, 0.01, 0.095), white)
        + geom('box', (0.005, 0.08, 0.09), (0.11, 0.01, 0.095), white)
        + geom('box', (0.11, 0.005, 0.09), (0, 0.09, 0.095), white)
        + site('top_side', (0.11, 0.08, 0.005), (0, 0.01, 0.19))
        + site('heating_region', (0.1, 0.07, 0.08), (0, 0.01, 0.095))
    )
    door = (
        '<body name="microdoorroot" pos="-0.115 -0.08 0.095">'
        + joint('microjoint', 'hinge', '0 0 1', -2.094, 0, 0.5)
        + site('door', (0.005, 0.005, 0.005), (0.2, -0.03, 0))
        + geom('box', (0.11, 0.006, 0.085), (0.115, 0, 0), dark)
        + geom('box', (0.006, 0.012, 0.05), (0.2, -0.02, 0), white)
        + '</body>'
    )
    return model('microwave', body('case', shell) + door, ON_TABLE, 0.06, 0.015)


def shelf() -> str:
    """Two boards on posts."""
    boards = ''.join(geom('box', (0.12, 0.09, 0.005), (0, 0, z), WOOD) for z in (0.005, 0.14))
    posts = ''.join(
        geom('box', (0.006, 0.006, 0.07), (x, y, 0.07), WOOD)
        for x in (-0.114, 0.114)
        for y in (-0.084, 0.084)
    )
    regions = (
        site('bottom_region', (0.1, 0.075, 0.05), (0, 0, 0.065))
        + site('top_region', (0.1, 0.075, 0.03), (0, 0, 0.175))
        + site('top_side', (0.11, 0.085, 0.005), (0, 0, 0.145))
    )
    content = body('boards', boards + posts + regions)
    return model('wooden_two_layer_shelf', content, ON_TABLE, 0.06, 0.05)


def caddy() -> str:
    """Four compartments."""
    walls = tray((0.1, 0.1, 0.045), 0.006, WOOD, (0, 0, 0.045))
    walls += geom('box', (0.003, 0.1, 0.045), (0, 0, 0.045), WOOD)
    places = {'front': (-0.05, -0.05), 'back': (0.05, 0.05), 'left': (-0.05, 0.05)}
    places['right'] = (0.05, -0.05)
    regions = ''.join(
        site(f'{where}_contain_region', (0.045, 0.045, 0.05), (x, y, 0.06))
        for where, (x, y) in places.items()
    )
    return model('desk_caddy', body('walls', walls + regions), ON_TABLE, 0.06, 0.05)


def rack() -> str:
    """A stand to lay a bottle on."""
    bars = ''.join(geom('box', (0.08, 0.005, 0.02), (0, y, 0.02), WOOD) for y in (-0.03, 0.03))
    region = site('top_region', (0.08, 0.05, 0.01), (0, 0, 0.04))
    return model('wine_rack', body('bars', bars + region), ON_TABLE, 0.06, 0.05)


def fixtures() -> dict[str, str]:
    """Relative path -> XML."""
    return {
        'articulated_objects/wooden_cabinet.xml': cabinet('wooden_cabinet', (0.35, 0.2, 0.1)),
        'articulated_objects/white_cabinet.xml': cabinet('white_cabinet', (0.9, 0.9, 0.88)),
        'articulated_objects/flat_stove.xml': stove(),
        'articulated_objects/microwave.xml': microwave(),
        'turbosquid_objects/wooden_two_layer_shelf/wooden_two_layer_shelf.xml': shelf(),
        'turbosquid_objects/desk_caddy/desk_caddy.xml': caddy(),
        'turbosquid_objects/wine_rack/wine_rack.xml': rack(),
    }
