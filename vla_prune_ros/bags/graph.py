# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tier T2 of a replay: the real policy node over DDS, one observation at a time.

The player publishes the messages of one observation, asks for its chunk with an executed-actions
message, waits for the chunk and the statistics with that stamp, and only then goes on: nothing is
dropped, nothing overtakes. Messages of one observation get its stamp, so that the node matches
exactly what was matched when the bag was read. Modes change by parameter, resets by service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from trajectory_msgs.msg import JointTrajectory

from vla_prune_ros.bags.feed import values_of
from vla_prune_ros.bags.offline import Schedule, Setup, inputs_digest
from vla_prune_ros.bags.streams import STATES
from vla_prune_ros.bags.tracks import Track, output_of
from vla_prune_ros.nodes.policy.assembler import MatchedSet
from vla_prune_ros.nodes.policy.trigger import Tick
from vla_prune_ros.ros import children
from vla_prune_ros.ros.children import Children
from vla_prune_ros.ros.client import Client, GraphError
from vla_prune_ros.ros.delivery import acknowledged
from vla_prune_ros.ros.messages import (
    ACTION_NAMES,
    PROMPT,
    executed_message,
    image_message,
    to_time,
)
from vla_prune_ros.ros.peers import Policy, Robot


def isolate(domain_id: int | None) -> None:
    """Keep to this machine, and to the ROS domain that is given or of the environment."""
    children.isolate(domain_id, inherit=True)


def parameters(setup: Setup) -> list[str]:
    """Of a policy node that answers whatever and whenever it is asked."""
    values = setup.parameters | {
        'trigger': 'request',
        'queue': 'fifo',
        'sync.slop': 0.0,
        'sync.state_slop': 0.0,
        'max_observation_age': 0.0,
        'inference_timeout': 0.0,
        'stream_timeout': 3600.0,
        'input_reliability': 'reliable',
        'use_sim_time': 'false',
    }
    lists = {name: f'[{", ".join(v)}]' for name, v in values.items() if isinstance(v, tuple)}
    return [f'{name}:={value}' for name, value in (values | lists).items() if value != '']


class Player:
    """The lockstep player, with a policy node of its own. Use it as a context manager."""

    def __init__(self, setup: Setup, logs: Path, patience: float = 60.0) -> None:
        """Describe the node.

        Args:
            setup: of the policy.
            logs: folder for the node's output.
            patience: seconds of wall clock to wait for anything.
        """
        self._setup = setup
        self._children = Children(logs)
        self._client = Client('replay', self._children, patience)
        self.exit_code: int | None = None

    def __enter__(self) -> Player:
        with ExitStack() as stack:
            stack.callback(self._stop)
            self._children.start_node('policy_node', parameters(self._setup))
            stack.enter_context(self._client)
            self._policy = Policy(self._client)
            config = self._setup.config
            self._robot = Robot(
                self._client, self._policy, config.cameras, PROMPT,
                config.state.streams, config.action.names,
            )  # fmt: skip
            self._robot.wait_until_connected()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _stop(self) -> None:
        self.exit_code = self._children.stop().get('policy_node')

    # -- playing -------------------------------------------------------------------------------
    def play(
        self,
        ticks: Any,
        schedule: Schedule,
        name: str,
        progress: Callable[[], None] = lambda: None,
    ) -> Track:
        """Play ticks from a clean reset.

        Raises:
            GraphError: no chunk came, or the node refused something.
        """
        self._policy.set_mode('none')
        self._policy.reset()
        self._instruction = None
        outputs, moments = [], []
        for index, tick in enumerate(ticks):
            moment = schedule.at(index, tick.observation.stamp)
            if moment.reset:
                self._policy.reset()
            self._policy.set_mode(moment.mode, moment.options)
            outputs.append(self._ask(tick))
            moments.append(moment)
            progress()
        return Track(name, tuple(outputs), tuple(moments), dict(self._policy.info.latest))

    def _ask(self, tick: Tick) -> Any:
        stamp, robot, stats = tick.observation.stamp, self._robot, self._policy.stats
        robot.forget()
        if tick.instruction != self._instruction:
            robot.instruct(tick.instruction)
            self._instruction = tick.instruction
        for frame in (*tick.between, tick.observation):
            self._publish(frame)
            self._client.wait(
                lambda: acknowledged(robot.publishers.values()), 'the policy node to take a frame'
            )
        names = self._setup.config.action.names
        asked = request(values_of(tick), self._setup.period, names)
        robot.publishers['executed_actions'].publish(asked)
        chunk, said = robot.answer(stamp)
        others = sorted({m.stamp for inbox in (robot.chunks, stats) for m in inbox} - {stamp})
        if others or len(robot.chunks.at(stamp)) > 1 or len(stats.at(stamp)) > 1:
            raise GraphError(f'more than one chunk for one observation; stamps {others or stamp}')
        output = output_of(stamp, chunk.value, said.value)
        return replace(output, inputs=inputs_digest(values_of(tick)))

    def _publish(self, frame: MatchedSet) -> None:
        for name, sample in frame.samples.items():
            if name in STATES:
                message = sample.message
                message.header.stamp = to_time(frame.stamp)
            else:
                message = image_message(sample.value, frame.stamp, name)
            self._robot.publishers[name].publish(message)


def request(tick: Tick, period: int, names: Sequence[str] = ACTION_NAMES) -> JointTrajectory:
    """An executed-actions message with all that was executed before a tick."""
    done = sorted(
        (end, k, action)
        for k, e in enumerate(tick.executed)
        for end, action in zip(e.ends, e.actions.tolist(), strict=True)
    )
    stamp = tick.observation.stamp
    actions = np.reshape([a for *_, a in done], (-1, len(names)))
    message = executed_message(actions, stamp, period, names)
    ends = [end for end, *_ in done]
    if ends and all(b > a for a, b in pairwise(ends)):
        starts = [min(ends[0], stamp) - period, *ends[:-1]]
        for point, start in zip(message.points, starts, strict=True):
            seconds, rest = divmod(start - stamp, 1_000_000_000)
            point.time_from_start.sec, point.time_from_start.nanosec = seconds, rest
    return message
