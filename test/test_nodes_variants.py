# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Nodes with other variants than LIBERO's: a bimanual arm of joints, one camera and no state."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

import rclpy
import yaml
from bag_tools import replay, write
from conftest import REPOSITORY, patience
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from tiny import INSTRUCTIONS, tiny_checkpoint, tiny_config, variant
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.execution.checks import ChunkError
from vla_prune_ros.nodes.policy.answering import publishable
from vla_prune_ros.nodes.policy.joints import Joints
from vla_prune_ros.nodes.policy.loading import another_rate, check_fit
from vla_prune_ros.nodes.policy.parameters import POLICY, PolicyConfig
from vla_prune_ros.policy import Observation, VLAPolicy
from vla_prune_ros.ros.parameters import ParameterError

CAMERAS = ('cam_high', 'cam_left_wrist', 'cam_right_wrist')
ARM = ('waist', 'shoulder', 'elbow', 'forearm_roll', 'wrist_angle', 'wrist_rotate', 'gripper')
JOINTS = tuple(f'{side}_{name}' for side in ('left', 'right') for name in ARM)
GRIPPERS = ('left_gripper', 'right_gripper')
PERIOD = 40_000_000
STATE_GRIPPER, ACTION_GRIPPER = (0.02, 0.06), (-0.6, 1.6)  # closed, open


def parameters(checkpoint) -> dict:
    """Of the node, for a bimanual arm."""
    return {
        'checkpoint': str(checkpoint), 'torch_threads': 1, 'cameras': CAMERAS,
        'control_rate': 25.0, 'action.kind': 'joint_absolute', 'action.joints': JOINTS,
        'action.units': ('rad',) * 14, 'state.kind': 'joints', 'gripper.joints': GRIPPERS,
        'gripper.state_closed': STATE_GRIPPER[0], 'gripper.state_open': STATE_GRIPPER[1],
        'gripper.action_closed': ACTION_GRIPPER[0], 'gripper.action_open': ACTION_GRIPPER[1],
    }  # fmt: skip


def config(**changes) -> PolicyConfig:
    values = {spec.name: spec.default for spec in POLICY} | {'pruning.mode': 'none'}
    return PolicyConfig.from_values(values | parameters('') | changes)


def command_line(namespace: str, **values) -> list[str]:
    texts = {k: f'[{", ".join(v)}]' if isinstance(v, tuple) else v for k, v in values.items()}
    remap = ['-r', f'__ns:={namespace}'] if namespace else []
    return ['--ros-args', *remap, *(w for k, v in texts.items() for w in ('-p', f'{k}:={v}'))]


@pytest.fixture(scope='module')
def aloha(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('aloha'), **variant('aloha'))


# -- rules ---------------------------------------------------------------------------------------
def test_grippers_are_scaled_there_and_back():
    joints = Joints(JOINTS, GRIPPERS, *STATE_GRIPPER)
    robot = np.linspace(-1, 1, 14)
    robot[[6, 13]] = 0.02, 0.05
    policy = joints.of_policy(robot)
    assert policy[[6, 13]] == pytest.approx([0.0, 0.75])
    others = [i for i in range(14) if i not in (6, 13)]
    assert policy[others].tolist() == robot[others].tolist()
    assert joints.of_robot(policy) == pytest.approx(robot)


