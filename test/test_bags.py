# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags of others: other names, encodings and clocks, and files that are damaged."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from bag_tools import OUTPUTS, PUT, keep, replay, rewrite, write
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from vla_prune_ros.bags.files import Bag, BagError
from vla_prune_ros.ros.images import decode_rgb
from vla_prune_ros.ros.messages import NANOSECONDS, to_ns, to_time

DENSE = ('--modes', 'none', '--tiers', 'T1', '--atol', '2e-5', '--jaccard', '0.98')
ALONE = ('--modes', 'none', '--compare', 'none', '--tiers', 'T1')
TICKS = 12


@pytest.fixture
def run(capsys, tmp_path):
    """Replays a bag."""
    return lambda bag, *arguments: replay(capsys, tmp_path, bag, *arguments)


def changed(tmp_path, change=keep, golden=True, **options):
    """A copy of a golden bag with every message changed; its golden values go with it."""
    bag = rewrite(PUT, tmp_path / 'bag', change, **options)
    if golden:
        shutil.copytree(PUT / 'golden', bag / 'golden')
    return bag


def passes(result, ticks=TICKS):
    assert result.code == 0, result.text
    assert len(result.ticks) == ticks


# -- names ---------------------------------------------------------------------------------------
def test_other_topic_names_are_remapped(run, tmp_path):
    names = {
        '/agentview/image_raw': '/front/color/image',
        '/wrist/image_raw': '/hand/color/image',
        '/ee_pose': '/tcp',
    }
    bag = changed(tmp_path, lambda topic, t, m: [(names.get(topic, topic), t, m)])
    refused = run(bag, *DENSE)
    assert refused.code == 1
    assert '/front/color/image, /hand/color/image' in refused.text and '--remap' in refused.text
    passes(run(bag, *DENSE, *(f'--remap={new}:={old[1:]}' for old, new in names.items())))


def test_a_namespace_is_an_option(run, tmp_path):
    bag = changed(tmp_path, lambda topic, t, m: [(f'/left{topic}', t, m)])
    passes(run(bag, *DENSE, '--namespace', '/left'))


def test_a_remapped_topic_that_is_not_there_is_named(run):
    result = run(PUT, *DENSE, '--remap=/front:=agentview/image_raw')
    assert result.code == 1
    assert 'no topic /front' in result.text and '/agentview/image_raw (sensor_msgs' in result.text


def test_the_wrong_type_on_a_topic_is_named(run, tmp_path):
    def change(topic, time, message):
        return [(topic, time, String(data='x') if topic == '/ee_pose' else message)]

    result = run(changed(tmp_path, change), *DENSE)
    assert result.code == 1
    assert '/ee_pose is of type std_msgs/msg/String, not geometry_msgs/msg/PoseS' in result.text


def test_unknown_message_types_are_passed_over(run, tmp_path):
    from rosbags.typesys import get_types_from_msg

    from vla_prune_ros.bags.writer import typestore

    if 'their_msgs/msg/Torque' not in typestore().fielddefs:
        typestore().register(get_types_from_msg('float64 torque', 'their_msgs/msg/Torque'))
    extra = ('/torque', 1, ('their_msgs/msg/Torque', b'\0\1\0\0' + bytes(8)))
    bag = tmp_path / 'bag'
    messages = []
    rewrite(PUT, tmp_path / 'copy', lambda *m: messages.append(m) or [m])
    write(bag, [extra, *messages])
    shutil.copytree(PUT / 'golden', bag / 'golden')
    passes(run(bag, *DENSE))


def test_a_bag_without_instruction_needs_one(run, tmp_path):
    bag = changed(tmp_path, without=('/instruction', *OUTPUTS))
    refused = run(bag, *ALONE)
    assert refused.code == 1 and '--instruction' in refused.text
    passes(run(bag, *ALONE, '--instruction', 'pick up the red block'))


# -- pictures ------------------------------------------------------------------------------------
def bgr(message):
    message.data = decode_rgb(message)[:, :, ::-1].tobytes()
    message.encoding = 'bgr8'
    return message


def bgra_with_padded_rows(message):
    pixels = decode_rgb(message)
    rows = np.full((256, 256 * 4 + 32), 77, np.uint8)
    rows[:, :1024] = np.dstack([pixels[:, :, ::-1], np.full((256, 256), 9)]).reshape(256, -1)
    message.encoding, message.step, message.data = 'bgra8', rows.shape[1], rows.tobytes()
    return message


