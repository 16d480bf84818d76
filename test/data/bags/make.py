# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Make the golden bags: python test/data/bags/make.py. What is there is replaced.

One bag per family of tasks. The embedded policy drives the simulated robot while mode, instruction
and history change on schedule; everything that would be on the topics goes into the bag as the
nodes would publish it. Then `replay --update-golden` adds the values of every mode.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.bags.offline import Setup, answer, describe, load
from vla_prune_ros.bags.replay import main as replay
from vla_prune_ros.bags.streams import type_name
from vla_prune_ros.bags.tracks import stats_of
from vla_prune_ros.bags.writer import BagWriter, qos
from vla_prune_ros.execution.executed import Executed
from vla_prune_ros.nodes.policy.assembler import MatchedSet
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.ros import messages as m
from vla_prune_ros.sim import SimObservation, make_robot, to_env_action

HERE = Path(__file__).parent
PERIOD = 50_000_000  # ns
RECEIVED = 1_750_000_000 * m.NANOSECONDS  # when the first message came
START = 10 * m.NANOSECONDS  # first stamp
TYPES = {
    '/clock': Clock,
    '/joint_states': JointState,
    '/ee_pose': PoseStamped,
    '/agentview/image_raw': Image,
    '/wrist/image_raw': Image,
    '/instruction': String,
    '/executed_actions': JointTrajectory,
    '/action_chunk': JointTrajectory,
    '/vla_policy/inference_stats': DiagnosticArray,
    '/vla_policy/policy_info': DiagnosticArray,
}
LATCHED = ('/instruction', '/vla_policy/policy_info')


@dataclass(frozen=True)
class Script:
    """What happens in a bag: by tick, from 0."""

    task: str
    state: int
    ticks: int
    modes: dict[int, str]
    instructions: dict[int, str]
    resets: tuple[int, ...]
    every_step: bool  # frames between two ticks, too


SCRIPTS = {
    'pick_up': Script(
        'pick_up_red', 3, 9,
        modes={0: 'none', 2: 'specprune', 5: 'vla_cache', 7: 'none'},
        instructions={3: 'pick up the green block'},
        resets=(6,),
        every_step=True,
    ),
    'put_on_plate': Script(
        'put_blue_on_plate', 5, 12,
        modes={0: 'vla_cache', 3: 'efficient_vla', 5: 'fastv', 7: 'random', 9: 'specprune'},
        instructions={6: 'put the yellow block on the plate'},
        resets=(2, 10),
        every_step=False,
    ),
}  # fmt: skip


class Maker:
    """Drives the robot and writes the bag."""

    def __init__(self, robot: Any, policy: Any, setup: Setup, writer: BagWriter) -> None:
        self.robot, self.policy, self.setup, self.writer = robot, policy, setup, writer
        self.stamp, self.received = START, RECEIVED
        for topic, kind in TYPES.items():
            writer.add_topic(topic, type_name(kind), qos(latched=topic in LATCHED, depth=5))

    def put(self, topic: str, message: Any) -> None:
        """Write one message, a little later than the last."""
        self.received += 100_000
        self.writer.write(topic, self.received, serialize_message(message))

    def observe(self, observation: SimObservation) -> MatchedSet:
        """Publish what the robot senses; the same as the policy gets it."""
        o, stamp = observation, self.stamp
        joints = m.joint_message(
            self.robot.joint_names, [*o.joint_positions, *o.finger_positions], stamp
        )
        pose = m.pose_message(o.ee_position, o.ee_quaternion, stamp, 'world')
        self.put('/joint_states', joints)
        self.put('/ee_pose', pose)
        for name, pixels in o.images.items():
            self.put(f'/{name}/image_raw', m.image_message(pixels, stamp, name))
        fingers = m.joints_from(joints, self.robot.joint_names[-2:])
        samples = {**o.images, 'ee_pose': m.pose_from(pose), 'joint_states': fingers}
        return MatchedSet(stamp, samples)

    def step(self, action: np.ndarray) -> SimObservation:
        """One control step."""
        observation = self.robot.step(to_env_action(action))
        self.stamp += PERIOD
        self.received = RECEIVED + self.stamp - START
        self.put('/clock', Clock(clock=m.to_time(self.stamp)))
        return observation

    def info(self, instruction: str) -> None:
        """Publish what is in force."""
        settings = self.policy.settings
        values = describe(self.policy) | {'mode': settings.mode, 'instruction': instruction}
        values |= {f'pruning.{settings.mode}.{k}': v for k, v in settings.options.items()}
        self.put(
            '/vla_policy/policy_info', m.values_message('vla_policy: policy', values, self.stamp)
        )

    def run(self, script: Script) -> None:
        """The whole script."""
        policy = self.policy
        policy.set_pruning('none')
        policy.reset('start')
        task = next(t for t in self.robot.tasks if t.name == script.task)
        instruction, executed, between = task.instruction, np.zeros((0, 7)), ()
        observation = self.robot.reset(task.name, script.state)
        self.put('/clock', Clock(clock=m.to_time(self.stamp)))
        self.put('/instruction', String(data=instruction))
        for tick in range(script.ticks):
            if tick in script.instructions:
                instruction = script.instructions[tick]
                self.put('/instruction', String(data=instruction))
            if tick in script.modes:
                policy.set_pruning(script.modes[tick])
            if tick in script.resets:
                policy.reset('reset')
            if tick in script.modes or tick in script.instructions:
                self.info(instruction)
            request = m.executed_message(executed, self.stamp, PERIOD)
            self.put('/executed_actions', request)
            seen = self.observe(observation)
            done: tuple[Executed, ...] = (m.executed_from(request),) if len(executed) else ()
            output = answer(policy, Tick(seen, done, between, instruction), self.setup)
            self.put('/action_chunk', m.chunk_message(output.actions, output.stamp, PERIOD))
            stats = m.values_message('vla_policy: inference', stats_of(output, tick), output.stamp)
            self.put('/vla_policy/inference_stats', stats)
            executed, between = output.actions, ()
            for k, action in enumerate(output.actions):
                observation = self.step(action)
                if script.every_step and k + 1 < len(output.actions):
                    between += (self.observe(observation),)


def main() -> int:
    """Make all bags; the exit code."""
    setup = Setup('')
    policy = load(setup)
    robot = make_robot('tabletop')
    for name, script in SCRIPTS.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        with BagWriter(folder) as writer:
            Maker(robot, policy, setup, writer).run(script)
    robot.close()
    codes = []
    with TemporaryDirectory() as scratch:
        for name in SCRIPTS:
            arguments = ['--update-golden', '--tiers', 'T1', '--out', f'{scratch}/{name}']
            codes.append(replay([str(HERE / name), *arguments]))
    return max(codes)


if __name__ == '__main__':
    sys.exit(main())
