# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy on a robot: `ros2 launch vla_prune_ros policy.launch.py`, topics remapped."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vla_prune_ros.nodes.launch_arguments import MODEL, ROBOT, declarations, given
from vla_prune_ros.ros.launching import end_all, full_name
from vla_prune_ros.ros.parameters import check_file

TOPICS = {
    'agentview_image': ('agentview/image_raw', 'third-person camera, sensor_msgs/Image'),
    'wrist_image': ('wrist/image_raw', 'camera at the hand, sensor_msgs/Image'),
    'joint_states': ('joint_states', 'sensor_msgs/JointState with the finger joints'),
    'ee_pose': ('ee_pose', 'geometry_msgs/PoseStamped of the grip point in the base frame'),
    'instruction': ('instruction', 'std_msgs/String'),
    'executed_actions': ('executed_actions', 'optional, what the robot did'),
    'action_chunk': ('action_chunk', 'output, trajectory_msgs/JointTrajectory'),
}


def generate_launch_description() -> LaunchDescription:
    """Start the policy node with its topics remapped."""
    config = Path(get_package_share_directory('vla_prune_ros')) / 'config' / 'policy.yaml'
    return LaunchDescription(
        [
            DeclareLaunchArgument('namespace', default_value='', description='of the node'),
            DeclareLaunchArgument(
                'params_file', default_value=str(config), description='parameters of the node'
            ),
            *declarations(MODEL | ROBOT),
            DeclareLaunchArgument(
                'required',
                default_value='false',
                choices=['true', 'false'],
                description='true: if the node ends the launch ends, if it failed with exit code '
                '1; false: what else was launched goes on',
            ),
            *(
                DeclareLaunchArgument(name, default_value=topic, description=f'topic: {text}')
                for name, (topic, text) in TOPICS.items()
            ),
            OpaqueFunction(function=_node),
        ]
    )


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node with the arguments that were given."""
    value = context.launch_configurations
    remappings = [(topic, value[name]) for name, (topic, _) in TOPICS.items()]
    remappings += [
        (f'{topic}/compressed', f'{target}/compressed')
        for topic, target in remappings
        if topic.endswith('/image_raw')
    ]
    # launch_ros would only warn of a file that is not there, and start the robot on defaults.
    check_file(value['params_file'], full_name(context, value['namespace'], 'vla_policy'))
    return [
        Node(
            package='vla_prune_ros',
            executable='policy_node',
            name='vla_policy',
            namespace=value['namespace'],
            output='screen',
            parameters=[value['params_file'], given(context, MODEL | ROBOT)],
            remappings=remappings,
            on_exit=end_all if value['required'] == 'true' else None,
        )
    ]
