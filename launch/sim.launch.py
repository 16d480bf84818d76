# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy and a simulated robot: `ros2 launch vla_prune_ros sim.launch.py`."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vla_prune_ros.execution.playing import EXECUTION_MODES
from vla_prune_ros.ros.launching import end_all, full_name
from vla_prune_ros.ros.parameters import check_file
from vla_prune_ros.sim import BACKENDS

PRUNING = (
    'none', 'specprune', 'lightvla', 'vla_cache', 'efficient_vla', 'fastv', 'random', 'grid',
)  # fmt: skip
# Launch argument -> parameter and its type. An empty argument leaves the parameter as the file of
# parameters, or else the node, has it.
POLICY = {
    'checkpoint': ('checkpoint', str),
    'device': ('device', str),
    'pruning': ('pruning.mode', str),
}
BRIDGE = {
    'backend': ('backend', str),
    'suite': ('suite', str),
    'assets': ('assets', str),
    'task': ('task', str),
    'initial_state': ('initial_state', int),
    'episodes': ('episodes', int),
    'mode': ('mode', str),
    'execution': ('execution.mode', str),
    'latency': ('latency', float),
}
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
            DeclareLaunchArgument(
                'checkpoint',
                default_value='',
                description='checkpoint directory; empty: the embedded tabletop policy',
            ),
            DeclareLaunchArgument(
                'device',
                default_value='',
                description='torch device; empty: a GPU if there is one',
            ),
            DeclareLaunchArgument(
                'pruning',
                default_value='',
                choices=['', *PRUNING],
                description='visual-token pruning; empty: as in params_file',
            ),
            DeclareLaunchArgument(
                'backend',
                default_value='',
                choices=['', *BACKENDS],
                description='simulated robot; empty: tabletop',
            ),
            DeclareLaunchArgument(
                'suite',
                default_value='',
                description='task suite, such as libero_spatial; empty: the first of the backend',
            ),
            DeclareLaunchArgument(
                'assets',
                default_value='',
                description='libero: directory of its assets, or placeholder; empty: its own',
            ),
            DeclareLaunchArgument(
                'task',
                default_value='',
                description='name or number of the first task; empty: the first of the suite',
            ),
            DeclareLaunchArgument(
                'initial_state', default_value='', description='first initial state; empty: 0'
            ),
            DeclareLaunchArgument(
                'episodes',
                default_value='',
                description='episodes to run, -1: without end; empty: as in params_file',
            ),
            DeclareLaunchArgument(
                'mode',
                default_value='',
                choices=['', 'lockstep', 'realtime'],
                description='lockstep: time waits for the policy; realtime: it does not; '
                'empty: as in params_file',
            ),
            DeclareLaunchArgument(
                'execution',
                default_value='',
                choices=['', *EXECUTION_MODES],
                description='how chunks are played; empty: open_loop',
            ),
            DeclareLaunchArgument(
                'latency',
                default_value='',
                description='artificial latency of every chunk (s); empty: none',
            ),
            DeclareLaunchArgument(
                'record', default_value='', description='folder of a bag to record; empty: no bag'
            ),
            OpaqueFunction(function=_processes),
        ]
    )


def _processes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The nodes with the arguments that were given."""
    namespace = LaunchConfiguration('namespace').perform(context).strip('/')
    remappings = [('/clock', 'clock'), ('/tf', 'tf')] if namespace else []
    names = (full_name(context, namespace, node) for node in ('vla_policy', 'sim_bridge'))
    params_file = LaunchConfiguration('params_file').perform(context)
    check_file(params_file, *names)  # launch_ros would only warn of one that is not there
    # The file can only name the topics of the root namespace.
    reliable = {
        f'qos_overrides./{namespace}/{camera}/image_raw.subscription.reliability': 'reliable'
        for camera in CAMERAS
        if namespace
    }
    policy = Node(
        package='vla_prune_ros',
        executable='policy_node',
        name='vla_policy',
        namespace=namespace,
        output='screen',
        parameters=[params_file, reliable | _given(context, POLICY)],
        remappings=remappings,
        on_exit=end_all,
    )
    bridge = Node(
        package='vla_prune_ros',
        executable='sim_bridge',
        name='sim_bridge',
        namespace=namespace,
        output='screen',
        parameters=[params_file, _given(context, BRIDGE)],
        remappings=remappings,
        on_exit=end_all,
    )
    folder = LaunchConfiguration('record').perform(context)
    if not folder:
        return [policy, bridge]
    recorder = Node(
        package='vla_prune_ros',
        executable='record',
        namespace=namespace,
        output='screen',
        arguments=['--out', folder],
        remappings=remappings,
        on_exit=lambda event, context: end_all(event, context) if event.returncode else None,
    )
    return [recorder, policy, bridge]


def _given(context: LaunchContext, table: dict[str, tuple[str, type]]) -> dict:
    """Parameters by the arguments of `table` that are not empty."""
    given = {}
    for name, (parameter, kind) in table.items():
        text = LaunchConfiguration(name).perform(context)
        try:
            given |= {parameter: kind(text)} if text else {}
        except ValueError:
            raise RuntimeError(f'argument {name}: {text!r} is not {kind.__name__}') from None
    return given
