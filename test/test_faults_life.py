# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Transitions under traffic, beside a busy model and beside other nodes, over DDS."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

import rclpy
from conftest import patience
from faults import TRANSITIONS, UNIT, FaultPeer, running
from lifecycle_msgs.srv import ChangeState
from peer import FINGERS
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from test_faults_inference import behave
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros import messages as m


class Traffic(threading.Thread):
    """A robot with two cameras at 30 Hz and its state at 200 Hz, and one that comes and goes."""

    def __init__(self, peer: FaultPeer) -> None:
        super().__init__(daemon=True)
        self._peer, self._ended = peer, threading.Event()
        self._picture = np.zeros((48, 64, 3), np.uint8)

    def run(self) -> None:
        """Publish until `stop`."""
        beat, visitor = 0, None
        while not self._ended.wait(0.005):
            stamp, beat = time.time_ns(), beat + 1
            self._peer.joints.publish(m.joint_message(FINGERS, np.zeros(2), stamp))
            self._peer.pose.publish(m.pose_message(np.full(3, 0.1), UNIT, stamp, 'world'))
            for name, publisher in self._peer.images.items() if beat % 7 == 0 else ():
                publisher.publish(m.image_message(self._picture, stamp, name))
            if beat % 31 == 0 and visitor is None:
                visitor = rclpy.create_node('visitor', namespace=self._peer.namespace)
                for name in self._peer.images:
                    publisher = visitor.create_publisher(Image, f'{name}/image_raw', m.SENSOR)
                    publisher.publish(m.image_message(self._picture, stamp, name))
                visitor.create_publisher(JointState, 'joint_states', m.SENSOR)
            elif beat % 47 == 0 and visitor is not None:
                visitor.destroy_node()
                visitor = None
        if visitor is not None:
            visitor.destroy_node()

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self.join()


@pytest.mark.parametrize('reliability', ['best_effort', 'reliable'])
def test_a_node_that_is_deactivated_again_and_again_under_traffic_goes_on(
    ros, tmp_path, checkpoint, namespace, reliability
):
    """Publishers that come and go fit the node's QoS, or do not."""
    with running(tmp_path, checkpoint, namespace, input_reliability=reliability) as (node, peer):
        traffic = Traffic(peer)
        traffic.start()
        try:
            for _ in range(20):
                for transition in ('deactivate', 'activate'):
                    assert peer.change(transition), node.log
                    peer.spin(0.05)
            peer.forget()
            assert peer.wait_for(lambda: len(peer.chunks) >= 3, 10.0), node.log
        finally:
            traffic.stop()
        assert node.popen.poll() is None, node.log
        assert node.end(signal.SIGINT)[0] == 0
        assert 'Traceback' not in node.log and 'Exception' not in node.log


def test_a_node_that_deactivates_itself_under_traffic_can_be_activated_again(
    ros, tmp_path, checkpoint, namespace
):
    with running(tmp_path, checkpoint, namespace, max_failures=1) as (node, peer):
        traffic = Traffic(peer)
        traffic.start()
        try:
            for _ in range(5):
                behave(peer, fail='error')
                assert peer.wait_for(lambda: peer.state() == 'inactive', 10.0), node.log
                behave(peer, fail='never')
                assert peer.change('activate'), node.log
            peer.forget()
            assert peer.wait_for(lambda: peer.chunks, 10.0), node.log
        finally:
            traffic.stop()
        assert node.end(signal.SIGINT)[0] == 0, node.log