def test_other_encodings_give_the_same_bits(run, tmp_path):
    def change(topic, time, message):
        if topic == '/agentview/image_raw':
            message = bgr(message)
        elif topic == '/wrist/image_raw':
            message = bgra_with_padded_rows(message)
        return [(topic, time, message)]

    passes(run(changed(tmp_path, change), *DENSE))


def compressed(message, suffix):
    ok, data = cv2.imencode(suffix, decode_rgb(message)[:, :, ::-1])
    assert ok
    return CompressedImage(header=message.header, format=suffix[1:], data=data.tobytes())


@pytest.mark.parametrize(('suffix', 'code'), [('.png', 0), ('.jpg', 1)])
def test_compressed_images_are_read_and_lossy_ones_differ(suffix, code, run, tmp_path):
    def change(topic, time, message):
        if not topic.endswith('image_raw'):
            return [(topic, time, message)]
        return [(f'{topic}/compressed', time, compressed(message, suffix))]

    result = run(changed(tmp_path, change), *DENSE)
    assert result.code == code, result.text
    assert len(result.ticks) == TICKS
    if code:
        assert result.failures[0]['tick'] == 0


# -- time ----------------------------------------------------------------------------------------
def jittered(rng, largest_ms):
    def change(topic, time, message):
        if topic in ('/wrist/image_raw', '/joint_states', '/ee_pose'):
            shift = int(rng.integers(-largest_ms, largest_ms + 1)) * 1_000_000
            message.header.stamp = to_time(to_ns(message.header.stamp) + shift)
            time += int(rng.integers(0, 3_000_000))
        return [(topic, time, message)]

    return change


def test_jitter_within_the_tolerance_changes_nothing(run, tmp_path):
    bag = changed(tmp_path, jittered(np.random.default_rng(0), 15))
    passes(run(bag, *DENSE))
    refused = run(bag, *DENSE, '-p', 'sync.slop:=0', '-p', 'sync.state_slop:=0')
    assert refused.code == 1


def test_missing_messages_are_reported(run, tmp_path):
    seen = []

    def change(topic, time, message):
        if topic == '/ee_pose':
            seen.append(time)
            if len(seen) == 4:
                return []
        return [(topic, time, message)]

    bag = changed(tmp_path, change)
    passes(run(bag, *ALONE), TICKS - 1)
    result = run(bag, *DENSE)
    assert result.code == 1 and result.failures[0]['tick'] == 3
    assert '1 observations that were answered are not complete' in result.text


def test_an_empty_stream_is_named(run, tmp_path):
    def change(topic, time, message):
        if topic == '/ee_pose':
            message.pose.orientation.w = 7.0
        return [(topic, time, message)]

    result = run(changed(tmp_path, change, without=OUTPUTS), *ALONE)
    assert result.code == 1
    assert 'no observation could be put together' in result.text
    assert 'ee_pose: 12 of 12 messages cannot be used' in result.text
    assert 'not a unit quaternion' in result.text


@pytest.mark.parametrize(('shift', 'reason'), [(-7, 'clock'), (0, 'clock'), (3600, 'gap')])
def test_two_episodes_in_one_bag_do_not_touch_each_other(shift, reason, run, tmp_path):
    """The second starts with a history as empty as the first's."""
    first, second = [], []
    hour = 3600 * NANOSECONDS
    rewrite(PUT, tmp_path / 'one', lambda *m: first.append(m) or [m], without=OUTPUTS)

    def later(topic, time, message):
        if hasattr(message, 'header'):
            stamp = to_ns(message.header.stamp) + shift * NANOSECONDS
            message.header.stamp = to_time(stamp)
        second.append((topic, time + hour, message))
        return []

    rewrite(PUT, tmp_path / 'two', later, without=OUTPUTS)
    bag = write(tmp_path / 'both', first + second)
    result = run(bag, '--modes', 'vla_cache', '--compare', 'vla_cache', '--tiers', 'T1')
    passes(result, 2 * TICKS)
    ticks = result.ticks
    assert ticks[TICKS]['reset_reason'] == reason
    assert [t['kept'] for t in ticks[TICKS:]] == [t['kept'] for t in ticks[:TICKS]]


# -- files ---------------------------------------------------------------------------------------
def test_sqlite3_is_read(run, tmp_path):
    passes(run(changed(tmp_path, storage='sqlite3'), *DENSE))


