# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the launch files share, so that a failure is not hidden behind an exit code of 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.events.process import ProcessExited

    from launch import LaunchContext, LaunchDescriptionEntity


def full_name(context: LaunchContext, namespace: str, node: str) -> str:
    """A node's name with its namespace, those of the launch files around it included."""
    words = (context.launch_configurations.get('ros_namespace', ''), namespace, node)
    return '/' + '/'.join(word.strip('/') for word in words if word.strip('/'))


def end_all(event: ProcessExited, context: LaunchContext) -> LaunchDescriptionEntity | None:
    """`on_exit` of a process without which the rest is of no use.

    Raises:
        RuntimeError: it failed. It ends the launch, as a Shutdown does, but with exit code 1.
    """
    from launch.actions import Shutdown

    if not context.is_shutdown and event.returncode:
        raise RuntimeError(f'{event.process_name} ended with exit code {event.returncode}')
    return Shutdown(reason=f'{event.process_name} ended')
