# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The verb `evaluate` from its command line to its files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_checkpoint

import vla_prune_ros
from vla_prune_ros import weights
from vla_prune_ros.evaluation import evaluate
from vla_prune_ros.evaluation.entries import assign_checkpoints, make_entries, parse_value


@pytest.fixture
def command(checkpoint, tmp_path):
    return [
        '--checkpoint', str(checkpoint), '--out', str(tmp_path / 'out'), '--modes', 'none,random',
        '--option', 'random.keep=5', '--variant', 'late=random,keep=3,layer=2',
        '--sweep', 'random.keep=1,2', '--episodes', '3', '--tasks', 'pick_up_red,6',
        '--first-state', '4', '--max-steps', '9', '--workers', '1', '--quiet',
    ]  # fmt: skip


def outcomes(out):
    """What a run measured, without times."""
    rows = json.loads((out / 'results.json').read_text())['entries']
    return [{k: v for k, v in row.items() if k != 'latency_ms'} for row in rows]


def test_a_run_writes_all_its_files_and_a_second_one_only_reads_them(command, tmp_path, capsys):
    out = tmp_path / 'out'
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    names = ['none', 'random', 'late', 'random keep=1', 'random keep=2']
    results = json.loads((out / 'results.json').read_text())
    assert [row['name'] for row in results['entries']] == names
    assert all(name in printed for name in names)
    assert [row['kept_last_layer'] for row in results['entries']] == [32.0, 10.0, 6.0, 2.0, 4.0]
    assert results['entries'][2]['visual_rows_per_layer'] == [32.0, 32.0, 6.0, 6.0]
    assert results['entries'][0]['per_task'] == {
        'pick_up_red': [0, 2],
        'put_blue_on_plate': [0, 1],
    }
    assert results['entries'][1]['paired']['n'] == 3
    assert len(results['run']['sha256']) == 64
    assert 'initial states 4 to 5 of 50' in (out / 'report.md').read_text()
    for name in ('summary.csv', 'episodes.csv', 'success_against_flops.png', 'actions.png'):
        assert (out / name).stat().st_size > 0
    before, log = outcomes(out), (out / 'episodes.jsonl').read_bytes()
    assert evaluate.main(command) == 0
    assert (out / 'episodes.jsonl').read_bytes() == log
    assert outcomes(out) == before
    assert '15 of 15 episodes were taken over' in (out / 'report.md').read_text()


def test_the_readout_in_force_and_what_a_mode_is_not_are_recorded(command, tmp_path):
    results = []
    for readout in ([], ['--readout-start', '-56']):
        out = tmp_path / f'out{len(readout)}'
        options = ['--modes', 'none,random,efficient_vla', '--option', 'efficient_vla.skip=0']
        options += ['--episodes', '1', '--out', str(out)]
        assert evaluate.main([*command, *options, *readout]) == 0
        results.append(json.loads((out / 'results.json').read_text()))
    assert [r['run']['readout_start'] for r in results] == [-58, -56]
    assert 'head cache' in results[0]['run']['mode_notes']['efficient_vla']
    page = (tmp_path / 'out0' / 'report.md').read_text()
    assert '| efficient_vla [1] |' in page
    assert '- [1] without the head cache' in page


def test_an_interrupted_run_goes_on_and_ends_like_one_without_interruption(command, tmp_path):
    out, whole = tmp_path / 'out', tmp_path / 'whole'
    environment = {**os.environ, 'PYTHONPATH': str(Path(vla_prune_ros.__file__).parents[1])}
    options = [*command, '--workers', '2', '--episodes', '6']
    run = subprocess.Popen(
        [sys.executable, '-m', 'vla_prune_ros', 'evaluate', *options],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = out / 'episodes.jsonl'
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b'\n') > 4):
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    assert 'the same command goes on from there' in errors
    assert 'Traceback' not in errors
    finished = log.read_bytes().count(b'\n') - 1
    assert 4 <= finished < 30
    assert evaluate.main(options) == 0
    assert f'{finished} of 30 episodes were taken over' in (out / 'report.md').read_text()
    assert evaluate.main([*options, '--out', str(whole)]) == 0
    assert outcomes(out) == outcomes(whole)


