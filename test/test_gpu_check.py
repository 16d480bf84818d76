# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`gpu_check`: a lease is used up whatever fails, and needs neither ROS nor a simulator."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from vla_prune_ros.benchmark import gpu_check
from vla_prune_ros.benchmark.gpu_check import read, run_steps, unfinished, write_summary
from vla_prune_ros.benchmark.gpu_steps import STEPS, Place, Step, gpu_test_files
from vla_prune_ros.benchmark.journal import Journal, summarise
from vla_prune_ros.policy import ActionChunk

ROOT = REPOSITORY
MISSING = (
    'rclpy',
    'mujoco',
    'hypothesis',
    'pytest_timeout',
    'matplotlib',
    'rosbags',
    'torchao',
    'simplejpeg',
)


def step(name, code, seconds=20.0):
    """A step that runs Python code with its folder as argument."""

    def rows(folder):
        path = folder / 'rows.json'
        return json.loads(path.read_text()) if path.exists() else []

    return Step(
        name, 'a test', seconds,
        lambda place: [sys.executable, '-c', code, str(place.out / name)], rows,
    )  # fmt: skip


WRITES = (
    'import json, pathlib, sys; '
    'pathlib.Path(sys.argv[1], "rows.json").write_text(json.dumps([{"ms": 1.5}]))'
)


@pytest.fixture
def steps(monkeypatch):
    """Good, bad, endless, good."""
    made = [
        step('good', WRITES),
        step('bad', 'import sys; print("it broke"); sys.exit(3)'),
        step('endless', f'{WRITES}\nimport subprocess\nsubprocess.run(["sleep", "60"])', 3.0),
        step('last', WRITES),
    ]
    made = {one.name: one for one in made}
    monkeypatch.setattr(gpu_check, 'STEPS', made)
    return made


def test_a_failing_step_stops_no_other_and_results_are_there_as_they_come(steps, tmp_path):
    place = Place(tmp_path, ROOT)
    run_steps([*steps.values()], place, 100)
    states = {name: read(tmp_path, name) for name in steps}
    assert [s['exit_code'] for s in states.values()] == [0, 3, 124, 0]
    assert states['endless']['timed_out'] and states['endless']['seconds'] < 10
    assert states['endless']['result'] == [{'ms': 1.5}]  # what it wrote before
    assert 'it broke' in (tmp_path / 'bad.log').read_text()
    summary = (tmp_path / 'summary.md').read_text()
    assert 'failed (3)' in summary and 'over its time' in summary and '## last' in summary
    assert [one.name for one in unfinished(steps, tmp_path)] == ['bad', 'endless']


def test_what_an_ended_step_started_ends_with_it(tmp_path):
    code = (
        'import pathlib, subprocess, sys\n'
        'child = subprocess.Popen(["sleep", "60"])\n'
        'pathlib.Path(sys.argv[1], "pid").write_text(str(child.pid))\n'
        'child.wait()'
    )
    run_steps([step('endless', code, 3.0)], Place(tmp_path, ROOT), 100)
    child = Path('/proc', (tmp_path / 'endless' / 'pid').read_text())
    until = time.monotonic() + 10
    while lives(child) and time.monotonic() < until:
        time.sleep(0.05)  # it was told to end, and has to get its turn
    assert not lives(child)


def lives(process: Path) -> bool:
    try:
        return (process / 'stat').read_text().split()[2] not in 'ZX'
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_finished_steps_are_skipped_and_failed_ones_come_last(steps, tmp_path, capsys):
    assert gpu_check.main(['--out', str(tmp_path), '--steps', 'bad,good']) == 1
    assert [one.name for one in unfinished(steps, tmp_path)] == ['endless', 'last', 'bad']
    del steps['endless'], steps['bad']
    before = read(tmp_path, 'good')
    assert gpu_check.main(['--out', str(tmp_path)]) == 0
    assert read(tmp_path, 'good') == before
    assert 'last ...' in capsys.readouterr().out


def test_a_step_that_does_not_fit_waits_for_another_call(tmp_path):
    steps = [step('long', WRITES, 30.0), step('short', WRITES, 10.0)]
    run_steps(steps, Place(tmp_path, ROOT), 25)
    assert read(tmp_path, 'long') is None and read(tmp_path, 'short')['exit_code'] == 0


