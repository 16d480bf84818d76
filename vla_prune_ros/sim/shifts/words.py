# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Shifts of the words: the same request, said otherwise.

Rules instead of a list of sentences, so that every suite has them.
"""

from __future__ import annotations

import re

from vla_prune_ros.sim.shifts.base import Shift, World

_VERBS = {
    'pick up': ('grab', 'take', 'lift'),
    'put': ('set', 'lay', 'place'),
    'place': ('set', 'lay', 'put'),
    'open': ('pull open',),
    'close': ('shut',),
    'turn on': ('switch on',),
    'turn off': ('switch off',),
    'push': ('shove',),
}
_NOUNS = {
    'block': ('cube', 'brick'),
    'plate': ('dish', 'saucer'),
    'bowl': ('basin', 'round dish'),
    'drawer': ('compartment',),
    'cabinet': ('cupboard',),
    'stove': ('cooker',),
    'basket': ('hamper',),
    'mug': ('cup',),
    'book': ('volume',),
    'box': ('carton',),
}
_POLITE = ('please {}', 'now {}', 'robot, {}', '{} please')
_INDIRECT = (
    'i would like you to {} for me',
    'could you {} when you have a moment',
    'your next job is to {}',
)


class Language(Shift):
    """Paraphrases, each level further from the words that policies are trained with."""

    axis = 'language'
    summary = 'paraphrased instruction'
    unit = '1 a filler, 2 other verbs, 3 and nouns, 4 and a filler, 5 and an indirect request'
    levels = (1.0, 2.0, 3.0, 4.0, 5.0)

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        self._choice = self.rng.random(4)

    def words(self, instruction: str) -> str:
        """The paraphrase; the same choices for every instruction of the episode."""
        verb, noun, polite, indirect = self._choice
        text, level = instruction, self.level
        if level >= 2:
            text = _replace(text, _VERBS, verb)
        if level >= 3:
            text = _replace(text, _NOUNS, noun)
        if level in (1, 4):
            text = _pick(_POLITE, polite).format(text)
        if level == 5:
            text = _pick(_INDIRECT, indirect).format(text)
        return text


def _replace(text: str, table: dict[str, tuple[str, ...]], choice: float) -> str:
    """Every known word by one of its synonyms, in one pass."""
    pattern = re.compile(rf'\b({"|".join(table)})\b')
    return pattern.sub(lambda match: _pick(table[match[1]], choice), text)


def _pick(options: tuple[str, ...], choice: float) -> str:
    return options[int(choice * len(options))]