def test_services_answer_while_an_inference_hangs_in_front_of_cleanup_and_configure(
    ros, tmp_path, checkpoint, namespace
):
    with running(tmp_path, checkpoint, namespace) as (node, peer):
        client = peer.node.create_client(ChangeState, 'vla_policy/change_state')
        assert peer.wait_for(client.service_is_ready)  # which may take seconds
        behave(peer, sleep=patience(5.0))
        peer.send_parts()
        peer.spin(0.3)
        begun = time.monotonic()
        assert peer.change('deactivate') and peer.change('cleanup')
        assert peer.state() == 'unconfigured'
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS['configure']
        answer = client.call_async(request)
        assert peer.state() == 'unconfigured'
        assert not peer.change('configure'), 'it is being loaded'
        assert time.monotonic() - begun < patience(4.5) and not answer.done(), 'it still hangs'
        assert peer.wait_for(answer.done, 60.0) and answer.result().success, node.log
        behave(peer, sleep=0.0)
        assert peer.change('activate')
        peer.wait_until_active(node)
        peer.asked()


@pytest.mark.parametrize('transition', ['label', 'id'])
def test_configure_by_name_or_number_loads_the_model_ahead(
    ros, tmp_path, checkpoint, namespace, transition
):
    with running(tmp_path, checkpoint, namespace) as (_, peer):
        assert peer.change('deactivate') and peer.change('cleanup')
        request = ChangeState.Request()
        setattr(
            request.transition,
            transition,
            'configure' if transition == 'label' else TRANSITIONS['configure'],
        )
        assert peer.call(ChangeState, 'vla_policy/change_state', request, 30.0).success
        assert peer.state() == 'inactive'


def test_a_request_before_the_instruction_is_answered_when_the_instruction_comes(
    ros, tmp_path, checkpoint, namespace
):
    settings = {'trigger': 'request', 'max_observation_age': 0.0, 'default_instruction': '""'}
    with running(tmp_path, checkpoint, namespace, **settings) as (node, peer):
        stamp = time.time_ns()
        for _ in range(3):  # as a bridge does: again and again
            peer.executed.publish(m.executed_message(np.empty((0, 7)), stamp, 50_000_000))
            peer.send_parts(stamp)
            peer.spin(0.2)
        assert not peer.chunks
        peer.instruction.publish(String(data='wave'))
        assert peer.wait_for(lambda: peer.stats, 10.0), node.log
        assert [m.to_ns(c.header.stamp) for c in peer.chunks] == [stamp]


def test_an_empty_instruction_stops_the_chunks_until_there_is_a_new_one(
    ros, tmp_path, checkpoint, namespace
):
    with running(tmp_path, checkpoint, namespace) as (_, peer):
        peer.asked()
        peer.instruction.publish(String(data=' '))
        assert peer.wait_for(lambda: peer.info[-1]['instruction'] == '')
        peer.send_parts()
        assert peer.gets_nothing()
        assert peer.wait_for_report('Node', lambda r: r[0] == 1)[1] == 'waits for an instruction'
        peer.instruction.publish(String(data='go'))
        assert peer.wait_for(lambda: peer.info[-1]['instruction'] == 'go')
        peer.forget()
        peer.asked()


def test_no_chunk_for_the_old_instruction_leaves_after_the_new_one_is_announced(
    ros, tmp_path, checkpoint, namespace
):
    with running(tmp_path, checkpoint, namespace, max_observation_age=0.0) as (node, peer):
        behave(peer, sleep=0.8)
        stamp = peer.send_parts()
        peer.spin(0.3)
        peer.instruction.publish(String(data='go'))
        assert peer.wait_for(lambda: peer.info[-1]['instruction'] == 'go')
        said = time.monotonic()
        assert peer.wait_for(lambda: peer.stats, 10.0), node.log
        assert time.monotonic() - said > 0.7, 'it was thought about again'
        assert [m.to_ns(c.header.stamp) for c in peer.chunks] == [stamp]
        assert peer.stats[-1]['reset_reason'] == 'instruction'
        assert peer.stats[-1]['dropped.discarded'] == '1'


