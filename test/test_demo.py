# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The whole demo, for real: two nodes, DDS, a simulated robot; weights alone are random."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import patience
from PIL import Image

pytest.importorskip('rclpy')


@pytest.fixture
def demo(start, checkpoint, tmp_path):
    """Starts a short demo."""

    def run(*more):
        return start(
            'demo', '--checkpoint', str(checkpoint), '--modes', 'none,random', '--episodes', '2',
            '--tasks', 'pick_up_red,6', '--max-steps', '12', '--patience', '40',
            '--domain-id', os.environ['ROS_DOMAIN_ID'], '--out', str(tmp_path / 'out'), *more,
        )  # fmt: skip

    return run


def processes_about(text):
    """Command lines of all processes that name `text`."""
    found = {}
    for folder in Path('/proc').iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / 'cmdline').read_bytes().decode().replace('\0', ' ')
            except (FileNotFoundError, ProcessLookupError):
                continue
            if text in command:
                found[int(folder.name)] = command
    return found


def nodes_of(process):
    """Pids of the two nodes by verb, from the parent's children."""
    children = Path(f'/proc/{process.popen.pid}/task/{process.popen.pid}/children').read_text()
    verbs = {}
    for pid in map(int, children.split()):
        command = Path(f'/proc/{pid}/cmdline').read_bytes().decode().split('\0')
        verbs[command[3]] = pid
    return verbs


def are_gone(pids, timeout=5.0):
    deadline = time.monotonic() + patience(timeout)
    while any(Path(f'/proc/{pid}').exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_demo_switches_modes_writes_everything_and_leaves_no_process(demo, checkpoint, tmp_path):
    before = processes_about(str(checkpoint)).keys()  # other tests share it
    process = demo()
    process.wait_for_log('both nodes are ready')
    nodes = nodes_of(process)
    assert nodes.keys() == {'policy_node', 'sim_bridge'}
    assert process.wait(90) == 0, process.log
    assert are_gone(nodes.values())
    assert processes_about(str(checkpoint)).keys() == before

    out = tmp_path / 'out'
    results = json.loads((out / 'results.json').read_text())
    assert [(e['mode'], e['task']) for e in results['episodes']] == [
        ('none', 'pick_up_red'), ('random', 'pick_up_red'),
        ('none', 'put_blue_on_plate'), ('random', 'put_blue_on_plate'),
    ]  # fmt: skip
    for episode in results['episodes']:
        assert (episode['steps'], episode['queries']) == (12, 2)
        assert episode['kept'] == ([32, 32] if episode['mode'] == 'none' else [16, 16])
    assert [row['episodes'] for row in results['modes']] == [2, 2]
    assert [p['checkpoint'] for p in results['run']['policies']] == [str(checkpoint)]
    assert '| random |' in process.log
    with Image.open(out / 'episode.gif') as animation:
        assert animation.n_frames == 6  # every second of the 12 steps
    with Image.open(out / 'episodes.png') as strip:
        assert strip.size == (3 * 512, 2 * 302)


def test_what_a_mode_is_not_on_these_weights_is_noted_below_the_table(demo, tmp_path):
    process = demo('--modes', 'lightvla,none', '--episodes', '1')
    assert process.wait(90) == 0, process.log
    assert '| lightvla [1] |' in process.log
    assert '| none         |' in process.log
    assert '\n- [1] these weights were not trained for lightvla' in process.log
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert [bool(row['note']) for row in results['modes']] == [True, False]


def test_lightvla_runs_on_the_embedded_weights_made_for_it(start, tmp_path):
    process = start(
        'demo', '--modes', 'none,random,lightvla', '--episodes', '1', '--max-steps', '12',
        '--domain-id', os.environ['ROS_DOMAIN_ID'], '--out', str(tmp_path),
    )  # fmt: skip
    assert process.wait(90) == 0, process.log
    results = json.loads((tmp_path / 'results.json').read_text())
    assert {row['mode']: row['checkpoint'] for row in results['modes']} == {
        'none': 'tabletop', 'random': 'tabletop', 'lightvla': 'tabletop_lightvla',
    }  # fmt: skip
    digests = {policy['mode']: policy['sha256'] for policy in results['run']['policies']}
    assert digests['lightvla'] != digests['random']
    assert not any(row['note'] for row in results['modes'])
    assert '- [1] on weights tabletop_lightvla' in process.log


def test_ctrl_c_stops_both_nodes(demo):
    process = demo('--episodes', '50')
    process.wait_for_log('[  1/100]')
    nodes = nodes_of(process)
    code, seconds = process.end(signal.SIGINT, timeout=patience(20))
    assert code == 130, process.log
    assert seconds < patience(15)
    assert are_gone(nodes.values())
    assert 'Traceback' not in process.log


def test_killing_the_demo_takes_the_nodes_with_it(demo):
    process = demo('--episodes', '50')
    process.wait_for_log('[  1/100]')
    nodes = nodes_of(process)
    process.popen.kill()
    process.popen.wait()
    assert are_gone(nodes.values(), timeout=15)


@pytest.mark.parametrize('victim', ['policy_node', 'sim_bridge'])
def test_a_node_that_dies_fails_the_demo_with_the_end_of_its_log(demo, victim):
    process = demo('--episodes', '50')
    process.wait_for_log('[  1/100]')
    nodes = nodes_of(process)
    os.kill(nodes[victim], signal.SIGKILL)
    assert process.wait(20) == 1, process.log
    assert f'{victim} ended with exit code -9; the end of' in process.log
    assert f'{"vla_policy" if victim == "policy_node" else "sim_bridge"}]:' in process.log
    assert are_gone(nodes.values())


def test_a_policy_that_cannot_load_is_named_with_its_reason(demo, tmp_path):
    process = demo('--checkpoint', str(tmp_path / 'nowhere'))
    assert process.wait(40) == 1
    assert 'no config.json in checkpoint directory' in process.log
    assert not processes_about(str(tmp_path))


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--modes', 'nonsense'], "unknown pruning mode 'nonsense'; valid: none, "),
        (['--episodes', '0'], 'at least one task'),
        (['--domain-id', '200'], 'not within 0..101'),
        (['--tasks', 'juggle'], "unknown task 'juggle'"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(demo, more, message):
    process = demo(*more)
    assert process.wait(60) == 1
    assert message in process.log
