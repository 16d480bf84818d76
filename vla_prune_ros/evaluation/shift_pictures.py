# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One picture with every axis of shifted worlds at every level, on the tabletop."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_prune_ros.sim import make_robot
from vla_prune_ros.sim.shifts import AXES, ShiftedRobot
from vla_prune_ros.sim.shifts.base import MAX_LEVEL, Shift

SIDE, CAPTION, LABEL = 112, 16, 92  # pixels of a picture, of its caption, of the axis' name
COLUMNS = 2  # of axes
MOVING = 24  # control steps after which late frames are shown
AFTER = 3  # control steps between a change and its picture
PALETTE = 192  # colours
LIMIT = 200  # control steps in which it comes


def contact_sheet(task: str, state: int) -> Image.Image:
    """Draw it; an expert moves the arm up to changes within an episode."""
    inner = make_robot('tabletop')
    robot = ShiftedRobot(inner)
    try:
        half = -(-len(AXES) // COLUMNS)
        width = LABEL + (MAX_LEVEL + 1) * SIDE
        sheet = Image.new('RGB', (COLUMNS * width, half * (SIDE + CAPTION)), 'white')
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
        for number, (axis, shift) in enumerate(AXES.items()):
            x, y = number // half * width, number % half * (SIDE + CAPTION)
            pen.text((x + 4, y + SIDE // 2), axis, fill='black', font=ImageFont.load_default(15))
            for level in range(MAX_LEVEL + 1):
                left = x + LABEL + level * SIDE
                robot.change(f'{axis}:{level}')
                image = _picture(robot, inner, task, state, shift)
                sheet.paste(Image.fromarray(image).resize((SIDE, SIDE)), (left, y))
                text = 'none' if not level else f'{shift.levels[level - 1]:g}'
                if axis in ('language', 'instruction') and level:
                    text = _short(pen, font, robot.instruction)
                pen.text((left + 3, y + SIDE + 1), text, fill='black', font=font)
        return sheet.quantize(PALETTE)
    finally:
        robot.close()


def _picture(robot: ShiftedRobot, inner, task: str, state: int, shift: type[Shift]) -> np.ndarray:
    """What the third-person camera sees; the wrist camera, where the hand starts elsewhere or
    where it is covered.
    """
    from vla_prune_ros.sim.tabletop.expert import expert_action

    robot.reset(task, state, render=False)
    if not shift.within:
        return robot.observe().images['wrist' if shift.axis == 'start' else 'agentview']
    steps = MOVING if shift.late else LIMIT
    happened = None
    for step in range(steps):
        if happened is not None and step == happened + AFTER:
            break
        now = inner.tasks[inner.task_index(task)]
        robot.step(expert_action(now, inner.scene()), render=False)
        if happened is None and robot.events:
            happened = step
    images = robot.observe().images
    black = [image for image in images.values() if not image.any()]
    return black[0] if black else images['agentview']


def _short(pen: ImageDraw.ImageDraw, font, text: str) -> str:
    """As much of a text as fits under a picture."""
    while pen.textlength(text, font=font) > SIDE - 4:
        text = text[:-2] + '\u2026' if not text.endswith('\u2026') else text[:-3] + '\u2026'
    return text
