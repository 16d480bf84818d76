# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags as data sets: steps meet their observations, and what interrupts them ends an episode."""

import subprocess
import sys

import numpy as np
import pytest
from datasets_tools import pixels, small

pytest.importorskip('rclpy', reason='the bags are written with ROS messages')

from bag_tools import PICK, write
from std_msgs.msg import String

from vla_prune_ros.bags.demonstrations import register
from vla_prune_ros.datasets import DataError, ReadOptions, open_dataset
from vla_prune_ros.ros import messages as m

NAMES = [f'joint{k}' for k in range(1, 8)] + ['finger_joint1', 'finger_joint2']
PERIOD = 50_000_000
START = 10 * m.NANOSECONDS


@pytest.fixture(autouse=True, scope='module')
def registered():
    register()


class Script:
    """A bag of episode `small(0)` and others, message by message."""

    def __init__(self):
        self.messages, self.stamp, self.clock = [], START, 1_750_000_000 * m.NANOSECONDS

    def put(self, topic, message):
        self.clock += 1_000_000
        self.messages.append((topic, self.clock, message))

    def say(self, text):
        self.put('/instruction', String(data=text))

    def observe(self, episode, t, without=()):
        joints = [0.0] * 7 + episode.proprio[t, 6:].tolist()
        messages = {
            '/joint_states': m.joint_message(NAMES, joints, self.stamp),
            '/ee_pose': m.pose_message(episode.proprio[t, :3], np.eye(4)[3], self.stamp, 'world'),
            '/agentview/image_raw': m.image_message(episode.frames[0, t], self.stamp, 'a'),
            '/wrist/image_raw': m.image_message(episode.frames[1, t], self.stamp, 'w'),
        }
        for topic, message in messages.items():
            if topic not in without:
                self.put(topic, message)

    def play(self, episode, reports=1, lost=(), without=()):
        """Observe and act; what was done is reported after every `reports` steps."""
        waiting = []
        for t, action in enumerate(episode.policy_actions):
            self.observe(episode, t, without if t in lost else ())
            waiting.append(action.astype(float))
            self.stamp += PERIOD
            if len(waiting) == reports or t == len(episode.actions) - 1:
                message = m.executed_message(np.array(waiting), self.stamp, PERIOD)
                self.put('/executed_actions', message)
                waiting = []

    def end(self, success):
        status = {'state': 'done', 'success': success}
        self.put('/sim_bridge/episode', m.values_message('episode', status, self.stamp))
        self.stamp += 10 * m.NANOSECONDS

    def write(self, folder, name='drive', **options):
        return write(folder / name, self.messages, **options)


def expect(episode, wanted, first=0):
    n = len(episode)
    np.testing.assert_array_equal(episode.actions, wanted.policy_actions[first : first + n])
    steps = slice(first, first + n)
    np.testing.assert_allclose(episode.proprio[:, :3], wanted.proprio[steps, :3], atol=1e-6)
    np.testing.assert_array_equal(episode.proprio[:, 3:6], 0)
    np.testing.assert_allclose(episode.proprio[:, 6:], wanted.proprio[steps, 6:], atol=1e-6)
    for view, camera in enumerate(('agentview', 'wrist')):
        pictures = list(episode.pictures[camera])
        assert len(pictures) == n
        for picture, frame in zip(pictures, wanted.frames[view, steps], strict=True):
            assert np.abs(pixels(picture) - frame).max() < 14


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('reports', [1, 4])
def test_steps_meet_their_observations(tmp_path, storage, reports):
    script = Script()
    for number, success in ((0, True), (2, False)):
        script.say(small(number).instruction)
        script.play(small(number), reports)
        script.end(success)
    data = open_dataset(script.write(tmp_path, storage=storage))
    assert (data.format, data.name, data.rate, len(data)) == ('bag', 'drive', 20.0, 2)
    first, second = data
    expect(first, small(0))
    expect(second, small(2))
    assert (first.id, first.instructions) == ('drive/0', ('lift the cup',))
    assert second.instructions == ('open the drawer',)
    good = open_dataset(tmp_path / 'drive', ReadOptions(only_success=True))
    assert [len(e) for e in good] == [9]


