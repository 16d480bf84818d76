# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy and the robot bridge: `ros2 launch vla_prune_ros robot.launch.py robot:=NAME`."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PRUNING = (
    'none', 'specprune', 'lightvla', 'vla_cache', 'efficient_vla', 'fastv', 'random', 'grid',
)  # fmt: skip
# Launch argument -> parameter and its type. An empty argument leaves the parameter as the robot's
# file, or else the node, has it.
POLICY = {
    'checkpoint': ('checkpoint', str),
    'device': ('device', str),
    'pruning': ('pruning.mode', str),
    'instruction_text': ('default_instruction', str),
}
ROBOT = {
    'dry_run': ('dry_run', bool),
    'speed_scale': ('speed_scale', float),
}
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
        DeclareLaunchArgument(
            'checkpoint',
            default_value='',
            description='checkpoint directory; empty: the embedded tabletop policy',
        ),
        DeclareLaunchArgument(
            'device', default_value='', description='torch device; empty: a GPU if there is one'
        ),
        DeclareLaunchArgument(
            'pruning',
            default_value='',
            choices=['', *PRUNING],
            description='visual-token pruning; empty: none',
        ),
        DeclareLaunchArgument(
            'instruction_text',
            default_value='',
            description='instruction in force until one arrives',
        ),
        DeclareLaunchArgument(
            'dry_run',
            default_value='',
            choices=['', 'true', 'false'],
            description='do all but command the arm; empty: true',
        ),
        DeclareLaunchArgument(
            'speed_scale', default_value='', description='factor of every motion; empty: 0.1'
        ),
        *(
            DeclareLaunchArgument(name, default_value=topic, description=f'topic: {text}')
            for name, (topic, text) in TOPICS.items()
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The nodes with the arguments that were given."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    file = Path(value('robot'))
    if not file.suffix:
        folder = Path(get_package_share_directory('vla_prune_ros')) / 'config' / 'robots'
        file = folder / f'{file}.yaml'
        if not file.exists():
            names = ', '.join(sorted(path.stem for path in folder.glob('*.yaml')))
            raise RuntimeError(f'argument robot: no {file.stem!r}; there are {names}')
    common = {'namespace': value('namespace'), 'output': 'screen'}
    cameras = [(topic, value(name)) for name, (topic, _) in TOPICS.items()]
    policy = Node(
        package='vla_prune_ros',
        executable='policy_node',
        name='vla_policy',
        parameters=[str(file), _given(value, POLICY)],
        remappings=[*cameras, *STATE],
        on_exit=Shutdown(reason='the policy ended'),
        **common,
    )
    bridge = Node(
        package='vla_prune_ros',
        executable='robot_bridge',
        name='robot_bridge',
        parameters=[str(file), _given(value, ROBOT)],
        on_exit=Shutdown(reason='the robot bridge ended'),
        **common,
    )
    simulation = Node(
        package='vla_prune_ros',
        executable='sim_bridge',
        name='sim_bridge',
        parameters=[str(file)],
        remappings=DRIVER,
        on_exit=Shutdown(reason='the simulated arm ended'),
        **common,
    )
    return [policy, bridge, *([simulation] if value('simulated') == 'true' else [])]


def _given(value, table: dict[str, tuple[str, type]]) -> dict:
    """Parameters by the arguments of `table` that are not empty."""
    given = {}
    for name, (parameter, kind) in table.items():
        text = value(name)
        try:
            found = text == 'true' if kind is bool else kind(text) if text else None
        except ValueError:
            raise RuntimeError(f'argument {name}: {text!r} is not {kind.__name__}') from None
        given |= {parameter: found} if text else {}
    return given