def test_reported_actions_of_an_answered_observation_reach_the_history_and_ask_for_nothing(
    ros, tmp_path, checkpoint, namespace
):
    with running(tmp_path, checkpoint, namespace) as (_, peer):
        behave(peer, fail='never')
        peer.asked()
        stamp = m.to_ns(peer.chunks[-1].header.stamp)
        for _ in range(20):
            peer.executed.publish(m.executed_message(np.full((3, 7), 0.1), stamp, 50_000_000))
            peer.spin(0.01)
        assert peer.gets_nothing()
        peer.asked()
        assert peer.stats[-1]['faulty.executed'] == '3'
        assert peer.stats[-1]['executed'] == str(stamp)
        assert peer.stats[-1]['between'] == ''


def test_the_statistics_say_what_the_policy_looked_at(ros, tmp_path, checkpoint, namespace):
    settings = {'trigger': 'request', 'input_reliability': 'reliable'}
    with running(tmp_path, checkpoint, namespace, **settings) as (node, peer):
        first = time.time_ns()
        stamps = [first + k * 50_000_000 for k in range(4)]
        for stamp in stamps:
            peer.send_parts(stamp)
            peer.spin(0.1)
        peer.executed.publish(m.executed_message(np.zeros((3, 7)), stamps[-1], 50_000_000))
        assert peer.wait_for(lambda: peer.stats, 10.0), node.log
        seen = [int(stamp) for stamp in peer.stats[-1]['between'].split()]
        assert seen == stamps[:3], 'unless DDS lost one'
        assert peer.stats[-1]['executed'] == str(stamps[-1])


def test_a_gpu_that_fails_for_good_ends_the_process_so_that_it_is_started_again(
    ros, tmp_path, checkpoint, namespace
):
    with running(tmp_path, checkpoint, namespace) as (node, peer):
        behave(peer, fail='cuda')
        peer.send_parts()
        assert peer.wait_for(lambda: node.popen.poll() is not None, 10.0), node.log
        assert node.popen.returncode == 1
        assert 'device-side assert' in node.log and 'to be started again' in node.log


def test_simulated_time_may_begin_and_end_while_the_node_is_active(
    ros, tmp_path, checkpoint, namespace
):
    with running(tmp_path, checkpoint, namespace) as (node, peer):
        peer.asked()
        peer.start_clock()
        (result,) = peer.set_parameters(use_sim_time=True)
        assert result.successful
        stamp = 1000 * m.NANOSECONDS
        peer.tell_time(stamp)
        peer.tell_time(stamp)
        peer.asked(stamp)
        peer.send_parts(stamp + 10 * m.NANOSECONDS)
        node.wait_for_log('is /clock published?')
        (result,) = peer.set_parameters(use_sim_time=False)
        assert result.successful
        peer.trigger('vla_policy/reset')
        peer.asked()


def test_a_second_source_of_chunks_is_reported_once(ros, tmp_path, checkpoint, namespace):
    with running(tmp_path, checkpoint, namespace) as (node, peer):
        other = peer.node.create_publisher(JointTrajectory, 'action_chunk', m.RELIABLE)
        log = node.wait_for_log('somebody else publishes on')
        peer.spin(0.6)
        assert log.count('somebody else publishes') == node.log.count('somebody else publishes')
        assert f'{namespace}/action_chunk' in log
        peer.node.destroy_publisher(other)
        peer.asked()


def test_a_node_on_the_older_executor_loads_without_blocking(
    ros, tmp_path, checkpoint, namespace, monkeypatch
):
    """As on Jazzy: one thread that waits on a set."""
    monkeypatch.setenv('TEST_OLD_EXECUTOR', '1')
    with running(tmp_path, checkpoint, namespace) as (node, peer):
        assert SingleThreadedExecutor.__name__ in node.log
        traffic = Traffic(peer)
        traffic.start()
        try:
            for _ in range(5):
                assert peer.change('deactivate') and peer.change('cleanup'), node.log
                assert peer.state() == 'unconfigured'
                assert peer.change('configure') and peer.change('activate'), node.log
            peer.forget()
            assert peer.wait_for(lambda: peer.chunks, 10.0), node.log
        finally:
            traffic.stop()
        assert node.end(signal.SIGINT)[0] == 0, node.log
