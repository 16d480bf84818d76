# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""policy_node as its own process, over DDS."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from conftest import patience
from lifecycle_msgs.srv import ChangeState, GetState
from peer import PERIOD, Peer
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool
from tiny import INSTRUCTIONS

from vla_prune_ros.execution.checks import safe_actions
from vla_prune_ros.ros import messages as m
from vla_prune_ros.sim.base import quaternion_to_axis_angle


def arguments(checkpoint, namespace, **parameters) -> list[str]:
    """Command line of a node with the tiny checkpoint."""
    parameters = {'checkpoint': str(checkpoint), 'torch_threads': 1} | parameters
    pairs = [f'{name.replace("__", ".")}:={value}' for name, value in parameters.items()]
    remap = ['-r', f'__ns:={namespace}'] if namespace else []
    return ['--ros-args', *remap, *(word for pair in pairs for word in ('-p', pair))]


@pytest.fixture(scope='module')
def peer(ros):
    """The other side of the shared node."""
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def own_peer(ros, namespace):
    """The other side of a node that a test starts for itself."""
    peer = Peer(namespace)
    yield peer
    peer.close()


@pytest.fixture(scope='module')
def shared_node(start_shared, checkpoint):
    """One node for the tests that leave it as they found it."""
    return start_shared('policy_node', *arguments(checkpoint, '', default_instruction='wave'))


@pytest.fixture
def node(shared_node, peer):
    peer.wait_until_active(shared_node)
    peer.trigger('vla_policy/reset')
    peer.forget()
    yield shared_node
    assert shared_node.popen.poll() is None, shared_node.log


def mode_of(peer: Peer) -> str:
    peer.ask()
    return peer.stats[-1]['mode']


def test_a_chunk_carries_the_stamp_of_its_observation(node, peer):
    for seed in range(3):
        stamp = peer.send_any(seed=seed)
        assert peer.wait_for(lambda: len(peer.chunks) == seed + 1)  # noqa: B023
        chunk = peer.chunks[-1]
        assert m.to_ns(chunk.header.stamp) == stamp
        assert m.actions_from(chunk).shape == (8, 7)
        assert [m.to_ns(p.time_from_start) for p in chunk.points] == [k * PERIOD for k in range(8)]


def test_the_mode_changes_at_run_time_and_holds_from_the_next_inference(node, peer):
    assert mode_of(peer) == 'none'
    (result,) = peer.set_parameters(pruning__mode='random')
    assert result.successful
    assert mode_of(peer) == 'random'
    assert peer.stats[-1]['reset_reason'] == 'mode'
    assert peer.wait_for(lambda: peer.info[-1]['mode'] == 'random')
    assert int(peer.stats[-1]['tokens_kept']) == int(peer.stats[-1]['tokens_total']) // 2
    (result,) = peer.set_parameters(pruning__random__keep=3)
    assert result.successful
    peer.ask()
    assert int(peer.stats[-1]['tokens_kept']) == 6
    assert len(peer.stats[-1]['kept'].split(',')) == 6
    peer.set_parameters(pruning__mode='none', pruning__random__keep=0)
    assert mode_of(peer) == 'none'


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        ({'pruning__mode': 'ranodm'}, ("'ranodm'", 'none', 'random')),
        ({'pruning__random__keep_ratio': 1.5}, ('range',)),
        ({'pruning__random__keep_ratio': float('nan')}, ('ra',)),
        ({'pruning__random__layer': 99}, ('layer', '99')),
        ({'pruning__random__redraw': 'never'}, ('inference', 'episode')),
        ({'pruning__random__keep': 'many'}, ('type',)),
        ({'checkpoint': '/elsewhere'}, ('read-only',)),
    ],
)
def test_a_bad_parameter_is_refused_with_a_reason_and_changes_nothing(node, peer, values, reason):
    (name,) = values
    name = name.replace('__', '.')
    before = peer.get_parameter(name)
    (result,) = peer.set_parameters(**values)
    assert not result.successful
    assert all(text in result.reason for text in reason), result.reason
    assert peer.get_parameter(name) == before
    assert mode_of(peer) == 'none'


def test_every_parameter_is_described(node, peer):
    descriptors = {d.name: d for d in peer.describe_all('vla_policy')}
    ours = [d for n, d in descriptors.items() if not n.startswith(('qos_', 'use_sim', 'start_ty'))]
    assert {'checkpoint', 'pruning.mode', 'pruning.random.seed'} <= {d.name for d in ours}
    assert [d.name for d in ours if not d.description] == []
    assert 'random' in descriptors['pruning.mode'].additional_constraints
    assert descriptors['checkpoint'].read_only and not descriptors['pruning.mode'].read_only


