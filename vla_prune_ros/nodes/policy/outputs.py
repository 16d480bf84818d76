# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the policy node publishes for every chunk, and what it says about itself."""

from __future__ import annotations

import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.nodes.policy.inference import Answer, period_of
from vla_prune_ros.nodes.policy.parameters import PolicyConfig
from vla_prune_ros.ros.delivery import wait_acknowledged
from vla_prune_ros.ros.messages import (
    LATCHED,
    NO_EVENTS,
    PROMPT,
    chunk_message,
    values_message,
)

ACKNOWLEDGED = 1.0  # s in which readers have what is said, if they are there at all
MEANING_OF_STATE = {
    'pose_fingers': 'position (m), axis-angle (rad), two fingers (m)',
    'joints': 'positions of state.joints',
    'none': 'none',
}


class Outputs:
    """Publishers of chunks, of their statistics and of the latched description."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self.hardware = ''
        self._last: JointTrajectory | None = None
        self._heard = True  # whether the readers have all that was published
        self._chunks = node.create_lifecycle_publisher(
            JointTrajectory, 'action_chunk', PROMPT, event_callbacks=NO_EVENTS
        )
        self.topic = self._chunks.topic_name
        self._stats = node.create_publisher(
            DiagnosticArray, '~/inference_stats', PROMPT, event_callbacks=NO_EVENTS
        )
        self._info = node.create_publisher(
            DiagnosticArray, '~/policy_info', LATCHED, event_callbacks=NO_EVENTS
        )
        self._publishers = (self._chunks, self._stats, self._info)

    def chunk(self, answer: Answer, config: PolicyConfig) -> float:
        """Publish a chunk; returns the ms that it took."""
        started = time.perf_counter()
        stamp = answer.tick.observation.stamp
        self._last = chunk_message(
            answer.actions, stamp, period_of(config), config.action.signature,
            config.action.names,
        )  # fmt: skip
        self._deliver()
        self._chunks.publish(self._last)
        return (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """What was said last is heard."""
        wait_acknowledged(self._publishers, ACKNOWLEDGED)

    def _deliver(self) -> None:
        """In simulated time nothing more is sent before all who listen have what was sent.

        Somebody who has died is waited for once.
        """
        simulated = self._node.get_parameter('use_sim_time').value
        patience = ACKNOWLEDGED if simulated and self._heard else 0.0
        self._heard = wait_acknowledged(self._publishers, patience)

    def repeat(self) -> None:
        """Publish the last chunk again: the answer was lost."""
        if self._last is not None:
            self._chunks.publish(self._last)

    def statistics(self, answer: Answer, stages: dict[str, float], counts: dict[str, int]) -> None:
        """Publish what is known about an inference, with the stamp of its chunk.

        Args:
            answer: what was published.
            stages: ms that the node spent on it, by stage, without the policy's own.
            counts: what came to nothing so far, by cause.
        """
        chunk = answer.chunk
        values = {
            'sequence': chunk.sequence,
            'mode': chunk.mode,
            'tokens_kept': len(chunk.kept),
            'tokens_total': chunk.n_visual,
            'rows': round(chunk.rows, 3),
            'budget': chunk.stats.get('budget', 0.0),
            'reset_reason': chunk.reset_reason or '',
            'requery': answer.requery,
            'clipped': answer.clipped,
            **{f'{stage}_ms': round(ms, 4) for stage, ms in chunk.timing.items()},
            **{f'node.{stage}_ms': round(ms, 4) for stage, ms in stages.items()},
            'node_ms': round((time.perf_counter() - answer.offered) * 1e3, 4),
            **{f'{chunk.mode}.{name}': value for name, value in chunk.stats.items()},
            **answer.budget,
            **counts,
            'between': ' '.join(str(frame.stamp) for frame in answer.tick.between),
            'executed': ' '.join(map(str, answer.tick.reports)),
            'kept': chunk.kept.tolist(),
        }
        self._stats.publish(
            values_message(
                f'{self._node.get_name()}: inference', values, answer.tick.observation.stamp,
                summary=chunk.mode, hardware_id=self.hardware,
            )
        )  # fmt: skip

    def info(
        self, policy: Any, instruction: str, config: PolicyConfig, more: dict[str, Any]
    ) -> None:
        """Publish what is running and what its numbers mean, and what else is to be said."""
        info = policy.info()
        options = info.pop('options')
        values = info | {f'pruning.{info["mode"]}.{k}': v for k, v in options.items()}
        if config.action.joints:
            values |= {'dimension_names': config.action.names, 'units': config.action.units}
        values |= {
            'instruction': instruction,
            'proprio': MEANING_OF_STATE[config.state.kind],
            **said_of_joints(config),
            **config.action.values(),
            'control_rate': config.control_rate,
            'hardware': self.hardware,
            **more,
        }
        self._deliver()
        self._info.publish(
            values_message(
                f'{self._node.get_name()}: policy', values,
                self._node.get_clock().now().nanoseconds,
                summary=info['mode'], hardware_id=self.hardware,
            )
        )  # fmt: skip


def said_of_joints(config: PolicyConfig) -> dict[str, Any]:
    """What a replay must know of the state and the grippers, as parameters of the node."""
    ends = ('state_closed', 'state_open', 'action_closed', 'action_open')
    return {
        'variant': config.variant,
        'state.kind': config.state.kind,
        'state.joints': ','.join(config.state.joints.names),
        'gripper.joints': ','.join(config.state.joints.grippers),
        **{f'gripper.{end}': getattr(config, f'gripper_{end}') for end in ends},
    }
