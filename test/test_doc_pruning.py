# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The pages say what the code does: tables of options and sizes, and commands."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rig import deep_config
from tiny import tiny_config

from vla_prune_ros.evaluation import evaluate
from vla_prune_ros.evaluation.entries import assign_checkpoints, make_entries
from vla_prune_ros.pruning import MODES, make_selector
from vla_prune_ros.pruning.specprune import _scaled_total
from vla_prune_ros.pruning.specprune_options import budgets

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'doc' / 'pruning.md').read_text(encoding='utf-8')
SECTIONS = dict(re.findall(r'^## `(\w+)`\n(.*?)(?=^## |\Z)', TEXT, re.MULTILINE | re.DOTALL))


def row(option):
    allowed = ', '.join(option.choices)
    if not allowed and (option.min, option.max) != (None, None):
        low, high = ('' if limit is None else limit for limit in (option.min, option.max))
        allowed = f'{low}..{high}'
    default = f'`{option.default}`' if option.default != '' else "`''`"
    return f'| `{option.name}` | {default} | {allowed} | {option.description} |'


def test_the_page_describes_every_mode_in_the_order_of_the_registry():
    assert list(SECTIONS) == list(MODES)


@pytest.mark.parametrize('mode', MODES)
def test_option_table_is_that_of_the_mode(mode):
    table = [line for line in SECTIONS[mode].splitlines() if line.startswith('| `')]
    wanted = [row(option) for option in MODES[mode].options]
    assert table[: len(wanted) or 1] == wanted  # the tables behind it are about something else


def sizes(depth, image_size):
    """The column of one model in the table of scaled sizes."""
    towers = {
        name: replace(getattr(tiny_config(), name), image_size=image_size)
        for name in ('featurizer', 'fused_featurizer')
    }
    config = deep_config(depth, **towers)
    method = make_selector('specprune', config)
    patches = config.patches_per_view
    for fine in (False, True):
        sets = budgets(method.opt, patches, fine)
        yield f'{sets.local}, {sets.recalled}, {sets.changed}'
    yield ', '.join(map(str, method.global_layers))
    yield ', '.join(map(str, sorted(method.cuts.elements())))
    yield f'{_scaled_total(method.opt.min_tokens, 2 * patches)} of {2 * patches}'


def test_sizes_of_specprune_are_those_of_the_code():
    table = SECTIONS['specprune'].partition('| 32 layers, 256 patches | 4 layers, 64 patches |')[2]
    rows = [line.strip('| ').split(' | ')[1:] for line in table.strip().splitlines()[1:6]]
    assert [list(column) for column in zip(*rows, strict=True)] == [
        list(sizes(32, 224)),
        list(sizes(4, 112)),
    ]


def commands():
    """Complete `./run evaluate` commands in blocks of code."""
    for path in [ROOT / 'README.md', *sorted((ROOT / 'doc').glob('*.md'))]:
        text = path.read_text(encoding='utf-8').replace('\\\n', ' ')
        yield from re.findall(r'^ +\./run (evaluate .*)$', text, re.MULTILINE)


def test_there_are_commands_to_check():
    assert len([*commands()]) >= 3


@pytest.mark.filterwarnings('ignore:mode ')
@pytest.mark.parametrize('command', commands())
def test_commands_of_the_pages_are_accepted(command):
    args = evaluate.parser().parse_args(shlex.split(command, comments=True)[1:])
    entries = make_entries(args.modes, args.option, args.variant, args.sweep, args.control)
    for entry in assign_checkpoints(entries, args.checkpoint_for):
        make_selector(entry.mode, tiny_config(), **entry.options)
