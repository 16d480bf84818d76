# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `robot_check`: how far does an action move the hand, through robot bridge and controller?

Takes the place of the policy for one second. It shows whether anchor, gain and stiffness fit: a
stiff controller that is given a soft one's offsets goes four times too far.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np

from vla_prune_ros.execution.semantics import Semantics
from vla_prune_ros.trials.command import exit_code_of

DESCRIPTION = """\
Move the hand by 20 actions of --size along one axis, through a robot bridge that is not in dry run
and whose speed_scale is 1, and compare with what the arm of the training data would do: 75 mm for
0.3. No policy may run. THE ARM MOVES. Exit code 0 if the distance is within 20 %."""
STEPS, PERIOD = 20, 50_000_000
AXES = ('x', 'y', 'z')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='robot_check',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument('--axis', choices=AXES, default='y', help='of the base frame (y)')
    p.add_argument('--size', type=float, default=0.3, help='of an action, -1 to 1 (0.3)')
    p.add_argument('--scale-position', type=float, default=0.05, help='m per unit (0.05)')
    p.add_argument('--step-position', type=float, default=0.0125, help='m per step (0.0125)')
    p.add_argument('--pose', default='arm/pose', help='topic of the measured pose (arm/pose)')
    p.add_argument('--namespace', default='', help='of the bridge')
    p.add_argument('--go', action='store_true', help='really move the arm')
    p.add_argument('--patience', type=float, default=20.0, help='s to wait for the bridge (20)')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Do it once."""
    args = parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    return exit_code_of('robot_check', lambda: run(args))


def run(args: argparse.Namespace) -> int:
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
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PoseStamped
    from std_srvs.srv import SetBool
    from trajectory_msgs.msg import JointTrajectory

    from vla_prune_ros.ros import messages as m

    semantics = Semantics(scale_position=args.scale_position, step_position=args.step_position)
    action = np.zeros(7)
    action[AXES.index(args.axis)], action[6] = args.size, semantics.gripper_open
    poses: list[np.ndarray] = []
    state: dict[str, str] = {}
    rclpy.init()
    node = rclpy.create_node('robot_check', namespace=args.namespace)
    try:
        chunks = node.create_publisher(JointTrajectory, 'action_chunk', m.RELIABLE)
        info = node.create_publisher(DiagnosticArray, 'vla_policy/policy_info', m.LATCHED)
        node.create_subscription(
            PoseStamped, args.pose, lambda msg: poses.append(m.pose_from(msg)[:3]), m.SENSOR
        )
        node.create_subscription(
            DiagnosticArray, 'robot_bridge/state', lambda msg: state.update(m.values_from(msg)),
            m.LATCHED,
        )  # fmt: skip
        said = semantics.values() | {'control_rate': 1e9 / PERIOD}
        info.publish(m.values_message('robot_check', said, 0))
        enabler = node.create_client(SetBool, 'robot_bridge/set_enabled')

        def spin(seconds: float) -> None:
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                rclpy.spin_once(node, timeout_sec=left)

        def enable(value: bool) -> str:
            future = enabler.call_async(SetBool.Request(data=value))
            rclpy.spin_until_future_complete(node, future, timeout_sec=2.0)
            answer = future.result()
            return '' if answer and answer.success else answer.message if answer else 'no answer'

        deadline = time.monotonic() + args.patience
        while (reason := enable(True) if enabler.service_is_ready() else 'no robot bridge') or (
            not poses
        ):
            if time.monotonic() > deadline:
                raise RuntimeError(f'cannot begin: {reason or "no pose on " + args.pose}')
            spin(0.2)
        spin(0.5)
        start = poses[-1]
        try:
            now = node.get_clock().now().nanoseconds
            actions = np.tile(action, (STEPS, 1))
            chunks.publish(m.chunk_message(actions, now, PERIOD, semantics.signature))
            for wanted in (('running',), ('holding', 'stopped')):
                until = time.monotonic() + 5.0
                while state.get('state') not in wanted and time.monotonic() < until:
                    spin(0.02)
            spin(1.0)
        finally:
            enable(False)
            spin(0.5)
        return poses[-1] - start, state
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
