# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy on a robot: `ros2 launch vla_prune_ros policy.launch.py`, topics remapped."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

TOPICS = {
    'agentview_image': ('agentview/image_raw', 'third-person camera, sensor_msgs/Image'),
    'wrist_image': ('wrist/image_raw', 'camera at the hand, sensor_msgs/Image'),
    'joint_states': ('joint_states', 'sensor_msgs/JointState with the finger joints'),
    'ee_pose': ('ee_pose', 'geometry_msgs/PoseStamped of the grip point in the base frame'),
    'instruction': ('instruction', 'std_msgs/String'),
    'action_chunk': ('action_chunk', 'output, trajectory_msgs/JointTrajectory'),
}


def generate_launch_description() -> LaunchDescription:
    """Start the policy node with its topics remapped."""
    config = Path(get_package_share_directory('vla_prune_ros')) / 'config' / 'policy.yaml'
    arguments = [
        DeclareLaunchArgument('namespace', default_value='', description='of the node'),
        DeclareLaunchArgument(
            'params_file', default_value=str(config), description='parameters of the node'
        ),
        DeclareLaunchArgument(
            'checkpoint',
            default_value='',
            description='checkpoint directory; empty: the embedded tabletop policy',
        ),
        DeclareLaunchArgument(
            'use_sim_time',
            default_value='false',
            choices=['true', 'false'],
            description='take the time from /clock',
        ),
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value=topic, description=f'topic: {text}')
        for name, (topic, text) in TOPICS.items()
    ]
    policy = Node(
        package='vla_prune_ros',
        executable='policy_node',
        name='vla_policy',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[
            LaunchConfiguration('params_file'),
            {
                'checkpoint': ParameterValue(LaunchConfiguration('checkpoint'), value_type=str),
                'use_sim_time': ParameterValue(
                    LaunchConfiguration('use_sim_time'), value_type=bool
                ),
            },
        ],
        remappings=[(topic, LaunchConfiguration(name)) for name, (topic, _) in TOPICS.items()],
        on_exit=Shutdown(reason='the policy ended'),
    )
    return LaunchDescription([*arguments, policy])


def _typed(name: str, kind: type) -> ParameterValue:
    """A launch argument as a parameter of one type, whatever it looks like."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)
