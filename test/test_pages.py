# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Links, commands and the example of the pages hold."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from tiny import observation

from vla_prune_ros.__main__ import VERBS

PAGES = sorted((*REPOSITORY.glob('*.md'), *(REPOSITORY / 'doc').glob('*.md')))
OF_THE_SCRIPT = {'test', 'setup', 'libero-setup'}  # what only ./run has
# Before the verb; behind it the words of the command, up to the end of the code or a comment.
CALLS = re.compile(
    r'(?:\./run|python3? -m vla_prune_ros|ros2 run vla_prune_ros|(?m:^) *vla_prune_ros)'
    r' ([a-z][\w-]*)((?:[^`|#;\n\\]|\\\n)*)'
)


def code(text: str) -> str:
    """Code spans and indented or fenced blocks, one command each."""
    fence = re.compile(r'^```\w*\n(.*?)^```', re.MULTILINE | re.DOTALL)
    fenced, text = fence.findall(text), fence.sub('', text)
    indented = re.findall(r'(?:^ {4}.*\n)+', text, re.MULTILINE)
    spans = [span.replace('\n', ' ') for span in re.findall(r'`([^`]+)`', text)]
    return '\n'.join([*fenced, *indented, *spans])


def commands(page: Path) -> list[tuple[str, str]]:
    """Verb and the rest of every command on a page."""
    return CALLS.findall(code(page.read_text(encoding='utf-8')))


def anchors(page: Path) -> set[str]:
    """What a link may name behind # of a page: the headings, as GitHub writes them."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', h).strip().lower().replace(' ', '-') for h in headings}


@functools.cache
def help_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, '-m', 'vla_prune_ros', *words, '--help'], capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text(encoding='utf-8')):
        if '://' in link:
            continue
        name, _, anchor = link.partition('#')
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_every_command_exists_with_its_options(page):
    for verb, rest in commands(page):
        if verb in OF_THE_SCRIPT:
            continue
        assert verb in VERBS, f'{verb}{rest}'
        words = re.findall(r'[a-z_]+(?= |$)', rest)[:1]  # a verb of the verb, as train lightvla
        options = set(re.findall(r'(?<!\S)--[a-z][a-z-]*', rest.split('--ros-args')[0]))
        if not options:
            continue
        shown = help_of(verb)
        if not all(option in shown for option in options) and words:
            shown += help_of(verb, *words)
        for option in options:
            assert re.search(rf'{option}\b', shown), f'{verb} has no {option}: {rest}'


def test_the_overview_names_every_verb():
    table = (REPOSITORY / 'README.md').read_text().split('## What runs')[1].split('\n## ')[0]
    named = {word.replace('-', '_') for word in re.findall(r'[\w-]+', table)}
    assert named >= set(VERBS)


def test_commands_are_found_on_the_pages():
    found = {verb for page in PAGES for verb, _ in commands(page)}
    assert len(found & set(VERBS)) > 10, found


def test_the_mode_that_the_page_for_contributors_adds_works(monkeypatch, checkpoint):
    """Its two steps, done to the package as it is."""
    from vla_prune_ros.policy import VLAPolicy
    from vla_prune_ros.pruning import MODES

    text = (REPOSITORY / 'CONTRIBUTING.md').read_text()
    (source,) = re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    names: dict = {'__name__': 'middle'}
    exec(compile(source, 'CONTRIBUTING.md', 'exec'), names)
    monkeypatch.setitem(MODES, 'middle', names['MiddleKeep'])
    policy = VLAPolicy.from_pretrained(checkpoint, pruning='middle', keep=4, device='cpu')
    chunk = policy.step(observation())
    assert chunk.actions.shape == (8, 7)
    side = policy.model.config.featurizer.grid
    middle = {r * side + c for r in (side // 2 - 1, side // 2) for c in (side // 2 - 1, side // 2)}
    first = {int(k) - 1 for k in chunk.kept if k - 1 < side * side}
    assert first == middle
    policy.set_budget(0.25)
    chunk = policy.step(observation())
    assert len(chunk.kept) == chunk.n_visual // 4
