# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A clock that jumps or stops, and nodes that die or double, over DDS: what the node does."""

from __future__ import annotations

import signal
import time

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

import cv2
import numpy as np
from conftest import REPOSITORY
from faults import FaultPeer, FaultyNode, running
from peer import PERIOD
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from vla_prune_ros.ros import messages as m

START = 1000 * m.NANOSECONDS


@pytest.fixture(scope='module')
def pair(ros, tmp_path_factory, checkpoint):
    """One node in simulated time and its peer."""
    folder = tmp_path_factory.mktemp('node')
    settings = {'use_sim_time': 'true', 'max_gap': 5.0}
    with running(folder, checkpoint, '/clocked', **settings) as (process, peer):
        yield process, peer


@pytest.fixture
def peer(pair) -> FaultPeer:
    process, peer = pair
    peer.tell_time(START)
    peer.trigger('vla_policy/reset')
    peer.forget()
    yield peer
    assert process.popen.poll() is None, process.log


def at(peer: FaultPeer, stamp: int) -> dict[str, str]:
    """The statistics of an observation at a simulated time."""
    peer.tell_time(stamp)
    peer.asked(stamp)
    return peer.stats[-1]


def test_a_clock_that_jumps_back_resets_the_history(peer):
    assert at(peer, START)['reset_reason'] == 'reset'
    assert at(peer, START + PERIOD)['reset_reason'] == ''
    assert at(peer, START // 2)['reset_reason'] == 'clock'
    assert at(peer, START // 2 + PERIOD)['reset_reason'] == ''


def test_a_clock_that_jumps_ahead_drops_what_is_old_and_resets_the_history(peer):
    at(peer, START)
    peer.tell_time(START + 60 * m.NANOSECONDS)
    peer.send_parts(START + PERIOD)
    assert peer.gets_nothing()
    assert at(peer, START + 60 * m.NANOSECONDS)['reset_reason'] == 'gap'
    assert int(peer.stats[-1]['dropped.stale']) == 1


def test_a_clock_that_stands_still_stops_the_chunks_but_not_the_watchdog(peer, pair):
    at(peer, START)
    peer.send_parts(START + 10 * m.NANOSECONDS)
    assert peer.gets_nothing(0.8)
    log = pair[0].wait_for_log('ahead of the clock; is /clock published?')
    assert 'no new message on agentview' in pair[0].wait_for_log('no new message on agentview')
    assert log.count('ahead of the clock') == 1
    level, _, values = peer.wait_for_report('Inputs', lambda r: r[0] == 1)
    assert level == 1 and float(values['agentview: age (s)']) < 0


@pytest.mark.slow
def test_two_nodes_in_two_namespaces_do_not_hear_each_other(ros, tmp_path, checkpoint, pair):
    with (
        running(tmp_path, checkpoint, '/left', default_instruction='go left') as (_, left),
        running(tmp_path, checkpoint, '/right', default_instruction='go right') as (_, right),
    ):
        left.asked()
        right.spin(0.3)
        assert not right.chunks and not right.stats
        right.asked()
        right.asked()
        left.spin(0.3)
        assert len(left.chunks) == 1
        assert left.info[-1]['instruction'] == 'go left'
        assert right.info[-1]['instruction'] == 'go right'
        instructions = {
            side: peer.wait_for_report('Node', lambda r: r[0] == 0)[2]['instruction']
            for side, peer in (('left', left), ('right', right))
        }
        assert instructions == {'left': 'go left', 'right': 'go right'}


@pytest.mark.slow
def test_a_node_that_is_killed_and_started_again_answers_the_request_that_is_repeated(
    ros, tmp_path, checkpoint, namespace
):
    settings = {'trigger': 'request', 'max_observation_age': 0.0, 'default_instruction': '""'}
    peer = FaultPeer(namespace)
    instruction = peer.node.create_publisher(String, 'instruction', m.LATCHED)
    instruction.publish(String(data='wave'))
    stamp, answers = time.time_ns(), []
    for _ in range(2):
        process = FaultyNode(tmp_path, checkpoint, namespace, **settings)
        while not peer.stats:  # as a bridge does: again and again, until the answer is there
            assert process.popen.poll() is None, process.log
            peer.executed.publish(m.executed_message(np.empty((0, 7)), stamp, PERIOD))
            peer.send_parts(stamp)
            peer.spin(0.2)
        answers.append(m.actions_from(peer.chunks[-1]).tobytes())
        assert peer.stats[-1]['reset_reason'] == 'start'
        assert peer.info[-1]['instruction'] == 'wave'
        process.end(signal.SIGKILL)
        peer.forget()
    assert answers[0] == answers[1]
    peer.close()


@pytest.mark.slow
def test_a_robot_that_dies_stops_the_chunks_and_one_that_comes_back_starts_them(
    ros, tmp_path, checkpoint, namespace
):
    with running(tmp_path, checkpoint, namespace, trigger='observation') as (process, peer):
        peer.asked()
        peer.close()  # all its publishers go
        log = process.wait_for_log('no new message on wrist')  # the last of them
        assert [log.count(f'no new message on {s}') for s in ('agentview', 'ee_pose')] == [1, 1]
        again = FaultPeer(namespace)
        again.wait_until_active(process)
        again.asked()
        process.wait_for_log('joint_states is back')
        assert int(again.stats[-1]['sequence']) == 1, 'nothing was inferred meanwhile'
        again.close()


@pytest.mark.slow
def test_a_simulated_robot_that_is_killed_and_started_again_is_served_again(
    ros, tmp_path, checkpoint, namespace, start
):
    pytest.importorskip('mujoco', reason='the tabletop simulation is not installed')
    bridge = ['--ros-args', '-r', f'__ns:={namespace}', '-p', 'publish_every_step:=true']
    settings = {'file': REPOSITORY / 'config/sim.yaml', 'default_instruction': '""'}
    with running(tmp_path, checkpoint, namespace, **settings) as (process, peer):
        for life in range(2):
            peer.forget()
            robot = start('sim_bridge', *bridge)
            assert peer.wait_for(lambda: len(peer.stats) >= 4, 60.0), process.log + robot.log
            reasons = [s['reset_reason'] for s in peer.stats]
            assert ('clock' in reasons or 'instruction' in reasons) is (life == 1), reasons
            robot.end(signal.SIGKILL)
            said = process.log.count('no new message on agentview')
            peer.wait_for(lambda n=said: process.log.count('no new message on agentview') > n, 5)
            assert peer.gets_nothing() and peer.state() == 'active'


@pytest.mark.slow
def test_compressed_pictures_are_taken_and_broken_ones_refused(
    ros, tmp_path, checkpoint, namespace
):
    settings = {'image_transport': 'compressed', 'enabled': 'false'}
    with running(tmp_path, checkpoint, namespace, **settings) as (_, peer):
        cameras = {
            name: peer.node.create_publisher(CompressedImage, f'{name}/image_raw/compressed', 5)
            for name in peer.images
        }
        assert peer.wait_for(lambda: all(p.get_subscription_count() for p in cameras.values()))
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        good = cv2.imencode('.png', pixels)[1].tobytes()

        def send(data: bytes) -> int:
            stamp = time.time_ns()
            for name, camera in cameras.items():
                image = CompressedImage(format='png', data=data if name == 'wrist' else good)
                image.header.stamp = m.to_time(stamp)
                camera.publish(image)
            return peer.send_parts(stamp, agentview=None, wrist=None)

        def answered(timeout: float) -> bool:
            stamp = send(good)
            return peer.wait_for(lambda: any(s['stamp'] == stamp for s in peer.stats), timeout)

        assert not any(answered(0.1) for _ in range(5)), 'it starts disabled'
        peer.enable(True)
        assert any(answered(1.0) for _ in range(10))
        for bad in (b'', b'no picture', good[:60]):
            send(bad)
            assert peer.gets_nothing(0.2)
        assert answered(10.0)
        assert int(peer.stats[-1]['broken.wrist']) == 3
