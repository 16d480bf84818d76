# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy and a simulated robot: `ros2 launch vla_prune_ros sim.launch.py`."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    """Start both nodes; either one ending ends the other."""
    config = Path(get_package_share_directory('vla_prune_ros')) / 'config' / 'sim.yaml'
    arguments = [
        DeclareLaunchArgument('namespace', default_value='', description='of both nodes'),
        DeclareLaunchArgument(
            'params_file', default_value=str(config), description='parameters of both nodes'
        ),
        DeclareLaunchArgument(
            'checkpoint',
            default_value='',
            description='checkpoint directory; empty: the embedded tabletop policy',
        ),
        DeclareLaunchArgument(
            'backend',
            default_value='tabletop',
            choices=['tabletop'],
            description='simulated robot',
        ),
        DeclareLaunchArgument(
            'mode',
            default_value='lockstep',
            choices=['lockstep', 'realtime'],
            description='lockstep: time waits for the policy; realtime: it does not',
        ),
        DeclareLaunchArgument(
            'task', default_value='', description='first task; empty: the first of the suite'
        ),
        DeclareLaunchArgument(
            'episodes', default_value='-1', description='episodes to run; -1: without end'
        ),
    ]
    namespace = LaunchConfiguration('namespace')
    parameters = LaunchConfiguration('params_file')
    policy = Node(
        package='vla_prune_ros',
        executable='policy_node',
        name='vla_policy',
        namespace=namespace,
        output='screen',
        parameters=[parameters, {'checkpoint': _typed('checkpoint', str)}],
        on_exit=Shutdown(reason='the policy ended'),
    )
    bridge = Node(
        package='vla_prune_ros',
        executable='sim_bridge',
        name='sim_bridge',
        namespace=namespace,
        output='screen',
        parameters=[
            parameters,
            {
                'backend': _typed('backend', str),
                'mode': _typed('mode', str),
                'task': _typed('task', str),
                'episodes': _typed('episodes', int),
            },
        ],
        on_exit=Shutdown(reason='the simulation ended'),
    )
    return LaunchDescription([*arguments, policy, bridge])


def _typed(name: str, kind: type) -> ParameterValue:
    """A launch argument as a parameter of one type, whatever it looks like."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)