def test_modes_and_entries_run_on_checkpoints_of_their_own(command, checkpoint, tmp_path):
    other = tiny_checkpoint(tmp_path / 'other', seed=1)
    more = ['--modes', 'none,random,lightvla', '--variant', 'dense_other=none']
    more += ['--checkpoint-for', f'lightvla={other}', '--checkpoint-for', f'dense_other={other}']
    more += ['--checkpoint-for', f'late={checkpoint}/.', '--episodes', '2']
    assert evaluate.main([*command, *more]) == 0
    out = tmp_path / 'out'
    results = json.loads((out / 'results.json').read_text())
    rows = {row['name']: row for row in results['entries']}
    assert {name for name, row in rows.items() if row['checkpoint'] == str(other)} == {
        'lightvla',
        'dense_other',
    }
    assert rows['none']['sha256'] == rows['late']['sha256'] == results['run']['sha256']
    assert rows['lightvla']['sha256'] == rows['dense_other']['sha256'] != rows['none']['sha256']
    assert results['baseline'] == 'none'
    assert rows['dense_other']['paired']['n'] == 2
    page = (out / 'report.md').read_text()
    assert f'`{other}`, sha256 `{rows["lightvla"]["sha256"]}`: lightvla, dense_other' in page
    # Other weights for one entry: its episodes are run again, the others are taken over.
    tiny_checkpoint(other, seed=2)
    assert evaluate.main([*command, *more]) == 0
    assert '10 of 14 episodes were taken over' in (out / 'report.md').read_text()


def test_without_a_checkpoint_the_embedded_policies_run(checkpoint, tmp_path, monkeypatch):
    home = tmp_path / 'embedded'
    home.mkdir()
    (home / 'tabletop').symlink_to(checkpoint)
    tiny_checkpoint(home / 'tabletop_lightvla', seed=1, pruning_trained='lightvla')
    monkeypatch.setattr(weights, 'files', lambda _: home)
    out = tmp_path / 'out'
    options = ['--modes', 'none,lightvla', '--episodes', '1', '--max-steps', '1', '--quiet']
    options += ['--workers', '1', '--tasks', 'pick_up_red', '--out', str(out)]
    options += ['--variant', 'untrained=lightvla', '--checkpoint-for', 'untrained=tabletop']
    assert evaluate.main(options) == 0
    results = json.loads((out / 'results.json').read_text())
    used = {row['name']: row['checkpoint'] for row in results['entries']}
    assert used == {'none': 'tabletop', 'lightvla': 'tabletop_lightvla', 'untrained': 'tabletop'}
    assert results['run']['mode_notes'].keys() == {'untrained'}


def test_a_variant_may_set_lists_and_options_of_a_copied_mode():
    texts = ['a=specprune,cut_layers=5,10,layer_cuts=true,global_layers=14']
    texts += ['b=random,matched_to=specprune,matched_options=alpha=0.4 cut_layers=5,10,seed=3']
    a, b = (entry.options for entry in make_entries('', variants=texts))
    assert a == {'cut_layers': '5,10', 'layer_cuts': True, 'global_layers': '14'}
    assert b == {
        'matched_to': 'specprune', 'matched_options': 'alpha=0.4 cut_layers=5,10', 'seed': 3
    }  # fmt: skip
    with pytest.raises(ValueError, match="unknown pruning mode 'random,5'"):
        make_entries('', variants=['c=random,5'])


def test_a_checkpoint_goes_to_the_entry_named_else_to_all_of_the_mode():
    entries = make_entries(
        'none,random', variants=['late=random,layer=1'], sweeps=['random.keep=2']
    )
    given = ['random=a', 'random keep=2=b=c']
    assert [e.checkpoint for e in assign_checkpoints(entries, given)] == [None, 'a', 'a', 'b=c']
    kept = assign_checkpoints(entries, ['late=b'], {'random': 'a', 'fastv': 'x'})
    assert [e.checkpoint for e in kept] == [None, 'a', 'b', 'a']


