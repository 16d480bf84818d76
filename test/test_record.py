# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The recorder: what was on the topics is in the bag, whatever happens."""

from __future__ import annotations

import json
import resource
import signal
import struct
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

from vla_prune_ros.bags.files import Bag, Entry, as_published
from vla_prune_ros.bags.record import Recording
from vla_prune_ros.bags.topics import Losses, Taken
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
    published = [e.time for e in images]
    assert published == sorted(published)
    assert abs(published[0] - time.time_ns()) < 60e9
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


def test_what_dds_lost_is_counted_said_and_in_the_bag(start, robot, namespace, tmp_path):
    """A recorder that stands still while a publisher goes on: the queues push messages out."""
    bag = tmp_path / 'bag'
    process = recorder(start, namespace, bag)
    robot.wait()
    robot.publish(3)
    process.popen.send_signal(signal.SIGSTOP)
    for _ in range(3000):
        robot.pose.publish(PoseStamped())
    process.popen.send_signal(signal.SIGCONT)
    time.sleep(4)  # a writer looks every three seconds whether its reader is back
    robot.publish(3)
    time.sleep(0.5)
    code, _ = process.end(signal.SIGINT)
    assert code == 1, process.log
    with Bag(bag) as opened:
        topic = f'{namespace}/ee_pose'
        assert opened.lost[topic] > 0
        assert opened.lost[topic] + opened.counts[topic] == 3006
        assert list(opened.lost) == [topic]
    assert f'record: lost: {opened.lost[topic]} of {topic}' in process.log


def test_a_gap_in_the_numbers_of_a_publisher_is_a_loss():
    losses, ours, later = Losses(), b'ours', b'later'
    losses.see('/any', ours, 7)  # nobody knows what came before we listened
    losses.see('/any', ours, 9)
    losses.expect('/whole', [ours])
    losses.see('/whole', ours, 5)
    losses.see('/whole', later, 3)  # its first two were published while we listened
    losses.report('/unnumbered', 4)
    assert losses.total() == {'/any': 1, '/whole': 2, '/unnumbered': 4}


