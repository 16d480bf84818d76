# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The option tables of doc/pruning.md say what the modes declare."""

import re
from pathlib import Path

import pytest

from vla_prune_ros.pruning import MODES

TEXT = (Path(__file__).parents[1] / 'doc' / 'pruning.md').read_text(encoding='utf-8')
SECTIONS = dict(re.findall(r'^## `(\w+)`\n(.*?)(?=^## |\Z)', TEXT, re.MULTILINE | re.DOTALL))


def row(option):
    allowed = ', '.join(option.choices)
    if not allowed and (option.min, option.max) != (None, None):
        low, high = ('' if limit is None else limit for limit in (option.min, option.max))
        allowed = f'{low}..{high}'
    default = f'`{option.default}`' if option.default != '' else "`''`"
    return f'| `{option.name}` | {default} | {allowed} | {option.description} |'


def test_the_page_describes_existing_modes():
    assert {'lightvla', 'vla_cache', 'efficient_vla'} <= SECTIONS.keys() <= MODES.keys()


@pytest.mark.parametrize('mode', SECTIONS)
def test_option_table_is_that_of_the_mode(mode):
    table = [line for line in SECTIONS[mode].splitlines() if line.startswith('| `')]
    wanted = [row(option) for option in MODES[mode].options]
    assert table[: len(wanted)] == wanted
