# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The robot bridge without ROS: which chunks count, what each step commands, what is reported."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from conftest import REPOSITORY
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import JointState

from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.execution.supervisor import Facts
from vla_prune_ros.execution.targets import Pose
from vla_prune_ros.nodes.robot.chunks import ChunkGate
from vla_prune_ros.nodes.robot.grippers import ActionGripper, make_gripper
from vla_prune_ros.nodes.robot.optional import needed
from vla_prune_ros.nodes.robot.parameters import ROBOT, RobotConfig
from vla_prune_ros.nodes.robot.pilot import Pilot
from vla_prune_ros.nodes.robot.pose_state import FingerMap, TfPose
from vla_prune_ros.nodes.robot.state import NewestJoints
from vla_prune_ros.ros import messages as m

MS = 1_000_000
PERIOD = 50 * MS
SECOND = 1000 * MS
BOX = [-1.0, -1.0, 0.0, 1.0, 1.0, 2.0]
HERE = Pose(np.array([0.1, 0.2, 1.0]), np.eye(3))
INFO = {k: str(v) for k, v in Semantics().values().items()} | {'control_rate': '20.0'}


def config(**changes) -> RobotConfig:
    """Parameters, '__' in a name stands for the dot."""
    values = {
        s.name: list(s.default) if isinstance(s.default, tuple) else s.default for s in ROBOT
    }
    values |= {'limits.box': BOX, 'dry_run': False, 'speed_scale': 1.0}
    return RobotConfig.from_values(values | {k.replace('__', '.'): v for k, v in changes.items()})


def chunk(stamp: int, x: float = 0.4, n: int = 8, meaning: str = Semantics().signature):
    actions = np.tile([x, 0, 0, 0, 0, 0, 1.0], (n, 1))
    return m.chunk_message(actions, stamp, PERIOD, meaning)


# -- parameters --------------------------------------------------------------------------------
def test_every_parameter_has_a_description_and_every_number_a_range():
    for spec in ROBOT:
        assert spec.description, spec.name
        if isinstance(spec.default, int | float) and not isinstance(spec.default, bool):
            assert spec.minimum is not None and spec.maximum is not None, spec.name


def test_the_defaults_are_safe_and_refuse_to_start_without_a_box():
    defaults = {s.name: s.default for s in ROBOT}
    assert defaults['dry_run'] is True and defaults['speed_scale'] == 0.1
    with pytest.raises(ValueError, match=r'limits\.box'):
        RobotConfig.from_values(defaults)


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'limits__box': [0.0, 0, 0, 1, 1, float('nan')]}, r'limits\.box'),
        ({'limits__box': [0.0, 0, 0]}, r'limits\.box.*6'),
        ({'limits__box': [1.0, 0, 0, 0, 1, 1]}, 'low corner'),
        ({'output': 'twist', 'anchor': 'measured'}, 'anchor'),
        ({'command_rate': 10.0}, 'command_rate'),
        ({'frames__tool': [0.0] * 7}, r'frames\.tool'),
        ({'pose_source': 'tf'}, r'frames\.base'),
        ({'fingers__joints': ['a', 'b', 'c']}, r'fingers\.joints'),
        ({'fingers__open': [0.04]}, r'fingers\.open'),
        ({'fingers__open': [0.0, 0.0]}, r'fingers\.open'),
    ],
)
def test_parameters_that_do_not_go_together_are_refused_by_name(changes, reason):
    with pytest.raises(ValueError, match=reason):
        config(**changes)