def test_broken_messages_are_counted_and_do_no_harm(node, peer):
    image = Image(encoding='rgb8', height=4, width=4, step=12, data=b'short')
    peer.images['wrist'].publish(image)
    peer.joints.publish(m.joint_message(['other'], [0.0], 1))
    peer.pose.publish(m.pose_message(np.full(3, np.nan), np.array([0, 0, 0, 1.0]), 1, ''))
    peer.executed.publish(m.JointTrajectory())
    peer.instruction.publish(String(data='x' * 10_000))
    peer.spin(0.3)
    peer.ask()
    counts = {k: int(v) for k, v in peer.stats[-1].items() if k.startswith('broken.')}
    names = ('wrist', 'joint_states', 'ee_pose', 'executed_actions', 'instruction')
    assert all(counts.get(f'broken.{name}', 0) >= 1 for name in names), counts
    assert 'broken message' in node.log


def test_old_and_future_observations_never_reach_the_model(node, peer):
    peer.send_any(time.time_ns() - 800_000_000)
    peer.spin(0.3)
    peer.send_any(time.time_ns() + 30 * m.NANOSECONDS)
    peer.spin(1.0)
    assert not peer.chunks
    peer.ask()
    assert int(peer.stats[-1]['dropped.stale']) == int(peer.stats[-1]['dropped.future']) == 1


def test_a_disabled_node_publishes_nothing(node, peer):
    assert peer.call(SetBool, 'vla_policy/set_enabled', SetBool.Request(data=False)).success
    peer.send_any()
    peer.spin(0.7)
    assert not peer.chunks and not peer.stats
    assert peer.call(SetBool, 'vla_policy/set_enabled', SetBool.Request(data=True)).success
    assert peer.ask()


def test_a_reset_empties_the_history(node, peer):
    peer.ask()
    peer.ask()
    assert peer.stats[-1]['reset_reason'] == ''
    assert peer.trigger('vla_policy/reset').success
    peer.ask()
    assert peer.stats[-1]['reset_reason'] == 'reset'


@pytest.mark.parametrize('latched', [False, True])
def test_an_instruction_arrives_from_volatile_and_latched_publishers(node, peer, latched):
    qos = m.LATCHED if latched else m.RELIABLE
    publisher = peer.node.create_publisher(String, 'instruction', qos)
    assert peer.wait_for(publisher.get_subscription_count)
    text = f'say grüß {latched}'
    publisher.publish(String(data=text))
    assert peer.wait_for(lambda: peer.info[-1]['instruction'] == text)
    peer.ask()
    peer.node.destroy_publisher(publisher)


