# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy and a simulated robot: `ros2 launch vla_prune_ros sim.launch.py`."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vla_prune_ros.nodes.launch_arguments import MODEL, SIMULATION, declarations, given
from vla_prune_ros.ros.launching import end_all, full_name
from vla_prune_ros.ros.parameters import check_file

CAMERAS = ('agentview', 'wrist')


def generate_launch_description() -> LaunchDescription:
    """Start both nodes, and a recorder if asked for; either node ending ends everything."""
    config = Path(get_package_share_directory('vla_prune_ros')) / 'config' / 'sim.yaml'
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'namespace',
                default_value='',
                description='of both nodes; clock and tf move into it too, so that several '
                'simulations can run side by side',
            ),
            DeclareLaunchArgument(
                'params_file', default_value=str(config), description='parameters of both nodes'
            ),
            *declarations(MODEL | SIMULATION),
            DeclareLaunchArgument(
                'record', default_value='', description='folder of a bag to record; empty: no bag'
            ),
            OpaqueFunction(function=_processes),
        ]
    )


def _processes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The nodes with the arguments that were given."""
    value = context.launch_configurations
    namespace = value['namespace'].strip('/')
    remappings = [('/clock', 'clock'), ('/tf', 'tf')] if namespace else []
    names = (full_name(context, namespace, node) for node in ('vla_policy', 'sim_bridge'))
    params_file = value['params_file']
    check_file(params_file, *names)  # launch_ros would only warn of one that is not there
    # The file can only name the topics of the root namespace.
    reliable = {
        f'qos_overrides./{namespace}/{camera}/image_raw.subscription.reliability': 'reliable'
        for camera in CAMERAS
        if namespace
    }
    folder = value['record']
    recorded = {'recorder': 'recorder'} if folder else {}  # who must hear everything
    policy = Node(
        package='vla_prune_ros',
        executable='policy_node',
        name='vla_policy',
        namespace=namespace,
        output='screen',
        parameters=[params_file, reliable | given(context, MODEL)],
        remappings=remappings,
        on_exit=end_all,
    )
    bridge = Node(
        package='vla_prune_ros',
        executable='sim_bridge',
        name='sim_bridge',
        namespace=namespace,
        output='screen',
        parameters=[params_file, given(context, SIMULATION) | recorded],
        remappings=remappings,
        on_exit=end_all,
    )
    recorder = Node(
        package='vla_prune_ros',
        executable='record',
        namespace=namespace,
        output='screen',
        arguments=['--complete', '--out', folder],
        remappings=remappings,
        on_exit=lambda event, context: end_all(event, context) if event.returncode else None,
    )
    return [recorder, policy, bridge] if folder else [policy, bridge]
