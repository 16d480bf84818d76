# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The robot bridge in this process: what cannot be provoked from outside."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from std_msgs.msg import Float64MultiArray
from test_robot_pilot import BOX, INFO, PERIOD, chunk

from vla_prune_ros.execution.supervisor import Facts
from vla_prune_ros.nodes.robot.robot_bridge import RobotBridge
from vla_prune_ros.ros import messages as m


@pytest.fixture
def bridge(ros, namespace):
    """A bridge that runs, fed by hand: nothing spins it."""
    values = {
        'limits.box': BOX,
        'dry_run': False,
        'speed_scale': 1.0,
        'gripper.type': 'float_array',
    }
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    node = RobotBridge(threading.Event(), parameter_overrides=overrides, namespace=namespace)
    node.start()
    node.sent = []
    for publisher in node.control._output.publishers.values():
        publisher.publish = node.sent.append
    node.pilot.supervisor.enable(Facts(time.monotonic()))
    node._on_info(m.values_message('policy', INFO, 0))
    node.pilot.configure(node.config, node.gate.semantics)
    yield node
    node.close()
    node.destroy_node()


def feed(bridge, x=0.1) -> None:
    """State and a chunk of now, a listener and a policy; then a control step."""
    around = bridge.control.around
    around.look(time.monotonic(), at_once=True)  # first: it may take longer than a chunk waits
    around.sources, around.listeners = ('/policy',), 1
    now = bridge.get_clock().now().nanoseconds
    pose = m.pose_message(np.array([x, 0.2, 1.0]), np.array([0, 0, 0, 1.0]), now, 'base_link')
    bridge.control.state._on_pose(pose)
    names = ('finger_joint1', 'finger_joint2')
    bridge.control.state._on_joints('arm/joint_states', m.joint_message(names, (0.04, -0.04), now))
    bridge.pilot.add(now, m.actions_from(chunk(now)), time.monotonic(), now)
    bridge.control._next = 0.0
    bridge.control.on_timer()


def test_it_runs_when_all_is_well(bridge):
    feed(bridge)
    assert bridge.pilot.supervisor.state == 'running', bridge.pilot.supervisor.reason
    assert isinstance(bridge.sent[-1], PoseStamped)
    assert bridge.sent[-1].pose.position.x == pytest.approx(0.1 + 0.4 * 0.05)
    assert bridge.sent[-1].header.frame_id == 'base_link'


def test_enabling_what_is_enabled_changes_nothing(bridge):
    feed(bridge)
    left = bridge.pilot.player.remaining
    assert bridge.control.enable() == []
    assert bridge.pilot.player.remaining == left > 0


def test_an_exception_in_a_step_stops_and_holds(bridge, monkeypatch):
    feed(bridge)

    def fail(*_):
        raise RuntimeError('a bug')

    monkeypatch.setattr(bridge.pilot, 'tick', fail)
    feed(bridge)
    assert bridge.pilot.supervisor.state == 'stopped'
    assert 'RuntimeError: a bug' in bridge.pilot.supervisor.reason
    bridge.control.on_timer()
    assert bridge.sent[-1].pose.position.x == pytest.approx(0.1), 'where it is measured'


def test_the_nodes_clock_is_watched(bridge):
    feed(bridge)
    bridge.control.around._offset += m.NANOSECONDS  # as if the clock had gone back by a second
    feed(bridge)
    assert bridge.pilot.supervisor.state == 'holding'
    assert 'the clock was set by -1.0' in bridge.pilot.supervisor.reason
    feed(bridge)
    assert bridge.pilot.supervisor.state == 'running'


def test_five_late_steps_in_a_row_stop_it(bridge):
    for _ in range(5):
        feed(bridge)
        assert bridge.pilot.supervisor.state == 'running'
        bridge.control._next = time.monotonic() - 0.2
        bridge.control.on_timer()
    assert bridge.pilot.supervisor.state == 'running', 'in between it came in time'
    for _ in range(5):
        bridge.control._next = time.monotonic() - 0.2
        bridge.control.on_timer()
    assert '5 ticks in a row' in bridge.pilot.supervisor.reason


def test_the_gripper_is_told_once(bridge):
    told = []
    bridge.control._gripper._publisher.publish = told.append
    for _ in range(3):
        feed(bridge)
    assert [message.data[0] for message in told] == [0.04]
    assert isinstance(told[0], Float64MultiArray)


def test_where_the_driver_publishes_the_bridge_does_not(ros, namespace):
    values = {'limits.box': BOX, 'topics.pose': 'ee_pose'}
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    node = RobotBridge(threading.Event(), parameter_overrides=overrides, namespace=namespace)
    node.start()
    assert node.failed and node.control is None
    node.destroy_node()


def test_the_preview_leads_where_the_chunk_does(bridge):
    from vla_prune_ros.nodes.robot.reports import preview

    feed(bridge)
    poses = preview(bridge.pilot, bridge.control.state, PERIOD).poses
    assert len(poses) == 7  # one action was played
    assert poses[-1].position.x == pytest.approx(0.1 + 7 * 0.4 * 0.0125)
