# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is about to run: facts of checkpoints and suite, and all episodes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vla_prune_ros.sim import SimulatedRobot
from vla_prune_ros.sim.shifts import applies, parse_shift

if TYPE_CHECKING:
    from vla_prune_ros.evaluation.rollouts import Entry, Episode, Setup


def describe(setup: Setup, entries: Sequence[Entry]) -> tuple[dict, list[Entry]]:
    """Facts of checkpoints and suite, and the entries with the digests of their weights.

    Building every entry once finds a bad option or checkpoint early.
    """
    import torch

    from vla_prune_ros.evaluation.rollouts import Session, checkpoint_directory

    session = Session(setup)
    try:
        info, robot = session.policy.info(), session.robot
        facts = {
            'sha256': info['sha256'],
            'pruning_trained': info['pruning_trained'],
            'readout_start': info['readout_start'],
            'mode_notes': {},
            'dimension_names': list(info['dimension_names']),
            'chunk_len': session.policy.config.chunk_len,
            'tasks': [task.name for task in robot.tasks],
            'shifted_tasks': shifted_tasks(robot, setup.shift),
            'suite': setup.suite,
            'notice': robot.notice,
            'unnorm_key': info['unnorm_key'],
            'slow_task_change': robot.slow_task_change,
            'n_initial_states': robot.n_initial_states,
        }
        described = list(entries)
        own = checkpoint_directory(setup.checkpoint).resolve()
        # One checkpoint after the other, so that each is loaded once.
        for k in sorted(range(len(entries)), key=lambda k: entries[k].checkpoint or ''):
            entry = entries[k]
            if entry.checkpoint and checkpoint_directory(entry.checkpoint).resolve() == own:
                entry = replace(entry, checkpoint=None)
            policy = session.use(entry.checkpoint)
            policy.set_pruning(entry.mode, **entry.options)
            info = policy.info()
            if info['note']:
                facts['mode_notes'][entry.name] = info['note']
            described[k] = replace(entry, sha256=info['sha256'] if entry.checkpoint else '')
        return facts, described
    finally:
        session.close()
        del session  # the workers load their own; a GPU may not hold one more
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def shifted_tasks(robot: SimulatedRobot, shift: str) -> list[int]:
    """Indices of the tasks in which every axis of a shift has something to change."""
    axes = [axis for axis, _ in parse_shift(shift)]
    return [
        number
        for number, task in enumerate(robot.tasks)
        if all(applies(axis, task.family) for axis in axes)
    ]


def make_plan(entries: Sequence[Entry], facts: dict, args: argparse.Namespace) -> list[Episode]:
    """All episodes, those of one initial state together, so that an interrupted run is paired.

    Initial states are outermost, or tasks where it takes a simulator long to change them.
    """
    from vla_prune_ros.evaluation.rollouts import Episode

    tasks = [_task_index(t, facts['tasks']) for t in args.tasks.split(',')] if args.tasks else None
    tasks = [k for k in tasks or range(len(facts['tasks'])) if k in facts['shifted_tasks']]
    if not tasks:
        raise ValueError('the shift changes nothing in any of these tasks')
    episodes = args.trials * len(tasks) if args.trials is not None else args.episodes
    last = args.first_state + (episodes - 1) // len(tasks)
    if last >= facts['n_initial_states']:
        raise ValueError(
            f'{episodes} episodes over {len(tasks)} tasks from state {args.first_state} on do'
            f' not fit into the {facts["n_initial_states"]} initial states of each task'
        )
    starts = [(tasks[k % len(tasks)], args.first_state + k // len(tasks)) for k in range(episodes)]
    if facts.get('slow_task_change'):
        starts.sort(key=lambda start: (tasks.index(start[0]), start[1]))
    return [
        Episode(entry, task, state, args.max_steps, keep_actions=k == 0)
        for k, (task, state) in enumerate(starts)
        for entry in entries
    ]


def _task_index(text: str, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    raise ValueError(f'unknown task {text!r}; valid: {", ".join(names)}')


def notes(facts: dict, entries: Sequence[Entry], plan: Sequence[Episode], done: int) -> list[str]:
    """Remarks for the head of the report."""
    states = sorted({episode.state for episode in plan})
    remarks = [
        f'{len(plan) // len(entries)} episodes per entry over'
        f' {len({e.task for e in plan})} of {len(facts["tasks"])} tasks, initial states'
        f' {states[0]} to {states[-1]} of {facts["n_initial_states"]}'
    ]
    if facts['unnorm_key'] not in (facts['suite'], f'{facts["suite"]}_no_noops'):
        remarks.append(
            f'actions are scaled by the statistics {facts["unnorm_key"]!r}, which are not'
            f' those of {facts["suite"]}'
        )
    if len(facts['shifted_tasks']) < len(facts['tasks']):
        remarks.append('tasks in which the shift changes nothing are left out')
    if done:
        remarks.append(f'{done} of {len(plan)} episodes were taken over from an earlier run')
    return remarks
