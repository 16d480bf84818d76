# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The recorder: what was on the topics is in the bag, whatever happens."""

from __future__ import annotations

import resource
import signal
import threading
import time

import pytest
import yaml

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_prune_ros.bags.files import Bag
from vla_prune_ros.bags.record import Recording
from vla_prune_ros.bags.topics import Taken
from vla_prune_ros.bags.writer import BagWriter
from vla_prune_ros.ros.messages import LATCHED, RELIABLE


class Robot:
    """Publishes in a namespace of its own, with every kind of QoS."""

    def __init__(self, namespace):
        self.node = node = rclpy.create_node('robot', namespace=namespace)
        best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.pose = node.create_publisher(PoseStamped, 'ee_pose', best_effort)
        self.image = node.create_publisher(Image, 'agentview/image_raw', RELIABLE)
        self.info = node.create_publisher(DiagnosticArray, 'vla_policy/policy_info', LATCHED)
        self.other = node.create_publisher(String, 'not_ours', RELIABLE)
        self.info.publish(DiagnosticArray())  # before there is a recorder

    def wait(self):
        deadline = time.monotonic() + 30
        publishers = (self.pose, self.image, self.info)
        while not all(p.get_subscription_count() for p in publishers):
            assert time.monotonic() < deadline, 'nobody subscribed'
            time.sleep(0.05)

    def publish(self, number, size=64):
        for k in range(number):
            image = Image(height=size, width=size, encoding='rgb8', step=3 * size)
            image.header.stamp.sec, image.data = k, bytes([k % 256]) * (3 * size * size)
            self.image.publish(image)
            self.pose.publish(PoseStamped())
            self.other.publish(String(data='x'))
            time.sleep(0.01)
        time.sleep(0.2)


@pytest.fixture
def robot(ros, namespace):
    robot = Robot(namespace)
    yield robot
    robot.node.destroy_node()


def recorder(start, namespace, bag, *arguments):
    ros_arguments = ('--ros-args', '-r', f'__ns:={namespace}')
    process = start('record', '--out', str(bag), *arguments, *ros_arguments)
    process.wait_for_log('record: into')
    return process


def test_messages_qos_and_latched_topics_are_in_the_bag(start, robot, namespace, tmp_path):
    bag = tmp_path / 'bag'
    process = recorder(start, namespace, bag)
    robot.wait()
    robot.publish(20)
    code, seconds = process.end(signal.SIGINT)
    assert code == 0, process.log
    assert seconds < 5
    with Bag(bag) as opened:
        counts = {topic.removeprefix(namespace): n for topic, n in opened.counts.items()}
        assert counts['/agentview/image_raw'] == 20
        assert counts['/vla_policy/policy_info'] == 1
        assert counts['/ee_pose'] >= 15  # best effort
        assert '/not_ours' not in counts
        images = list(opened.messages({f'{namespace}/agentview/image_raw'}))
    received = [e.time for e in images]
    assert received == sorted(received)
    assert abs(received[0] - time.time_ns()) < 60e9
    message = deserialize_message(images[7].data, Image)
    assert message.header.stamp.sec == 7 and bytes(message.data[:3]) == b'\7\7\7'
    metadata = yaml.safe_load((bag / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    profiles = {
        t['topic_metadata']['name'].removeprefix(namespace): yaml.safe_load(
            t['topic_metadata']['offered_qos_profiles']
        )[0]
        for t in metadata['topics_with_message_count']
    }
    reliable, best_effort, transient_local, volatile = 1, 2, 1, 2  # rmw/types.h
    assert profiles['/ee_pose']['reliability'] == best_effort
    assert profiles['/agentview/image_raw']['reliability'] == reliable
    assert profiles['/agentview/image_raw']['durability'] == volatile
    assert profiles['/vla_policy/policy_info']['durability'] == transient_local


def test_a_killed_recorder_leaves_what_was_flushed(start, robot, namespace, tmp_path):
    bag = tmp_path / 'bag'
    process = recorder(start, namespace, bag, '--compression', 'none')
    robot.wait()
    robot.publish(20)
    time.sleep(0.7)
    robot.publish(5)
    process.end(signal.SIGKILL)
    with Bag(bag, salvage=True) as opened:
        assert opened.counts[f'{namespace}/agentview/image_raw'] >= 20
        assert opened.damage


def test_the_recorder_writes_over_nothing(start, tmp_path):
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'bag' / 'mine').write_text('mine')
    process = start('record', '--out', str(tmp_path / 'bag'))
    assert process.popen.wait(30) == 2
    assert 'never written over' in process.log
    assert [p.name for p in (tmp_path / 'bag').iterdir()] == ['mine']


def test_a_full_disk_ends_the_recording_and_leaves_a_whole_bag(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = serialize_message(Image(data=bytes(300_000)))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))
        writer = BagWriter(tmp_path / 'bag', compression='none')
        writer.add_topic('/image', 'sensor_msgs/msg/Image')
        recording = Recording(writer, 10**9)
        recording.start()
        for k in range(30):
            recording.put(Taken('/image', k + 1, k + 1, 0, data))
        recording.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(recording.error, OSError)
    with Bag(tmp_path / 'bag') as bag:
        times = [entry.time for entry in bag.messages()]
        assert bag.counts['/image'] == len(times) == recording.written['/image']
    assert times == list(range(1, len(times) + 1)) and 4 <= len(times) < 10


def test_a_disk_that_is_too_slow_costs_messages_not_memory(tmp_path):
    """Nobody waits for the disk: what does not fit into the queue is lost and counted."""
    writer = BagWriter(tmp_path / 'bag')
    writer.add_topic('/text', 'std_msgs/msg/String')
    gate, write = threading.Event(), writer.write
    writer.write = lambda *message: gate.wait(20) and write(*message)
    recording = Recording(writer, 10_000)
    recording.start()
    data = serialize_message(String(data='x' * 990))
    started = time.monotonic()
    for k in range(100):
        recording.put(Taken('/text', k + 1, k + 1, 0, data))
    assert time.monotonic() - started < 1
    gate.set()
    recording.stop()
    assert recording.taken['/text'] == 100
    assert recording.written['/text'] in (9, 10)
