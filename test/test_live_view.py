# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The live view on recordings, over DDS and in a real browser."""

import io
import os
import signal
import socket
import subprocess
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from conftest import patience

from vla_prune_ros.view import live_view
from vla_prune_ros.view.scene import Scene
from vla_prune_ros.view.source import Reader

BAG = Path(__file__).parent / 'data' / 'bags' / 'pick_up'
needs_rerun = pytest.mark.skipif(
    find_spec('rerun') is None, reason='rerun is not installed (requirements/view.txt)'
)


@pytest.fixture(autouse=True)
def no_usage_data(tmp_path, monkeypatch):
    """What rerun sends and keeps belongs to its user: here it gets a home without either."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path))
    if find_spec('rerun') is not None:
        subprocess.run(['rerun', 'analytics', 'disable'], check=True, capture_output=True)


def free_ports(n=2):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(('127.0.0.1', 0))
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def test_without_rerun_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr('vla_prune_ros.view.sink.find_spec', lambda name: None)
    assert live_view.main([str(BAG)]) == 1
    assert 'pip install -r requirements/view.txt' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [['--no-web'], ['--image-rate', '0'], ['x', '--ros-args'], ['--jpeg-quality', '0']],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(SystemExit) as caught:
        live_view.main(arguments)
    assert caught.value.code == 2


@needs_rerun
def test_a_bag_becomes_a_file_with_everything_in_it(tmp_path, capsys):
    file = tmp_path / 'new' / 'view.rrd'
    assert live_view.main([str(BAG), '--no-web', '--save', str(file)]) == 0
    assert ', 0 could not be read' in capsys.readouterr().out
    told = subprocess.run(['rerun', 'rrd', 'stats', file], capture_output=True, text=True).stdout
    for path in ('cameras/agentview', 'cameras/wrist', 'kept/agentview', 'kept/wrist', 'text',
                 'world/path', 'world/plan', 'world/superseded', 'tokens/kept', 'tokens/total',
                 'gripper/wished', 'gripper/measured', 'time/age'):  # fmt: skip
        assert f'/{path}: ' in told


@needs_rerun
def test_a_bag_that_is_none_is_refused(tmp_path, capsys):
    file = str(tmp_path / 'view.rrd')
    assert live_view.main([str(tmp_path / 'nothing'), '--no-web', '--save', file]) == 1
    assert 'does not exist' in capsys.readouterr().err


@needs_rerun
def test_a_port_that_is_taken_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert live_view.main([str(BAG), '--port', port]) == 1
    assert f'cannot listen on 127.0.0.1:{port}' in capsys.readouterr().err


@needs_rerun
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_of_the_page_ends_with_the_view(start, number):
    port, data = free_ports()
    process = start('live_view', str(BAG), '--port', port, '--data-port', data)
    process.wait_for_log('open http://127.0.0.1:')
    children = Path(f'/proc/{process.popen.pid}/task/{process.popen.pid}/children').read_text()
    assert children.split()
    code, _ = process.end(number)
    assert code == {signal.SIGINT: 0, signal.SIGTERM: 0}.get(number, -signal.SIGKILL)
    deadline = time.monotonic() + patience(5.0)
    while any(Path(f'/proc/{child}').exists() for child in children.split()):
        assert time.monotonic() < deadline, 'the server lives on'
        time.sleep(0.05)


class StuckSink:
    """A viewer that never reads."""

    url = ''

    def __init__(self):
        self.go = threading.Event()

    def show(self, drawings):
        self.go.wait()

    def close(self):
        pass


def test_a_viewer_that_cannot_follow_costs_messages_and_no_time(ros, namespace):
    from diagnostic_msgs.msg import DiagnosticArray
    from sensor_msgs.msg import Image

    from vla_prune_ros.ros.messages import image_message
    from vla_prune_ros.view.node import WAITING, LiveView

    sink, stop = StuckSink(), threading.Event()
    view = LiveView(stop, sink, Reader(Scene(), ('a', 'b')), image_rate=5.0)
    view.start()
    try:
        picture = image_message(np.zeros((256, 256, 3), np.uint8), 0, '')
        started = time.perf_counter()
        for k in range(1000):
            picture.header.stamp.sec = k
            view._on_picture('agentview/image_raw', picture)
            view._on_message('action_chunk', Image())
            view._on_message('vla_policy/inference_stats', DiagnosticArray())
        assert (time.perf_counter() - started) / 1000 < 0.002
        assert len(view._waiting) <= WAITING and view.left_out > 1000
        assert len(view._pictures['agentview/image_raw']) <= 64
    finally:
        sink.go.set()
        view.close()
        view.destroy_node()


def test_messages_that_cannot_be_read_are_counted():
    from sensor_msgs.msg import Image, JointState

    reader = Reader(Scene(), ('a', 'b'))
    assert list(reader.read('agentview/image_raw', Image(encoding='nonsense'))) == []
    assert list(reader.read('joint_states', JointState(name=['c'], position=[1.0]))) == []
    assert reader.broken == 2


@needs_rerun
@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='no Chromium')
def test_a_browser_shows_the_running_policy(start, tmp_path, namespace):
    from PIL import Image

    port, data = free_ports()
    ros_arguments = ('--ros-args', '-r', f'__ns:={namespace}')
    view = start('live_view', '--port', port, '--data-port', data, *ros_arguments)
    url = view.wait_for_log('open http://').split('open ')[1].split()[0]
    start('sim_bridge', *ros_arguments, '-p', 'mode:=realtime')
    policy = (
        '-p',
        'pruning.mode:=specprune',
        '-p',
        'trigger:=request',
        '-p',
        'use_sim_time:=true',
    )
    start('policy_node', *ros_arguments, *policy)
    with Browser(tmp_path / 'profile') as browser:
        browser.open(url)
        deadline = time.monotonic() + 90.0
        while True:  # amber outlines of kept patches, and the orange plan
            pixels = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert('RGB'))
            amber = (np.abs(pixels.astype(int) - (255, 176, 0)).max(-1) < 40).sum()
            if amber > 200 and np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 5000:
                break
            assert time.monotonic() < deadline, 'nothing is to be seen'
            time.sleep(1.0)
    if folder := os.environ.get('VLA_PRUNE_ROS_PICTURES'):
        Image.fromarray(pixels).save(Path(folder) / 'live_view.png')