def test_a_chunk_of_joints_is_not_clipped_but_checked():
    actions = np.full((25, 14), 2.5)
    out, clipped = publishable(actions, config(), PERIOD)
    assert clipped == 0 and out[0, 0] == 2.5
    assert out[0, 6] == pytest.approx(-0.6 + 2.5 * 2.2)  # beyond open, as the policy says
    for bad in (np.full((25, 14), np.nan), np.zeros((25, 7))):
        with pytest.raises(ChunkError):
            publishable(bad, config(), PERIOD)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'gripper.joints': ('left_thumb',)}, "gripper.joints: 'left_thumb' is not in action.joints"),
     ({'gripper.state_open': 0.02}, 'gripper.state_open is gripper.state_closed'),
     ({'state.joints': ('a', 'a')}, 'state.joints:.*not different'),
     ({'action.kind': 'ee_delta', 'action.joints': ('',), 'action.units': ('',),
       'gripper.joints': ('',)}, 'state.joints:.*are not different names'),
     ({'action.units': ('rad',) * 13}, 'a unit each')],
)  # fmt: skip
def test_names_that_do_not_go_together(changes, message):
    with pytest.raises(ParameterError, match=f'parameter.*{message}'):
        config(**changes)


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [('libero', {}, 'commands delta_pose: set action.kind:=ee_delta'),
     ('aloha', {'action.joints': JOINTS[:12], 'action.units': ('rad',) * 12,
                'gripper.joints': ('left_gripper',)}, '14 numbers per action, the node 12'),
     ('aloha', {'state.joints': JOINTS[:7], 'gripper.joints': ('left_gripper',)},
      'state of 14 numbers, state.kind joints gives 7'),
     ('aloha', {'state.kind': 'none'}, 'state.kind none gives 0'),
     ('aloha', {'state.kind': 'pose_fingers'}, 'pose_fingers gives 8')],
)  # fmt: skip
def test_a_node_that_does_not_fit_its_checkpoint(name, changes, message):
    with pytest.raises(ValueError, match=message):
        check_fit(tiny_config(**variant(name)), config(**changes))


def test_another_rate_than_that_of_the_training_is_said():
    checkpoint = tiny_config(**variant('aloha'))
    assert another_rate(checkpoint, config()) == ''
    assert 'trained at 25 Hz and control_rate is 50' in another_rate(
        checkpoint, config(control_rate=50.0)
    )
    check_fit(checkpoint, config())