def test_a_new_instruction_ends_an_episode(tmp_path):
    script, episode = Script(), small(2)
    script.say('lift the cup')
    script.play(episode._replace(actions=episode.actions[:5]))
    script.say('put it down')
    rest = episode._replace(
        actions=episode.actions[5:], proprio=episode.proprio[5:], frames=episode.frames[:, 5:]
    )
    script.play(rest)
    first, second = open_dataset(script.write(tmp_path))
    expect(first, episode)
    expect(second, episode, 5)
    assert (first.instructions, second.instructions) == (('lift the cup',), ('put it down',))


@pytest.mark.parametrize('topic', ['/wrist/image_raw', '/ee_pose', '/joint_states'])
def test_a_lost_message_ends_an_episode(tmp_path, topic):
    script = Script()
    script.say('lift the cup')
    script.play(small(2), lost=(4,), without=(topic,))
    data = open_dataset(script.write(tmp_path))
    first, second = data
    expect(first, small(2))
    expect(second, small(2), 5)
    assert [len(first), len(second)] == [4, 8]
    assert '1 of 13 actions began without an observation' in data.notes[0]


def test_a_robot_that_held_still_and_a_clock_that_went_back(tmp_path):
    script = Script()
    script.stamp += 5 * m.NANOSECONDS
    script.say('lift the cup')
    script.play(small(0))
    script.stamp += PERIOD  # nothing was executed for one period
    script.play(small(1))
    script.stamp = START  # the simulation was started anew
    script.play(small(2))
    data = open_dataset(script.write(tmp_path))
    assert [len(e) for e in data] == [9, 4, 13]
    for episode, number in zip(data, range(3), strict=True):
        expect(episode, small(number))


def test_a_folder_of_bags_is_one_data_set_and_a_damaged_one_is_named(tmp_path):
    for name in ('monday', 'tuesday'):
        script = Script()
        script.say('lift the cup')
        script.play(small(0))
        script.write(tmp_path, name)
    data = open_dataset(tmp_path, ReadOptions(name='mine'))
    assert [e.id for e in data] == ['monday/0', 'tuesday/0'] and data.name == 'mine'
    file = next((tmp_path / 'monday').glob('*.mcap'))
    file.write_bytes(file.read_bytes()[:-400])
    data = open_dataset(tmp_path)
    with pytest.raises(DataError, match='monday cannot be read') as refused:
        data.read(0)
    assert 'salvage' not in str(refused.value), 'train has no such option'
    assert len(data.read(1)) == 9


def test_what_a_bag_lacks_is_named(tmp_path):
    script = Script()
    script.say('')
    script.play(small(0))
    bag = script.write(tmp_path)
    with pytest.raises(DataError, match='drive/0: there is no instruction; give one with --instr'):
        open_dataset(bag).read(0)
    assert open_dataset(bag, ReadOptions(instruction='go')).read(0).instructions == ('go',)
    with pytest.raises(DataError, match='no topic front/image_raw; there are: /agentvi'):
        open_dataset(bag, ReadOptions(cameras={'agentview': 'front/image_raw'})).read(0)
    with pytest.raises(DataError, match=r'no joint thumb; there are .*joint1'):
        open_dataset(bag, ReadOptions(state='thumb')).read(0)
    script.messages = [x for x in script.messages if x[0] != '/executed_actions']
    with pytest.raises(DataError, match='no topic executed_actions, what the robot did'):
        open_dataset(script.write(tmp_path, 'other')).read(0)


def test_the_golden_bag_needs_no_ros():
    code = (
        'import sys\n'
        'from vla_prune_ros.bags.demonstrations import register\n'
        'from vla_prune_ros.datasets import open_dataset\n'
        'register()\n'
        f'data = open_dataset({str(PICK)!r})\n'
        'print(sum(len(e) for e in data), data.rate)\n'
        "sys.exit('rclpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frames, rate = done.stdout.split()
    assert int(frames) > 20 and float(rate) == 20.0


def test_a_topic_that_was_silent_when_the_clock_went_back_belongs_to_the_new_time(tmp_path):
    script, first, second = Script(), small(2), small(5, 13)
    script.say('lift the cup')
    script.play(first)
    for _ in range(60):  # nobody drives any more
        script.observe(first, 0)
        script.stamp += PERIOD
    script.stamp = START  # the simulation begins anew, and still nobody drives
    for _ in range(40):
        script.observe(second, 0)
        script.stamp += PERIOD
    script.play(second)
    one, two = open_dataset(script.write(tmp_path))
    expect(one, first)
    expect(two, second)
