# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `robot_check`: how far does an action move the hand, through robot bridge and controller?

Takes the place of the policy for one second. It shows whether anchor, gain and stiffness fit: a
stiff controller that is given a soft one's offsets goes four times too far.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.trials import command

DESCRIPTION = """\
Move the hand by 20 actions of --size along one axis, through a robot bridge that is not in dry run
and whose speed_scale is 1, and compare with what the arm of the training data would do: 75 mm for
0.3. No policy may run. THE ARM MOVES. Exit code 0 if the distance is within 20 %."""
STEPS, PERIOD = 20, 50_000_000
AXES = ('x', 'y', 'z')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command.parser('robot_check', DESCRIPTION, patience=20.0)
    p.add_argument('--axis', choices=AXES, default='y', help='of the base frame (y)')
    p.add_argument('--size', type=float, default=0.3, help='of an action, -1 to 1 (0.3)')
    p.add_argument('--scale-position', type=float, default=0.05, help='m per unit (0.05)')
    p.add_argument('--step-position', type=float, default=0.0125, help='m per step (0.0125)')
    p.add_argument('--pose', default='arm/pose', help='topic of the measured pose (arm/pose)')
    p.add_argument('--namespace', default='', help='of the bridge')
    p.add_argument('--go', action='store_true', help='really move the arm')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Do it once."""
    return command.run_verb(parser(), run, argv)


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Enable, move, disable, compare."""
    if not args.go:
        raise ValueError('the arm will move: say --go')
    if not 0.0 < abs(args.size) <= 1.0:
        raise ValueError(f'--size {args.size} is not within -1..1')
    moved, state = measure(args)
    expected = STEPS * args.size * args.step_position
    share = moved[AXES.index(args.axis)] / expected
    print(
        f'moved {1e3 * moved[0]:.0f}, {1e3 * moved[1]:.0f}, {1e3 * moved[2]:.0f} mm along x, y, '
        f'z; {1e3 * expected:.0f} mm along {args.axis} were to be expected ({100 * share:.0f} %)'
    )
    if state.get('state') == 'stopped':
        raise RuntimeError(f'the bridge stopped: {state["reason"]}')
    return 0 if abs(share - 1.0) <= 0.2 else 1


def measure(args: argparse.Namespace) -> tuple[np.ndarray, dict[str, str]]:
    """How far the hand went [3] (m), and the last state of the bridge."""
    # Before anything else: rclpy from wheels starts Python anew with another library path.
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PoseStamped
    from trajectory_msgs.msg import JointTrajectory

    from vla_prune_ros.ros import messages as m
    from vla_prune_ros.ros.client import Client
    from vla_prune_ros.trials.robot_client import RobotBridge

    semantics = Semantics(scale_position=args.scale_position, step_position=args.step_position)
    action = np.zeros(7)
    action[AXES.index(args.axis)], action[6] = args.size, semantics.gripper_open

    def name(topic: str) -> str:
        inside = args.namespace and not topic.startswith('/')
        return f'/{args.namespace.strip("/")}/{topic}' if inside else topic

    with Client('robot_check', patience=args.patience) as client:
        chunks = client.publisher(JointTrajectory, name('action_chunk'))
        info = client.publisher(DiagnosticArray, name('vla_policy/policy_info'), m.LATCHED)
        poses = client.listen(
            PoseStamped, name(args.pose), lambda msg: m.pose_from(msg)[:3], m.SENSOR
        )
        bridge = RobotBridge(client, name('robot_bridge'))
        said = semantics.values() | {'control_rate': 1e9 / PERIOD}
        info.publish(m.values_message('robot_check', said, 0))
        client.wait(lambda: poses.latest is not None, f'a pose on {name(args.pose)}')
        try:
            bridge.enable()
            client.spin(0.5)
            start = poses.latest
            now = client.node.get_clock().now().nanoseconds
            actions = np.tile(action, (STEPS, 1))
            chunks.publish(m.chunk_message(actions, now, PERIOD, semantics.signature))
            for wanted in (('running',), ('holding', 'stopped')):
                client.spin(5.0, lambda wanted=wanted: bridge.state.get('state') in wanted)
            client.spin(1.0)
        finally:
            bridge.disable()
            client.spin(0.5)
        return poses.latest - start, bridge.state