def test_a_file_without_its_folder_is_read(run, tmp_path):
    file = tmp_path / 'alone.mcap'
    shutil.copy(PUT / 'put_on_plate.mcap', file)
    shutil.copytree(PUT / 'golden', tmp_path / 'alone.mcap.golden')
    passes(run(file, *DENSE))


def test_a_folder_whose_recorder_was_killed_is_read(run, tmp_path):
    bag = shutil.copytree(PUT, tmp_path / 'bag')
    (bag / 'metadata.yaml').unlink()
    passes(run(bag, *DENSE))


@pytest.fixture
def cut(tmp_path):
    """A bag in several chunks, cut off in the last."""
    messages = []
    rewrite(PUT, tmp_path / 'copy', lambda *m: messages.append(m) or [m])
    bag = tmp_path / 'cut'
    from rclpy.serialization import serialize_message

    from vla_prune_ros.bags.writer import BagWriter

    with BagWriter(bag) as writer:
        known = set()
        for number, (topic, time, message) in enumerate(messages):
            kind = f'{type(message).__module__.split(".")[0]}/msg/{type(message).__name__}'
            if topic not in known:
                writer.add_topic(topic, kind)
                known.add(topic)
            writer.write(topic, time, serialize_message(message))
            if number % 25 == 0:
                writer.flush()
    shutil.copytree(PUT / 'golden', bag / 'golden')
    file = bag / 'cut.mcap'
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6)])
    return bag


def test_a_truncated_file_is_refused_and_can_be_salvaged(cut, run):
    size = (cut / 'cut.mcap').stat().st_size
    refused = run(cut, *DENSE)
    assert refused.code == 1
    assert 'messages are whole: use them with --salvage' in refused.text
    salvaged = run(cut, *DENSE, '--salvage')
    assert salvaged.code == 1  # it does not hold what the golden values hold
    first = salvaged.failures[0]['tick']
    assert 2 < first < 11
    assert all(t['max_diff_normalised'] <= 2e-5 for t in salvaged.ticks[:first])
    assert 'damaged or cut off at byte' in salvaged.text
    assert (cut / 'cut.mcap').stat().st_size == size


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('seed', range(6))
def test_hand_damaged_files_never_crash(storage, seed, tmp_path):
    """Either a clear error, or messages that are still whole."""
    rng = np.random.default_rng(seed)
    bag = rewrite(PUT, tmp_path / 'bag', storage=storage, without=('/wrist/image_raw',))
    (file,) = (f for f in bag.iterdir() if f.suffix in ('.mcap', '.db3'))
    data = bytearray(file.read_bytes())
    if seed % 3 == 0:
        data = data[: int(rng.integers(0, len(data)))]
    else:
        for _ in range(1 + 30 * (seed % 3 - 1)):
            data[int(rng.integers(0, len(data)))] ^= int(rng.integers(1, 256))
    file.write_bytes(data)
    for salvage in (False, True):
        try:
            with Bag(bag, salvage) as opened:
                for entry in opened.messages():
                    assert entry.topic in opened.types
        except BagError as error:
            assert str(bag) in str(error)


def test_broken_messages_are_counted_and_passed_over(run, tmp_path):
    messages = []
    rewrite(PUT, tmp_path / 'copy', lambda *m: messages.append(m) or [m], without=OUTPUTS)
    bad = [
        ('/ee_pose', 5, ('geometry_msgs/msg/PoseStamped', b'\0\1\0\0\1\2')),
        ('/agentview/image_raw', 6, ('sensor_msgs/msg/Image', b'\0\1\0\0' + b'\xff' * 40)),
    ]
    bag = write(tmp_path / 'bag', [*bad, *messages])
    result = run(bag, *ALONE)
    passes(result)
    assert 'ee_pose: 1 of 13 messages cannot be used' in result.text


@pytest.mark.parametrize('name', ['empty', 'notes.txt'])
def test_what_is_no_bag_is_refused(name, run, tmp_path):
    path = tmp_path / name
    path.write_text('hello') if '.' in name else path.mkdir()
    result = run(path, *DENSE)
    assert result.code == 1 and 'is no bag' in result.text


def test_a_bag_is_never_written_over(tmp_path):
    from vla_prune_ros.bags.writer import BagWriter

    write(tmp_path / 'bag', [('/ee_pose', 1, PoseStamped())])
    before = {p: p.read_bytes() for p in (tmp_path / 'bag').iterdir()}
    with pytest.raises(BagError, match='never written over'):
        BagWriter(tmp_path / 'bag')
    assert {p: p.read_bytes() for p in (tmp_path / 'bag').iterdir()} == before
