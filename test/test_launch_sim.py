# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""sim.launch.py under launch_testing: both nodes come up, run an episode and end with code 0."""

from __future__ import annotations

import os
import time
import unittest
from pathlib import Path

import pytest

pytest.importorskip('launch_testing', reason='the ROS 2 launch system is not installed')
pytest.importorskip('launch_ros', reason='the ROS 2 launch system is not installed')
pytest.importorskip('vla_prune_ros.sim.tabletop', reason='MuJoCo is not installed')

import launch_testing
import rclpy
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from diagnostic_msgs.msg import DiagnosticArray
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription
from vla_prune_ros.ros.messages import EPISODES, values_from

try:
    SHARE = get_package_share_directory('vla_prune_ros')
except PackageNotFoundError:
    pytest.skip('vla_prune_ros is not installed by colcon', allow_module_level=True)

NAMESPACE = f'launch_test_{os.getpid()}'


@pytest.mark.launch_system
@pytest.mark.launch_test
def generate_test_description():
    """The installed launch file, in a namespace, with arguments of both nodes."""
    source = PythonLaunchDescriptionSource(str(Path(SHARE) / 'launch' / 'sim.launch.py'))
    arguments = {
        'namespace': NAMESPACE, 'pruning': 'random', 'execution': 'blend', 'episodes': '1',
        'mode': 'realtime',
    }  # fmt: skip
    included = IncludeLaunchDescription(source, launch_arguments=arguments.items())
    return LaunchDescription([included, launch_testing.actions.ReadyToTest()])


class TestEpisode(unittest.TestCase):
    def test_an_episode_ends(self):
        context = rclpy.Context()
        context.init()
        node = rclpy.create_node('watcher', context=context)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)
        seen: list[dict[str, str]] = []
        node.create_subscription(
            DiagnosticArray,
            f'/{NAMESPACE}/sim_bridge/episode',
            lambda message: seen.append(values_from(message)),
            EPISODES,
        )
        deadline = time.monotonic() + 120
        while not (seen and seen[-1]['state'] == 'done') and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.2)
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()
        self.assertTrue(seen, 'no episode began')
        self.assertIn(seen[-1]['result'], ('success', 'step_limit'))
        self.assertEqual(seen[-1]['execution'], 'blend')
        self.assertEqual(seen[-1]['mode'], 'realtime')


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    def test_both_nodes_end_with_code_zero(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
        self.assertEqual(len(list(proc_info)), 2)

    def test_no_parameter_was_misspelt(self, proc_output):
        text = ''.join(line.text.decode() for process in proc_output for line in [process])
        self.assertNotIn('no parameter', text)