def test_other_weights_do_not_mix_into_an_old_directory(command, tmp_path, capsys):
    assert evaluate.main([*command, '--episodes', '1']) == 0
    other = str(tiny_checkpoint(tmp_path / 'other', seed=1))
    assert evaluate.main([*command, '--checkpoint', other]) == 1
    assert 'different: sha256' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--modes', 'none,nonsense'], "unknown pruning mode 'nonsense'; valid: none, "),
        (['--modes', 'none'], '--option for modes that do not run: random'),
        (['--option', 'random.nonsense=1'], 'valid: budget, keep_ratio, keep'),
        (['--option', 'random.keep=many'], "random.keep: 'many' is not a int"),
        (['--option', 'random.keep=17'], 'above 16 patches per view'),
        (['--option', 'keep=1'], 'not of the form MODE.KEY=VALUE'),
        (['--variant', 'late=random'], 'entries given twice: late'),
        (['--tasks', 'juggle'], 'valid: pick_up_red'),
        (['--episodes', '1000'], 'do not fit into the 50 initial states'),
        (['--checkpoint', '/nowhere'], '/nowhere'),
        (['--checkpoint-for', 'late=/nowhere'], '/nowhere'),
        (['--checkpoint-for', 'lightvla=x'], 'entries: none, random, late, random keep=1'),
        (['--checkpoint-for', 'late'], 'is not NAME=DIR'),
        (['--checkpoint-for', 'late=a', '--checkpoint-for', 'late=b'], 'late is given twice'),
    ],
)
def test_a_wrong_command_fails_at_once_and_says_what_is_valid(command, more, message, capsys):
    assert evaluate.main([*command, *more]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--episodes', '--trials'])
def test_no_episode_at_all_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        evaluate.parser().parse_args([option, '0'])
    assert f"{option}: '0' is not a whole number from 1 on" in capsys.readouterr().err


def test_modes_may_carry_options_in_the_list():
    text = 'none,specprune:budget=0.25,cut_layers=5,10,alpha=0.4,fastv:rows=all,random'
    entries = make_entries(text, options=['fastv.layers=1'], control='off')
    assert [(e.name, e.mode, e.options) for e in entries] == [
        ('none', 'none', {}),
        (
            'specprune:budget=0.25,cut_layers=5,10,alpha=0.4',
            'specprune',
            {'budget': 0.25, 'cut_layers': '5,10', 'alpha': 0.4},
        ),
        ('fastv:rows=all', 'fastv', {'layers': 1, 'rows': 'all'}),
        ('random', 'random', {}),
    ]
    with pytest.raises(ValueError, match='budget'):
        make_entries('none:budget=0.5')
    with pytest.raises(ValueError, match='nonsense'):
        make_entries('none,nonsense:budget=0.5')


def test_all_means_every_registered_mode_and_values_get_their_type():
    from vla_prune_ros.pruning import MODES

    assert [entry.name for entry in make_entries('all', control='off')] == list(MODES)
    assert parse_value('random', 'keep_ratio', '1') == 1.0
    assert type(parse_value('random', 'keep_ratio', '1')) is float
    assert parse_value('random', 'redraw', 'episode') == 'episode'


def test_all_brings_the_random_control_at_other_budgets_for_the_curve():
    def controls(entries):
        return [(e.name, e.options) for e in entries if e.name.startswith('random ')]

    shares = ((f'random {r}', {'keep_ratio': r}) for r in (0.125, 0.25, 0.75))
    assert controls(make_entries('all')) == list(shares)
    assert controls(make_entries('none')) == []
    chosen = make_entries('random', ['random.keep=4', 'random.layer=2'], control='0.1')
    assert controls(chosen) == [('random 0.1', {'layer': 2, 'keep_ratio': 0.1})]


def test_failed_episodes_by_exception_make_the_exit_code_nonzero(command, monkeypatch, capsys):
    from vla_prune_ros.sim.tabletop import TabletopRobot

    def broken(self, action):
        raise OSError('the arm fell off')

    monkeypatch.setattr(TabletopRobot, 'step', broken)
    assert evaluate.main([*command, '--episodes', '1']) == 1
    assert '1 episodes ended in an exception' in capsys.readouterr().err