def test_a_lifecycle_round_trip_ends_in_a_working_node(node, peer):
    def change(transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return peer.call(ChangeState, 'vla_policy/change_state', request, 30.0).success

    def state() -> str:
        return peer.call(GetState, 'vla_policy/get_state', GetState.Request()).current_state.label

    peer.ask()
    assert change(4)  # deactivate
    assert state() == 'inactive'
    peer.send_any()
    peer.spin(0.5)
    assert len(peer.chunks) == 1
    assert change(2)  # clean up
    assert state() == 'unconfigured'
    assert change(1) and change(3)  # configure, activate
    peer.wait_until_active(node)
    assert peer.ask()


def test_direct_equals_through_ros_bit_for_bit(start, checkpoint, namespace, own_peer):
    """The same frames, executed actions and mode changes give the same float64 actions."""
    import torch

    from vla_prune_ros.policy import Observation, VLAPolicy
    from vla_prune_ros.pruning import MODES

    process = start(
        'policy_node',
        *arguments(
            checkpoint, namespace, trigger='request', queue='fifo', max_observation_age='0.0',
            sync__slop='0.0', sync__state_slop='0.0',
        ),
    )  # fmt: skip
    own_peer.wait_until_active(process)
    own_peer.instruction.publish(String(data=INSTRUCTIONS[0]))
    assert own_peer.wait_for(lambda: own_peer.info[-1]['instruction'] == INSTRUCTIONS[0])
    torch.set_num_threads(1)
    policy = VLAPolicy.from_pretrained(checkpoint)
    rng = np.random.default_rng(11)
    now = time.time_ns() - 600 * m.NANOSECONDS
    executed = np.empty((0, 7))

    def sense() -> tuple:
        images = {n: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for n in own_peer.images}
        quaternion = rng.normal(size=4)
        quaternion /= np.linalg.norm(quaternion)
        return images, rng.normal(size=3), quaternion, rng.normal(size=2)

    for k, mode in enumerate(mode for mode in MODES for _ in range(4)):
        if policy.settings.mode != mode:
            policy.set_pruning(mode)
            (result,) = own_peer.set_parameters(pruning__mode=mode)
            assert result.successful, result.reason
        for n, action in enumerate(executed):
            now += PERIOD
            policy.record_executed(action)
            if 0 < n < len(executed) - 1:  # a frame between two queries
                frame = sense()
                policy.observe(frame[0])
                own_peer.send(now, *frame)
        images, position, quaternion, fingers = sense()
        proprio = np.concatenate([position, quaternion_to_axis_angle(quaternion), fingers])
        expected = policy.step(Observation(images, proprio, INSTRUCTIONS[0], m.to_seconds(now)))
        own_peer.executed.publish(m.executed_message(executed, now, PERIOD))
        own_peer.send(now, images, position, quaternion, fingers)
        assert own_peer.wait_for(lambda n=k: len(own_peer.stats) == n + 1, 10.0), process.log
        assert own_peer.wait_for(lambda n=k: len(own_peer.chunks) == n + 1, 10.0)
        chunk, stats = own_peer.chunks[-1], own_peer.stats[-1]
        assert m.to_ns(chunk.header.stamp) == now
        actions, clipped = safe_actions(expected.actions, PERIOD)
        assert m.actions_from(chunk).tobytes() == actions.tobytes(), f'{mode}, query {k}'
        assert int(stats['clipped']) == clipped
        assert (stats['mode'], stats['kept']) == (mode, ','.join(map(str, expected.kept)))
        assert stats['reset_reason'] == (expected.reset_reason or '')
        executed = actions[: rng.integers(3, 9)]


def test_a_repeated_request_gets_the_same_chunk_without_a_second_inference(
    start, checkpoint, namespace, own_peer
):
    process = start(
        'policy_node',
        *arguments(
            checkpoint,
            namespace,
            trigger='request',
            default_instruction='wave',
            max_observation_age='0.0',
        ),
    )  # fmt: skip
    own_peer.wait_until_active(process)
    stamp = own_peer.send_any()
    own_peer.spin(0.3)
    assert not own_peer.chunks, 'nothing was asked for'
    request = m.executed_message(np.empty((0, 7)), stamp, PERIOD)
    own_peer.executed.publish(request)
    assert own_peer.wait_for(lambda: len(own_peer.chunks) == 1)
    own_peer.executed.publish(request)
    assert own_peer.wait_for(lambda: len(own_peer.chunks) == 2)
    assert own_peer.chunks[0] == own_peer.chunks[1]
    own_peer.spin(0.2)
    assert len(own_peer.stats) == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_within_two_seconds_and_leaves_nothing(
    start, checkpoint, namespace, own_peer, number
):
    process = start('policy_node', *arguments(checkpoint, namespace, default_instruction='wave'))
    own_peer.wait_until_active(process)
    for seed in range(5):
        own_peer.send_any(seed=seed)  # so that it is at work
    files = process.shared_memory()
    assert files, 'DDS talks through shared memory'
    code, seconds = process.end(number)
    assert (code, seconds < patience(2.0)) == (0, True), (code, seconds, process.log)
    assert 'Traceback' not in process.log
    assert [path for path in files if path.exists()] == []


def test_a_signal_while_the_model_loads_ends_the_node_with_code_zero(start, checkpoint, namespace):
    process = start('policy_node', *arguments(checkpoint, namespace))
    process.wait_for_log('loading')
    code, seconds = process.end(signal.SIGTERM)
    assert (code, seconds < patience(2.0)) == (0, True), (code, seconds, process.log)


def test_a_node_without_a_model_stays_alive_and_says_why(start, tmp_path, namespace, own_peer):
    process = start('policy_node', *arguments(tmp_path / 'nowhere', namespace))
    log = process.wait_for_log('configure failed')
    assert 'nowhere' in log
    answer = own_peer.call(GetState, 'vla_policy/get_state', GetState.Request())
    assert answer.current_state.label == 'unconfigured'
    assert process.end()[0] == 0


def test_a_misspelt_parameter_is_reported(start):
    process = start('policy_node', '--ros-args', '-p', 'autostart:=false', '-p', 'chekpoint:=x')
    process.wait_for_log("no parameter 'chekpoint'")
    assert process.end()[0] == 0