def test_unknown_steps_are_refused(tmp_path, capsys):
    assert gpu_check.main(['--out', str(tmp_path), '--steps', 'env,nonsense']) == 2
    assert 'nonsense' in (said := capsys.readouterr().err) and 'quick' in said


def test_all_steps_fit_into_28_minutes_in_calls_of_at_most_ten():
    place, calls, left = Place(Path('/nowhere'), ROOT), 0, [*STEPS.values()]
    while left:  # as `run_steps` fills a call when everything takes as long as it may
        seconds, waiting = 540 - gpu_check._SPARE, []
        for one in left:
            if one.limit(place) <= seconds:
                seconds -= one.limit(place)
            else:
                waiting.append(one)
        assert len(waiting) < len(left)
        calls, left = calls + 1, waiting
    assert calls * 540 <= 28 * 60


def test_a_broken_summary_of_a_step_is_impossible_before_it_ran(tmp_path):
    write_summary(tmp_path)
    assert (tmp_path / 'summary.md').read_text().count('not run') == len(STEPS)


def test_a_journal_keeps_what_was_answered_before_the_end(tmp_path):
    chunk = ActionChunk([], 0.0, [1, 2, 3], 'none', {'total': 2.0}, 0, '', 8, {})
    with Journal(tmp_path / 'samples.jsonl') as journal:
        for number, ms in enumerate((50.0, 2.0, 4.0)):
            journal.note('dense', number, number == 0, chunk, ms)
        assert len((tmp_path / 'samples.jsonl').read_text().splitlines()) == 3  # already
    with (tmp_path / 'samples.jsonl').open('a') as file:
        file.write('{"arm": "den')  # killed while it wrote
    (row,) = summarise(tmp_path / 'samples.jsonl')
    assert (row['arm'], row['queries'], row['p50'], row['kept']) == ('dense', 2, 3.0, 3.0)
    assert summarise(tmp_path / 'nowhere') == []


# -- without the packages that a bare machine lacks ---------------------------------------------
@pytest.fixture
def bare(tmp_path):
    """Environment of a Python in which some packages cannot be imported."""
    folder = tmp_path / 'blocked'
    folder.mkdir()
    (folder / 'sitecustomize.py').write_text(
        'from importlib.machinery import PathFinder\n'
        'find = PathFinder.find_spec\n'
        'class Find:\n'  # no function: pytest keeps it as an attribute of a class
        '    def __call__(self, name, *more):\n'
        f'        return None if name in {MISSING} else find(name, *more)\n'
        'PathFinder.find_spec = Find()\n'
    )
    # Plugins of pytest load by themselves where they are installed; a bare machine has none.
    return {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(folder), str(ROOT)]),
        'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1',
        'OMP_NUM_THREADS': '1',
    }


def test_every_gpu_test_is_collected_without_ros_and_simulator(bare):
    files = gpu_test_files(ROOT)
    assert 'test/test_runtime_static.py' in files
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '--collect-only', '-q', '-m', 'gpu',
         '-p', 'no:cacheprovider', *files],
        cwd=ROOT, env=bare, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    collected = [line for line in run.stdout.splitlines() if '::' in line]
    assert len(collected) > 80
    assert {line.split('::')[0] for line in collected} == {*files}


def rehearse(environment, out, *arguments):
    run = subprocess.run(
        [sys.executable, '-m', 'vla_prune_ros', 'gpu_check', '--rehearse', '--out', str(out),
         *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    logs = ''.join(p.read_text()[-3000:] for p in out.glob('*.log'))
    return run, run.stdout + run.stderr + logs


def test_the_first_steps_are_rehearsed_on_a_bare_machine(bare, tmp_path):
    run, said = rehearse(bare, tmp_path / 'out', '--steps', 'quick')
    assert run.returncode == 0, said
    arms = [row['arm'] for row in read(tmp_path / 'out', 'quick')['result']]
    assert arms == ['dense', 'specprune', 'lightvla']
    assert 'draws it later' in (tmp_path / 'out' / 'quick.log').read_text()  # no matplotlib


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_step_is_rehearsed_on_a_bare_machine(bare, tmp_path):
    run, said = rehearse(bare, tmp_path / 'out', '--seconds', '3000')
    states = {name: read(tmp_path / 'out', name) for name in STEPS}
    failed = {name for name, state in states.items() if not state or state['exit_code']}
    assert run.returncode == 0 and not failed, said
    assert all(state['result'] for state in states.values())