# -- a bimanual arm over DDS ---------------------------------------------------------------------
class BimanualArm:
    """A robot of another writer: three cameras, fourteen joints, plays what it gets.

    Its messages are made by hand; `heard` and `said` is what a recorder would have written.
    """

    def __init__(self, namespace: str, cameras=CAMERAS, *, joints: bool = True) -> None:
        self.node = node = rclpy.create_node('arm', namespace=namespace)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.images = {c: node.create_publisher(Image, f'{c}/image_raw', 10) for c in cameras}
        self.joints = node.create_publisher(JointState, 'joint_states', 10) if joints else None
        self.executed = node.create_publisher(JointTrajectory, 'executed_actions', 10)
        self.instruction = node.create_publisher(String, 'instruction', latched)
        self.log: list = []
        self.chunks: list[JointTrajectory] = []
        self.info: list[dict] = []
        self._hear(JointTrajectory, 'action_chunk', 10)
        self._hear(DiagnosticArray, 'vla_policy/inference_stats', 10)
        self._hear(DiagnosticArray, 'vla_policy/policy_info', latched)
        rng = np.random.default_rng(0)
        self.position = dict(zip(JOINTS, rng.uniform(-1, 1, 14).tolist(), strict=True))
        self.position |= dict.fromkeys(GRIPPERS, 0.04)

    def _hear(self, kind, name, qos) -> None:
        def heard(message) -> None:
            self.log.append((f'/{name}', time.time_ns(), message))
            if kind is JointTrajectory:
                self.chunks.append(message)
            elif 'info' in name:
                self.info.append({v.key: v.value for v in message.status[0].values})

        self.node.create_subscription(kind, name, heard, qos)

    def say(self, publisher, name: str, message) -> None:
        self.log.append((f'/{name}', time.time_ns(), message))
        publisher.publish(message)

    def wait(self, condition, seconds: float = 30.0) -> bool:
        deadline = time.monotonic() + patience(seconds)
        while not condition() and time.monotonic() < deadline:
            rclpy.spin_once(self.node, timeout_sec=0.02)
        return bool(condition())

    def wait_until_heard(self, process) -> None:
        publishers = [
            *self.images.values(),
            self.executed,
            *([self.joints] if self.joints else []),
        ]
        ready = lambda: (  # noqa: E731
            all(p.get_subscription_count() for p in publishers)
            and self.node.count_publishers('action_chunk')
            and self.info
        )
        assert self.wait(lambda: process.popen.poll() is not None or ready(), 60.0), process.log
        assert process.popen.poll() is None, process.log

    def look(self, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {c: rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for c in self.images}

    def observe(self, seed: int) -> int:
        """Publish what it sees and feels; returns the stamp."""
        stamp = time.time_ns()
        header = {'sec': stamp // 10**9, 'nanosec': stamp % 10**9}
        for camera, pixels in self.look(seed).items():
            message = Image(height=60, width=80, encoding='rgb8', step=240)
            message.header.stamp.sec, message.header.stamp.nanosec = header.values()
            message.data = pixels.tobytes()
            self.say(self.images[camera], f'{camera}/image_raw', message)
        if self.joints:
            names = [*reversed(JOINTS), 'left_left_finger']  # another order, and one more
            state = JointState(name=names, position=[self.position.get(n, 9.0) for n in names])
            state.header.stamp.sec, state.header.stamp.nanosec = header.values()
            self.say(self.joints, 'joint_states', state)
        return stamp

    def ask(self, stamp: int, played=()) -> JointTrajectory:
        message = JointTrajectory(joint_names=self.chunks[-1].joint_names if played else JOINTS)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
        message.points = list(played)
        for k, point in enumerate(message.points, start=-len(played)):
            since = divmod(k * PERIOD, 10**9)
            point.time_from_start.sec, point.time_from_start.nanosec = since
        self.say(self.executed, 'executed_actions', message)
        before = len(self.chunks)
        assert self.wait(lambda: len(self.chunks) > before), 'no chunk'
        return self.chunks[-1]

    def play(self, chunk: JointTrajectory, steps: int = 5) -> list:
        """Move the joints that the chunk names half of the way in each step."""
        for point in chunk.points[:steps]:
            for name, goal in zip(chunk.joint_names, point.positions, strict=True):
                self.position[name] += 0.5 * (goal - self.position[name])
        return list(chunk.points[:steps])

    @property
    def state(self) -> np.ndarray:
        """As the checkpoint has it."""
        closed, opened = STATE_GRIPPER
        values = np.array([self.position[name] for name in JOINTS])
        values[[6, 13]] = (values[[6, 13]] - closed) / (opened - closed)
        return values


@pytest.fixture
def arm(ros, namespace):
    made = []

    def make(**settings) -> BimanualArm:
        made.append(BimanualArm(namespace, **settings))
        return made[-1]

    yield make
    for one in made:
        one.node.destroy_node()


@pytest.fixture
def recording(start, arm, aloha, namespace, tmp_path):
    """A bag of a bimanual arm that was driven for four chunks, each held against the policy."""
    process = start('policy_node', *command_line(namespace, **parameters(aloha), trigger='request',
                                                 input_reliability='reliable'))  # fmt: skip
    robot = arm()
    robot.wait_until_heard(process)
    robot.say(robot.instruction, 'instruction', String(data=INSTRUCTIONS[0]))
    direct = VLAPolicy.from_pretrained(aloha, cameras=CAMERAS)
    played = []
    for tick in range(4):
        state, stamp = robot.state, robot.observe(tick)
        chunk = robot.ask(stamp, played)
        seen = Observation(robot.look(tick), state, INSTRUCTIONS[0], 0.2 * tick)
        expected = direct.step(seen).actions
        closed, opened = ACTION_GRIPPER
        expected[:, [6, 13]] = closed + expected[:, [6, 13]] * (opened - closed)
        assert tuple(chunk.joint_names) == JOINTS
        assert chunk.header.frame_id == 'joint_absolute/14rad'
        times = [p.time_from_start.sec * 10**9 + p.time_from_start.nanosec for p in chunk.points]
        assert times == [k * PERIOD for k in range(25)]
        positions = np.array([p.positions for p in chunk.points])
        np.testing.assert_allclose(positions, expected, rtol=0, atol=1e-4)
        played = robot.play(chunk)
    assert robot.wait(lambda: sum('inference_stats' in t for t, *_ in robot.log) == 4)
    bag = write(tmp_path / 'bag', sorted(robot.log, key=lambda entry: entry[1]))
    return bag, robot.info[-1]


def test_a_bimanual_arm_gets_chunks_with_its_own_joint_names(recording, aloha, tmp_path, capsys):
    bag, said = recording
    assert said['action.kind'] == 'joint_absolute' and said['control_mode'] == 'joint positions'
    assert said['action.joints'] == said['dimension_names'] == ','.join(JOINTS)
    assert (said['head'], said['normalisation']) == ('l1', 'bounds')
    # The same run again, from what a recorder would have kept, without a word about the robot.
    result = replay(capsys, tmp_path, bag, '--checkpoint', str(aloha), '--tiers', 'T0,T1',
                    '--modes', 'recorded', '--compare', 'recorded')  # fmt: skip
    assert result.code == 0, result.text
    assert len(result.ticks) >= 4


@pytest.mark.slow
def test_a_recording_of_a_bimanual_arm_replays_over_dds(recording, aloha, tmp_path, capsys):
    result = replay(capsys, tmp_path, recording[0], '--checkpoint', str(aloha), '--tiers', 'T1,T2',
                    '--modes', 'recorded', '--compare', 'recorded')  # fmt: skip
    assert result.code == 0, result.text
    assert {tick['tier'] for tick in result.ticks} == {'T1', 'T2'}


def test_the_configuration_of_aloha_fits_its_checkpoints():
    content = yaml.safe_load((REPOSITORY / 'config' / 'robots' / 'aloha.yaml').read_text())
    values: dict = {}

    def flat(part: dict, prefix: str = '') -> None:
        for name, value in part.items():
            if isinstance(value, dict):
                flat(value, f'{prefix}{name}.')
            else:
                values[prefix + name] = value

    flat(content['/**/vla_policy']['ros__parameters'])
    defaults = {spec.name: spec.default for spec in POLICY} | {'pruning.mode': 'none'}
    loaded = PolicyConfig.from_values(defaults | values)
    checkpoint = tiny_config(**variant('aloha'))
    check_fit(checkpoint, loaded)
    assert loaded.cameras == checkpoint.cameras and another_rate(checkpoint, loaded) == ''


def test_one_camera_and_no_state(start, arm, namespace, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, **variant('libero_tokens'))
    process = start('policy_node', *command_line(
        namespace, **{'checkpoint': str(checkpoint), 'torch_threads': 1, 'cameras': ('agentview',),
                      'state.kind': 'none', 'default_instruction': 'wave',
                      'pruning.mode': 'specprune'},
    ))  # fmt: skip
    robot = arm(cameras=('agentview',), joints=False)
    robot.wait_until_heard(process)
    direct = VLAPolicy.from_pretrained(checkpoint, 'specprune')
    for tick in range(3):
        before = len(robot.chunks)
        robot.observe(tick)
        assert robot.wait(lambda: len(robot.chunks) > before), process.log  # noqa: B023
        actions = np.array([p.positions for p in robot.chunks[-1].points])
        seen = Observation(robot.look(tick), None, 'wave', 0.1 * tick)
        expected = direct.step(seen).actions.clip([-1] * 6 + [0], 1)
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-4)
    assert robot.info[-1]['proprio'] == 'none' and robot.info[-1]['head'] == 'tokens'


def test_a_node_that_does_not_fit_says_what_to_set(start, aloha, namespace):
    wrong = parameters(aloha) | {'cameras': CAMERAS[:2]}
    process = start('policy_node', *command_line(namespace, **wrong))
    deadline = time.monotonic() + patience(60.0)
    while 'configure failed' not in process.log and time.monotonic() < deadline:
        time.sleep(0.1)
    assert 'the checkpoint is for 3 camera(s), cam_high, cam_left_wrist' in process.log
