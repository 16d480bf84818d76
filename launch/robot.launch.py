# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy and the robot bridge: `ros2 launch vla_prune_ros robot.launch.py robot:=NAME`."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vla_prune_ros.nodes.launch_arguments import ARM, ARM_POLICY, MODEL, declarations, given
from vla_prune_ros.ros.launching import end_all, full_name
from vla_prune_ros.ros.parameters import check_file

TOPICS = {
    'agentview_image': ('agentview/image_raw', 'third-person camera, sensor_msgs/Image'),
    'wrist_image': ('wrist/image_raw', 'camera at the hand, sensor_msgs/Image'),
}
# What the bridge publishes for the policy, as in config/robots: the robot's own names are taken.
STATE = [('ee_pose', 'vla/ee_pose'), ('joint_states', 'vla/joint_states')]
DRIVER = [('ee_pose', 'arm/pose'), ('joint_states', 'arm/joint_states')]


def generate_launch_description() -> LaunchDescription:
    """Start policy and bridge, and a simulated arm if asked for; the end of one ends all."""
    arguments = [
        DeclareLaunchArgument('namespace', default_value='', description='of all nodes'),
        DeclareLaunchArgument(
            'robot',
            default_value='tabletop_pose',
            description='name of a file in config/robots, or a path of your own',
        ),
        DeclareLaunchArgument(
            'simulated',
            default_value='false',
            choices=['true', 'false'],
            description='start the simulated arm too; robot tabletop_pose or tabletop_twist',
        ),
        *declarations(MODEL | ARM_POLICY | ARM),
        *(
            DeclareLaunchArgument(name, default_value=topic, description=f'topic: {text}')
            for name, (topic, text) in TOPICS.items()
        ),
        DeclareLaunchArgument(
            'images',
            default_value='',
            description='topics of cameras of other names: NAME=TOPIC, with commas between them',
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The nodes with the arguments that were given."""
    value = context.launch_configurations
    file = Path(value['robot'])
    if not file.suffix:
        folder = Path(get_package_share_directory('vla_prune_ros')) / 'config' / 'robots'
        file = folder / f'{file}.yaml'
        if not file.exists():
            names = ', '.join(sorted(path.stem for path in folder.glob('*.yaml')))
            raise RuntimeError(f'argument robot: no {file.stem!r}; there are {names}')
    simulated = value['simulated'] == 'true'
    nodes = ('vla_policy', 'robot_bridge', *(('sim_bridge',) if simulated else ()))
    # launch_ros would only warn of a file that is not there, and start the robot on defaults.
    check_file(str(file), *(full_name(context, value['namespace'], node) for node in nodes))
    common = {'namespace': value['namespace'], 'output': 'screen'}
    cameras = [(topic, value[name]) for name, (topic, _) in TOPICS.items()]
    for pair in filter(None, value['images'].split(',')):
        name, sign, topic = (part.strip() for part in pair.partition('='))
        if not (name and sign and topic):
            raise RuntimeError(f'argument images: {pair!r} is not NAME=TOPIC')
        cameras.append((f'{name}/image_raw', topic))
    policy = Node(
        package='vla_prune_ros',
        executable='policy_node',
        name='vla_policy',
        parameters=[str(file), given(context, MODEL | ARM_POLICY)],
        remappings=[*cameras, *STATE],
        on_exit=end_all,
        **common,
    )
    bridge = Node(
        package='vla_prune_ros',
        executable='robot_bridge',
        name='robot_bridge',
        parameters=[str(file), given(context, ARM)],
        on_exit=end_all,
        **common,
    )
    simulation = Node(
        package='vla_prune_ros',
        executable='sim_bridge',
        name='sim_bridge',
        parameters=[str(file)],
        remappings=DRIVER,
        on_exit=end_all,
        **common,
    )
    return [policy, bridge, *([simulation] if simulated else [])]