# -- policy and chunks -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('said', 'reason'),
    [
        ({'control_rate': '10.0'}, 'control_rate is 10 Hz'),
        ({'action.frame': 'tool'}, 'action.frame is tool; this robot takes base'),
        (
            {'action.kind': 'joint_absolute', 'action.joints': 'a', 'action.units': 'rad'},
            'action.kind is joint_absolute; this robot takes ee_delta',
        ),
        ({'action.anchor': 'command'}, 'action.anchor'),
        ({'action.scale_position': '0.02'}, 'this robot takes 0.05'),
        ({'action.scale_rotation': 'much'}, 'action.scale_rotation'),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_by_name(said, reason):
    gate = ChunkGate(config(action__scale_position=0.05))
    assert gate.misfit == 'no policy_info yet'
    gate.describe(INFO | said, kept=False)
    assert reason in gate.misfit
    with pytest.raises(m.MessageError):
        gate.check(chunk(SECOND), SECOND, 0)
    assert gate.refused == {'misfit': 1}
    gate.describe(INFO, kept=False)
    assert gate.misfit == ''


def test_a_policy_must_not_become_another_one_while_the_arm_moves():
    gate = ChunkGate(config())
    gate.describe(INFO, kept=True)
    gate.describe(INFO | {'mode': 'specprune'}, kept=True)
    assert gate.misfit == ''
    gate.describe(INFO | {'action.scale_position': '0.02'}, kept=True)
    assert 'policy_info changed' in gate.misfit
    gate.describe()  # after a reset
    assert gate.misfit == '' and gate.semantics.scale_position == 0.02


def infinite(message):
    message.points[2].positions[0] = float('nan')


def names(message):
    message.joint_names[0] = 'joint1'


def width(message):
    message.points[1].positions = [0.0] * 6


def rate(message):
    for k, point in enumerate(message.points):
        point.time_from_start = m.to_time(0) and m.Duration(nanosec=k * 100 * MS)


def frame(message):
    message.header.frame_id = 'world'


def units(message):
    message.header.frame_id = Semantics(scale_position=0.02).signature


def empty(message):
    message.points = []


def old(message):
    message.header.stamp = m.to_time(SECOND - 401 * MS)


def future(message):
    message.header.stamp = m.to_time(SECOND + 51 * MS)


def before(message):
    message.header.stamp = m.to_time(SECOND - 101 * MS)


@pytest.mark.parametrize(
    ('change', 'cause'),
    [
        (infinite, 'content'), (names, 'content'), (width, 'content'), (empty, 'content'),
        (rate, 'rate'), (frame, 'meaning'), (units, 'meaning'),
        (old, 'old'), (future, 'future'), (before, 'before'),
    ],
)  # fmt: skip
def test_a_chunk_that_is_not_right_is_refused_and_counted_by_cause(change, cause):
    gate = ChunkGate(config())
    gate.describe(INFO, kept=False)
    stamp, actions = gate.check(chunk(SECOND - 100 * MS), SECOND, SECOND - 100 * MS)
    assert stamp == SECOND - 100 * MS and actions.shape == (8, 7)
    message = chunk(SECOND)
    change(message)
    with pytest.raises(m.MessageError):
        gate.check(message, SECOND, SECOND - 100 * MS)
    assert gate.refused == {cause: 1}


# -- steps -------------------------------------------------------------------------------------
class Flight:
    """A pilot and an arm that goes where it is expected, on a clock of steps of 50 ms."""

    def __init__(self, **changes) -> None:
        self.config = config(**changes)
        self.told: list[tuple[str, str]] = []
        self.pilot = Pilot(self.config, lambda *words: self.told.append(words))
        self.pilot.configure(self.config, Semantics())
        self.k, self.pose = 20, HERE
        assert self.pilot.supervisor.enable(self.facts()) == []

    @property
    def now_ns(self) -> int:
        return self.k * PERIOD

    def facts(self, **changes) -> Facts:
        return replace(Facts(self.k * 0.05), **changes)

    def answer(self, late: int = 0, x: float = 0.4, n: int = 8, shift: int = 0) -> None:
        """A chunk for the observation `late` steps ago, `shift` ns beside the tick."""
        actions = np.tile([x, 0, 0, 0, 0, 0, 1.0], (n, 1))
        actions[:, 1] = 0.01 * np.arange(n)
        self.pilot.add((self.k - late) * PERIOD + shift, actions, self.k * 0.05, self.now_ns)

    def step(self, **facts) -> str:
        state = self.pilot.tick(self.facts(**facts), self.now_ns, self.pose)
        command = self.pilot.command
        if state == 'running':
            self.pose = Pose(self.pose.position + command.expected, self.pose.rotation)
        self.k += 1
        return state

    def steps(self, n: int, **facts) -> list[str]:
        return [self.step(**facts) for _ in range(n)]


def test_a_chunk_is_played_once_and_then_the_arm_holds():
    flight = Flight()
    assert flight.steps(3) == ['holding'] * 3
    flight.answer()
    states = flight.steps(10)
    assert states == ['running'] * 8 + ['holding'] * 2
    assert flight.pilot.starved == 2
    assert not flight.pilot.command.twist.any()
    frozen = flight.pilot.command.pose
    flight.steps(5)
    assert flight.pilot.command.pose is frozen, 'frozen once, not measured anew'
    assert flight.told[-1] == ('holding', 'no action to play')


def test_a_late_chunk_loses_what_was_executed_and_stamps_need_not_be_equal():
    flight = Flight()
    flight.answer()
    flight.steps(6)
    flight.answer(late=3, shift=11 * MS)  # three steps of the old chunk were executed since
    flight.pilot.player.execution = replace(flight.pilot.player.execution, prefetch=8)
    flight.step()
    assert flight.pilot.command.effective[1] == pytest.approx(0.03)


def test_a_chunk_that_nobody_wants_is_not_played():
    flight = Flight()
    flight.answer()
    flight.steps(2)
    flight.answer(x=-0.4)
    flight.step()
    assert flight.pilot.command.expected[0] > 0
    flight.steps(4)
    flight.step()
    assert flight.pilot.command.expected[0] < 0, 'but when one is wanted, the newest'


def test_it_asks_in_time_and_reports_what_was_executed_in_units_of_actions():
    flight = Flight(limits__speed=0.05, chunk_timeout=0.2)
    assert flight.pilot.ask(flight.k * 0.05, flight.now_ns) is None, 'not before the first step'
    flight.step()
    assert flight.pilot.ask(flight.k * 0.05, flight.now_ns).shape == (0, 7)
    assert flight.pilot.ask(flight.k * 0.05, flight.now_ns) is None, 'it was asked'
    flight.k += 5
    assert flight.pilot.ask(flight.k * 0.05, flight.now_ns) is not None, 'but not answered'
    flight.answer()
    asked = []
    for _ in range(8):
        flight.step()
        asked.append(flight.pilot.ask(flight.k * 0.05, flight.now_ns))
    assert [a is not None for a in asked] == [False] * 6 + [True, False]
    np.testing.assert_allclose(asked[6][:, 0], 0.2, atol=0.01)  # 0.4, but for the speed limit
    assert flight.pilot.counts['speed'] == 8


def test_what_was_executed_after_the_stamp_of_a_request_is_told_the_next_time():
    flight = Flight(chunk_timeout=0.05)
    flight.answer(n=3)
    flight.steps(3)
    assert len(flight.pilot.ask(flight.k * 0.05, flight.now_ns - PERIOD)) == 2
    flight.k += 3
    assert len(flight.pilot.ask(flight.k * 0.05, flight.now_ns - PERIOD)) == 1


def test_after_a_silent_pose_the_old_plan_is_not_taken_up_again():
    flight = Flight()
    flight.answer()
    flight.steps(3)
    assert flight.step(pose_age=0.2) == 'holding'
    assert flight.steps(2) == ['holding'] * 2, 'waiting for a chunk of now'
    flight.answer()
    assert flight.step() == 'running'


def test_after_a_hold_it_asks_at_once_for_what_is_seen_from_then_on():
    flight = Flight()
    flight.answer()
    flight.steps(3)
    flight.pilot.ask(flight.k * 0.05, flight.now_ns)
    for _ in range(3):
        flight.answer(late=1)  # of before, and of the time in which nothing is known of the arm
        assert flight.step(pose_age=0.2) == 'holding'
        assert flight.pilot.ask(flight.k * 0.05, flight.now_ns) is None, (
            'not while it must not move'
        )
    held = flight.now_ns - PERIOD
    assert flight.step() == 'holding', 'none of them is played'
    assert flight.pilot.earliest == held
    assert flight.pilot.ask(flight.k * 0.05, flight.now_ns) is not None
    flight.answer()
    assert flight.step() == 'running'


def test_another_instruction_ends_the_plan_at_once():
    flight = Flight()
    flight.answer()
    flight.steps(2)
    flight.pilot.clear('the instruction changed: sing', flight.now_ns)
    assert flight.step() == 'holding'
    assert flight.pilot.supervisor.reason == 'the instruction changed: sing'
    flight.answer()
    assert flight.step() == 'running'


@pytest.mark.parametrize('output', ['pose', 'twist'])
def test_a_stop_between_two_steps_leaves_no_motion_in_force(output):
    flight = Flight(output=output)
    flight.answer()
    flight.steps(3)
    assert flight.pilot.command.twist.any()
    flight.pilot.supervisor.stop('service', 'stop', flight.k * 0.05)
    flight.pilot.hold(flight.k * 0.05, flight.pose)
    assert not flight.pilot.command.twist.any()
    flight.k += 10
    flight.step()
    assert flight.pilot.command is None, 'silent after release_time'


def test_an_arm_that_does_not_follow_stops_the_pilot():
    flight = Flight()
    states = []
    for _ in range(60):
        flight.answer(x=1.0)
        stay = flight.pose
        states.append(flight.step())
        flight.pose = stay
    assert states[-1] == 'stopped' and 'the arm moved' in flight.pilot.supervisor.reason
    assert 38 <= states.index('stopped') <= 44


def test_added_latency_delays_a_chunk():
    flight = Flight(latency=0.15)
    flight.answer()
    assert flight.steps(4) == ['holding'] * 3 + ['running']


def test_speed_scale_changes_while_the_arm_moves():
    flight = Flight()
    flight.answer()
    flight.step()
    full = flight.pilot.command.expected[0]
    flight.pilot.follow(config(speed_scale=0.1))
    flight.step()
    assert flight.pilot.command.expected[0] == pytest.approx(0.1 * full)


# -- state and gripper -------------------------------------------------------------------------
def joints(stamp: int, **positions) -> JointState:
    message = JointState(name=list(positions), position=list(positions.values()))
    message.header.stamp = m.to_time(stamp)
    return message


def test_arm_and_gripper_may_publish_their_joints_apart():
    parts = NewestJoints()
    parts.add(joints(100, joint1=0.1, joint2=0.2))
    assert parts.get(('finger', 'joint1')) is None
    parts.add(joints(90, finger=0.03))
    stamp, positions = parts.get(('finger', 'joint1'))
    assert stamp == 90 and positions.tolist() == [0.03, 0.1]
    for broken in (JointState(name=['a'], position=[]), joints(1, a=float('nan'))):
        with pytest.raises(m.MessageError):
            parts.add(broken)


@pytest.mark.parametrize(
    ('parameters', 'driven', 'trained'),
    [
        ({}, [0.03, -0.03], [0.03, -0.03]),
        # Franka publishes both fingers positive, a Robotiq one angle that is 0 when open
        ({'fingers__open': [0.04, 0.04]}, [0.01, 0.01], [0.01, -0.01]),
        (
            {'fingers__joints': ['knuckle'], 'fingers__open': [0.0], 'fingers__closed': [0.8]},
            [0.2], [0.03, -0.03],
        ),
    ],
)  # fmt: skip
def test_fingers_of_any_sign_and_number_become_those_of_the_training_data(
    parameters, driven, trained
):
    fingers = FingerMap(config(**parameters).values)
    np.testing.assert_allclose(fingers(np.array(driven)), trained, atol=1e-12)


class Future:
    def __init__(self, value=None):
        self.value, self.callbacks = value, []

    def add_done_callback(self, callback):
        self.callbacks.append(callback)

    def result(self):
        return self.value

    def finish(self, value):
        self.value = value
        for callback in self.callbacks:
            callback(self)


class Handle:
    def __init__(self, accepted=True):
        self.accepted, self.done = accepted, Future()

    def get_result_async(self):
        return self.done


class Client:
    """The part of an action client that is used; a real one needs control_msgs."""

    def __init__(self):
        self.goals, self.futures = [], []

    def send_goal_async(self, goal):
        self.goals.append(goal)
        self.futures.append(Future())
        return self.futures[-1]


def test_one_goal_is_under_way_and_the_latest_wish_waits():
    client, warned = Client(), []
    gripper = ActionGripper(client, lambda position: position, lambda *w: warned.append(w))
    for wish in (0.04, 0.0, 0.04, 0.0):
        gripper.move(wish)
    assert client.goals == [0.04]
    handle = Handle()
    client.futures[0].finish(handle)
    assert client.goals == [0.04]
    handle.done.finish(None)
    assert client.goals == [0.04, 0.0] and not warned


def test_a_goal_that_is_rejected_or_not_answered_is_tried_once_again(monkeypatch):
    client, warned = Client(), []
    gripper = ActionGripper(client, lambda position: position, lambda *w: warned.append(w[1]))
    gripper.move(0.0)
    client.futures[0].finish(Handle(accepted=False))
    assert client.goals == [0.0, 0.0]
    client.futures[1].finish(Handle(accepted=False))
    assert client.goals == [0.0, 0.0]
    assert ['once again' in text for text in warned] == [True, False]
    gripper.move(0.04)
    from vla_prune_ros.nodes.robot import grippers

    now = grippers.time.monotonic()
    monkeypatch.setattr(grippers.time, 'monotonic', lambda: now + 4.0)
    gripper.watch()
    assert client.goals == [0.0, 0.0, 0.04, 0.04] and 'no answer' in warned[-1]


def test_a_server_that_dies_with_a_goal_does_not_block_the_gripper_for_good(monkeypatch):
    from vla_prune_ros.nodes.robot import grippers

    client, warned = Client(), []
    gripper = ActionGripper(client, lambda position: position, lambda *w: warned.append(w[1]))
    gripper.move(0.0)
    client.futures[0].finish(Handle())
    gripper.move(0.04)
    now = grippers.time.monotonic()
    monkeypatch.setattr(grippers.time, 'monotonic', lambda: now + 5.0)
    gripper.watch()
    assert client.goals == [0.0] and not warned, 'it may take its time'
    monkeypatch.setattr(grippers.time, 'monotonic', lambda: now + 16.0)
    gripper.watch()
    assert client.goals == [0.0, 0.04] and 'no end within 15 s' in warned[-1]


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for packages without wheels, with the names and fields that they have."""

    def goal(**fields):
        return type(
            'Action', (), {'Goal': lambda: SimpleNamespace(command=SimpleNamespace(**fields))}
        )

    actions = ModuleType('control_msgs.action')
    actions.GripperCommand = goal(position=0.0, max_effort=0.0)
    actions.ParallelGripperCommand = goal(name=[], position=[], velocity=[], effort=[])
    monkeypatch.setitem(sys.modules, 'control_msgs', ModuleType('control_msgs'))
    monkeypatch.setitem(sys.modules, 'control_msgs.action', actions)
    tf2_ros = ModuleType('tf2_ros')
    tf2_ros.TransformException = LookupError
    tf2_ros.Buffer, tf2_ros.TransformListener = Buffer, lambda buffer, node: None
    monkeypatch.setitem(sys.modules, 'tf2_ros', tf2_ros)


class Buffer:
    found = None

    def lookup_transform(self, target, source, when):
        assert (target, source) == ('base_link', 'tool0')
        if self.found is None:
            raise LookupError('not yet')
        return self.found


def test_goals_have_the_fields_of_the_two_actions(packages, monkeypatch):
    from vla_prune_ros.nodes.robot import grippers

    made = []
    monkeypatch.setattr(grippers, 'ActionClient', lambda *words: made.append(words) or Client())
    for kind in ('gripper_command', 'parallel_gripper'):
        gripper = make_gripper(
            'node', config(gripper__type=kind, gripper__joint='knuckle'), lambda *_: None
        )
        gripper.move(0.8)
        command = gripper._client.goals[0].command
        if kind == 'gripper_command':
            assert (command.position, command.max_effort) == (0.8, 20.0)
        else:
            assert (command.name, command.position) == (['knuckle'], [0.8])
            assert command.effort == [20.0]
    assert [words[2] for words in made] == ['gripper/gripper_cmd'] * 2


def test_servo_is_told_what_comes_and_says_when_it_halts(monkeypatch):
    from vla_prune_ros.nodes.robot.outputs import Servo

    modules = {name: ModuleType(name) for name in ('moveit_msgs', 'moveit_msgs.msg')}
    modules['moveit_msgs.msg'].ServoStatus = object
    modules['moveit_msgs.srv'] = ModuleType('moveit_msgs.srv')
    modules['moveit_msgs.srv'].ServoCommandType = SimpleNamespace(Request=SimpleNamespace)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    asked, heard, said = {}, {}, []

    def create_client(kind, name):
        ready = name.endswith('switch_command_type')
        call = lambda request: asked.update({name: request})  # noqa: E731
        return SimpleNamespace(service_is_ready=lambda: ready, srv_name=name, call_async=call)

    node = SimpleNamespace(
        create_client=create_client,
        create_subscription=lambda kind, name, take, qos: heard.update({name: take}),
    )
    servo = Servo(node, 'servo_node', 'twist', said.append)
    servo.start()
    assert asked['servo_node/switch_command_type'].command_type == 1
    assert asked['servo_node/pause_servo'].data is False
    assert said == ['servo_node/pause_servo is not there']
    heard['servo_node/status'](SimpleNamespace(code=2))
    assert servo.halted == 'singularity'
    heard['servo_node/status'](SimpleNamespace(code=0))
    assert servo.halted == ''


def test_a_pose_of_tf_is_where_one_frame_is_in_another(packages):
    tf = TfPose(None, 'base_link', 'tool0')
    assert tf.newest() is None, 'not there yet'
    transform = TransformStamped()
    transform.header.stamp = m.to_time(7 * SECOND)
    transform.transform.translation.x, transform.transform.rotation.w = 0.4, 1.0
    tf._buffer.found = transform
    message = tf.newest()
    assert message.pose.position.x == 0.4 and message.header.frame_id == 'base_link'
    assert m.to_ns(message.header.stamp) == 7 * SECOND


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(RuntimeError, match=r'servo needs no_such_msgs.*apt install'):
        needed('no_such_msgs.srv', 'servo')


def test_no_message_package_without_wheels_is_imported_unasked():
    folder = REPOSITORY / 'vla_prune_ros' / 'nodes' / 'robot'
    for path in folder.glob('*.py'):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (['import'], ['from']):
                assert words[1].split('.')[0] not in ('control_msgs', 'moveit_msgs', 'tf2_ros')
