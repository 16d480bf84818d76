# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The nodes as a client of the graph sees them: a policy, a robot that asks it, a bridge."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.ros.children import slowness
from vla_prune_ros.ros.client import Client, GraphError, Received
from vla_prune_ros.ros.messages import (
    ACTION_NAMES,
    EPISODES,
    LATCHED,
    RELIABLE,
    actions_from,
    values_from,
)

START_GRACE = 5.0  # s in which a policy that is not active must begin to change
LOADING = 10.0  # times the patience: a large checkpoint from a slow disk


class Policy:
    """A policy node: whether it is there, its mode, what it says of its inferences.

    Attributes:
        info: inbox of `policy_info`.
        stats: inbox of `inference_stats`; they have the stamps of the observations.
    """

    def __init__(self, client: Client, name: str = 'vla_policy') -> None:
        self._client, self._name = client, name
        self.info = client.listen(DiagnosticArray, f'{name}/policy_info', values_from, LATCHED)
        self.stats = client.listen(DiagnosticArray, f'{name}/inference_stats', values_from)

    def wait_until_active(self) -> None:
        """Until it is active and says what it is.

        Raises:
            GraphError: it took too long; or it is neither active nor on the way there for a
                while, which is a failed start.
        """
        begun = still = time.monotonic()
        patience = LOADING * self._client.patience
        while True:
            state = self._client.call(GetState, f'{self._name}/get_state', patience=patience)
            state, now = state.current_state, time.monotonic()
            if state.id == State.PRIMARY_STATE_ACTIVE:
                break
            if state.id >= State.TRANSITION_STATE_CONFIGURING:
                still = now
            if max((now - still) / START_GRACE, (now - begun) / patience) > slowness():
                raise self._client.error(f'/{self._name} is {state.label} and not active')
            self._client.spin(0.2)
        self._client.wait(lambda: self.info.latest, f'/{self._name}/policy_info')

    def set_mode(self, mode: str, options: Mapping[str, Any] | None = None) -> None:
        """Change the pruning mode; until the node says that it is in force.

        Raises:
            GraphError: it was refused.
        """
        values = {f'pruning.{mode}.{key}': value for key, value in (options or {}).items()}
        self._client.set_parameters(self._name, {'pruning.mode': mode} | values)
        self._client.wait(
            lambda: self.info.latest and self.info.latest['mode'] == mode,
            f'policy_info of mode {mode}',
        )

    def reset(self) -> None:
        """Drop what the policy remembers.

        Raises:
            GraphError: it was refused.
        """
        answer = self._client.call(Trigger, f'{self._name}/reset')
        if not answer.success:
            raise GraphError(f'/{self._name}/reset: {answer.message}')


class Robot:
    """A robot's side of a policy: observations and instructions out, chunks in.

    Attributes:
        publishers: by topic; those of the pictures by camera.
        chunks: inbox of the action chunks, float64 [n, k] each.
    """

    def __init__(
        self,
        client: Client,
        policy: Policy,
        cameras: Sequence[str],
        qos: QoSProfile = RELIABLE,
        states: Sequence[str] = ('joint_states', 'ee_pose'),
        names: Sequence[str] = ACTION_NAMES,
    ) -> None:
        """Make publishers and inboxes.

        Args:
            client: of the graph.
            policy: that answers.
            cameras: their names.
            qos: of what is published.
            states: topics of the state that the policy takes.
            names: of the k numbers of an action.
        """
        self._client, self._policy = client, policy
        kinds = {'joint_states': JointState, 'ee_pose': PoseStamped}
        self.publishers = {
            **{c: client.publisher(Image, f'{c}/image_raw', qos) for c in cameras},
            **{name: client.publisher(kinds[name], name, qos) for name in states},
            'executed_actions': client.publisher(JointTrajectory, 'executed_actions', qos),
            'instruction': client.publisher(String, 'instruction', LATCHED),
        }
        read = partial(actions_from, names=names)
        self.chunks = client.listen(JointTrajectory, 'action_chunk', read)

    def wait_until_connected(self) -> None:
        """Until the policy is active and hears and is heard."""
        self._policy.wait_until_active()
        node = self._client.node
        self._client.wait(
            lambda: (
                all(p.get_subscription_count() for p in self.publishers.values())
                and node.count_publishers('action_chunk') > 0
            ),
            'the policy node to listen',
        )

    def instruct(self, text: str) -> None:
        """Give an instruction; until the policy says that it is in force."""
        self.publishers['instruction'].publish(String(data=text))
        self._client.wait(
            lambda: self._policy.info.latest['instruction'] == text, f'the instruction {text!r}'
        )

    def answer(self, stamp: int) -> tuple[Received, Received]:
        """The chunk of an observation and its statistics."""
        chunks, stats = self.chunks, self._policy.stats
        self._client.wait(
            lambda: chunks.at(stamp) and stats.at(stamp),
            f'the chunk and the statistics with the stamp {stamp / 1e9:.9f} s',
        )
        return chunks.at(stamp)[0], stats.at(stamp)[0]

    def forget(self) -> None:
        """Drop what came so far."""
        self.chunks.clear()
        self._policy.stats.clear()


@dataclass(frozen=True)
class Episode:
    """An episode that ended, by its last status and all reports of it that were heard.

    Whatever else carries a stamp from `first` to `last` (ns) belongs to it: time jumps between
    two episodes.
    """

    status: dict[str, str]
    reports: tuple[Received, ...]
    first: int
    last: int


class Bridge:
    """A `sim_bridge` that runs the episodes it is asked for."""

    def __init__(self, client: Client, name: str = 'sim_bridge') -> None:
        self._client, self._name = client, name
        self._reset = f'{name}/reset_episode'
        self._end = 0  # of the last episode, ns
        self._reports = client.listen(DiagnosticArray, f'{name}/episode', values_from, EPISODES)

    def wait_until_there(self) -> None:
        """Until it can be asked for episodes."""
        self._client.wait_for_service(Trigger, self._reset)

    def run_episode(self, **parameters: Any) -> Episode:
        """Set parameters (a dot is written as two underscores), run one episode.

        Raises:
            GraphError: a parameter was refused, or nothing more was heard of the episode.
        """
        values = {name.replace('__', '.'): value for name, value in parameters.items()}
        self._client.set_parameters(self._name, values)
        self._reports.clear()
        answer = self._client.call(Trigger, self._reset)
        number, *_ = *re.findall(r'\d+', answer.message), ''
        if not answer.success or not number:
            raise GraphError(f'/{self._name} starts no episode: {answer.message}')

        def reports() -> list[Received]:
            return [r for r in self._reports if r.value['episode'] == number]

        done = self._client.wait(
            lambda: next((r for r in reports() if r.value['state'] == 'done'), None),
            f'the end of the episode with {values}',
            progress=lambda: len(reports()),
        )
        heard, first = tuple(reports()), self._end + 1
        self._end, steps = done.stamp, int(done.value['step'])
        for report in heard:  # the first one may be lost, so it is reckoned from any
            if left := steps - int(report.value['step']):
                first = done.stamp - steps * ((done.stamp - report.stamp) // left)
                break
        return Episode(done.value, heard, first, done.stamp)