def test_a_bag_has_both_times_and_is_read_by_the_tools_of_others(
    start, robot, namespace, tmp_path
):
    """The mcap library with its ROS 2 decoder, and rosbags by metadata.yaml."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory
    from rosbags.rosbag2 import Reader

    bag = tmp_path / 'bag'
    process = recorder(start, namespace, bag)
    robot.wait()
    robot.publish(5)
    assert process.end(signal.SIGINT)[0] == 0, process.log
    topic = f'{namespace}/agentview/image_raw'
    with (bag / 'bag.mcap').open('rb') as stream:
        reader = make_reader(stream, validate_crcs=True, decoder_factories=[DecoderFactory()])
        found = list(reader.iter_decoded_messages([topic]))
    assert [m.decoded_message.header.stamp.sec for m in found] == list(range(5))
    assert [m.message.sequence for m in found] == [1, 2, 3, 4, 5]
    for one in found:
        assert 0 <= one.message.log_time - one.message.publish_time < 5e9
    with Reader(bag) as opened, Bag(bag) as ours:
        assert {c.topic: c.msgcount for c in opened.connections if c.msgcount} == {
            t: n for t, n in ours.counts.items() if n
        }
        (connection,) = (c for c in opened.connections if c.topic == topic)
        assert connection.digest.startswith('RIHS01_') and connection.ext.offered_qos_profiles
        assert len(list(opened.messages([connection]))) == 5


def test_messages_come_in_the_order_of_their_publishing():
    """Across topics, too; but a clock that is far off does not hold everything up."""
    late, wrong, hour = 3_000_000_000, 10**12, 3600 * 10**9
    recorded = [
        (wrong, Entry('/b', wrong - 5, b'')),
        (wrong + 10, Entry('/latched', wrong - hour, b'')),
        (wrong + late, Entry('/a', wrong - 7, b'')),  # had to be sent again
        (wrong + late + 1, Entry('/ahead', wrong + hour, b'')),
        (wrong + late + 2, Entry('/b', wrong + late, b'')),
    ]
    order = [entry.topic for entry in as_published(recorded)]
    assert order == ['/latched', '/a', '/b', '/b', '/ahead']


def test_every_step_of_a_lockstep_episode_is_in_the_bag(start, ros, namespace, tmp_path):
    pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')
    from bridge_peer import STEPS, bridge, some_actions
    from bridge_peer import Robot as Policy

    bag = tmp_path / 'bag'
    process = recorder(start, namespace, bag)
    simulation = start('sim_bridge', *bridge(namespace, episodes=1, publish_every_step='true'))
    process.wait_for_log(f'recording {namespace}/wrist/image_raw')
    policy = Policy(namespace)
    try:
        for n in range(3):
            policy.answer(n, some_actions(n))
        assert policy.wait_until_done()['step'] == str(STEPS)
        code, _ = process.end(signal.SIGINT)
        assert code == 0, process.log
        assert simulation.end()[0] == 0, simulation.log
    finally:
        policy.close()
    with Bag(bag) as opened:
        for name in ('agentview/image_raw', 'wrist/image_raw', 'joint_states', 'ee_pose'):
            assert len(stamps(opened, f'{namespace}/{name}')) == len(policy.seen[name]) == STEPS
        assert not opened.lost


def stamps(bag, topic):
    """The stamps on a topic; an observation that is not answered in time is sent again."""
    return {struct.unpack_from('<iI', entry.data, 4) for entry in bag.messages({topic})}


@pytest.mark.slow
def test_a_recorded_demo_is_complete_and_replays_bit_for_bit_on_a_busy_machine(
    busy, start, tmp_path
):
    pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')
    bag, out = tmp_path / 'bag', tmp_path / 'out'
    demo = start(
        'demo', '--modes', 'none,specprune', '--episodes', '2', '--max-steps', '60',
        '--record', str(bag), '--out', str(out),
    )  # fmt: skip
    assert demo.popen.wait(240) == 0, demo.log
    queries = sum(e['queries'] for e in json.loads((out / 'results.json').read_text())['episodes'])
    with Bag(bag) as opened:
        assert not opened.lost
        answered, asked, seen, felt = (
            stamps(opened, topic)
            for topic in ('/action_chunk', '/executed_actions', '/wrist/image_raw', '/ee_pose')
        )
        assert answered == asked <= seen == felt and len(asked) == queries < len(seen)
    again = start(
        'replay', str(bag), '--compare', 'golden', '--tiers', 'T1', '--atol', '0', '--no-plots',
        '--out', str(tmp_path / 'replay'),
    )  # fmt: skip
    assert again.popen.wait(120) == 0, again.log
    assert 'warning' not in again.log


def test_a_simulation_waits_for_the_recorder_that_was_announced(start, tmp_path, namespace):
    """Also when that comes late, and although discovery takes seconds now and then."""
    pytest.importorskip('mujoco', reason='MuJoCo is not installed')
    ros = ('--ros-args', '-r', f'__ns:={namespace}', '-r', '/clock:=clock')
    parameters = ('trigger:=request', 'use_sim_time:=true', 'input_reliability:=reliable')
    policy = start('policy_node', *ros, *(word for p in parameters for word in ('-p', p)))
    policy.wait_for_log('activate: active')
    parameters = ('episodes:=1', 'recorder:=recorder', 'max_steps:=16', 'publish_every_step:=true')
    bridge = start('sim_bridge', *ros, *(word for p in parameters for word in ('-p', p)))
    bridge.wait_for_log('waiting for recorder')
    recorder = start('record', '--complete', '--out', str(tmp_path / 'bag'), *ros)
    log = bridge.wait_for_log('all episodes are done')
    assert log.index('waiting for recorder') < log.index('episode 1')
    code, _ = recorder.end()
    assert code == 0, recorder.log
    with Bag(tmp_path / 'bag') as bag:
        for camera in ('agentview', 'wrist'):
            assert bag.counts[f'{namespace}/{camera}/image_raw'] == 16, 'one before each step'
        assert bag.counts[f'{namespace}/action_chunk'] == 2


def test_what_came_before_the_recorder_counts_as_lost_if_everything_is_wanted():
    losses = Losses()
    losses.expect('/picture', [])  # as with --complete: nobody has begun before
    losses.see('/picture', b'camera', 4)
    assert losses.total() == {'/picture': 3}
