# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS side of the demo: one episode, with its inferences and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import Image

from vla_prune_ros.ros.children import slowness
from vla_prune_ros.ros.client import Client, Inbox, Received
from vla_prune_ros.ros.images import decode_rgb
from vla_prune_ros.ros.messages import to_seconds
from vla_prune_ros.ros.peers import Bridge, Episode, Policy
from vla_prune_ros.trials.demo_report import DemoEpisode, Frame, Query

CAMERAS = ('agentview', 'wrist')
EVERY = 2  # of so many camera frames one is kept: 10 Hz look smooth enough
LATE = 5.0  # s that the last pictures of an episode may come after its end


@dataclass(frozen=True)
class Wanted:
    """An episode to run. `pictures`: collect camera frames; `checkpoint`: its name, to show."""

    mode: str
    task: str
    state: int
    max_steps: int = 0
    pictures: bool = False
    checkpoint: str = ''


class DemoClient:
    """Runs episodes of a policy and a bridge, and says what was seen of them on the topics."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.policy, self._bridge = Policy(client), Bridge(client)
        self._views = [
            client.listen(Image, f'{camera}/image_raw', lambda m: decode_rgb(m).copy())
            for camera in CAMERAS
        ]

    def wait_for_nodes(self) -> None:
        """Until both nodes answer and the policy is active.

        Raises:
            GraphError: it took too long, or the policy could not be loaded.
        """
        self._bridge.wait_until_there()
        self.policy.wait_until_active()

    def run_episode(self, wanted: Wanted) -> tuple[DemoEpisode, Episode]:
        """Switch the mode, run one episode; what the topics tell about it, and its reports.

        Raises:
            GraphError: a parameter was refused, the episode did not run to its end, or inferences
                were made in another mode.
        """
        client, policy = self._client, self.policy
        policy.set_mode(wanted.mode)
        for inbox in (policy.stats, *self._views):
            inbox.clear()
        for view in self._views:
            view.is_open = wanted.pictures
        episode = self._bridge.run_episode(
            task=wanted.task,
            initial_state=wanted.state,
            max_steps=wanted.max_steps,
            publish_every_step=wanted.pictures,
        )
        status, (first, last) = episode.status, (episode.first, episode.last)
        if status['result'] not in ('success', 'step_limit'):
            raise client.error(f'{wanted} ended as {status["result"]!r}')
        # All that is told of the episode has its stamps, but may come after its end.
        queries = lambda: policy.stats.within(first, last)  # noqa: E731
        if status['mode'] == 'lockstep':
            count = int(status['queries'])
            client.wait(lambda: len(queries()) >= count, f'{count} inference statistics')
        else:  # in real time a policy may have skipped some
            client.spin(LATE * slowness(), lambda: len(queries()) >= int(status['queries']))
        frames: list[Frame] = []
        if wanted.pictures:
            steps = int(status['step'])  # with a picture each, unless one was lost
            client.spin(
                LATE * slowness(),
                lambda: all(len(view.within(first, last)) >= steps for view in self._views),
            )
            frames = frames_within(self._views, first, last)
        seen = [query_from(message) for message in queries()]
        others = sorted({query.mode for query in seen} - {wanted.mode})
        if others or not seen:
            raise client.error(
                f'{wanted} was answered in mode {", ".join(others) or "none at all"}'
            )
        if wanted.pictures and not frames:
            raise client.error(f'no camera pictures arrived in {wanted}')
        shown = DemoEpisode(
            mode=wanted.mode,
            task=status['task'],
            instruction=status['instruction'],
            state=int(status['initial_state']),
            success=status['success'] == 'true',
            steps=int(status['step']),
            queries=seen,
            frames=frames,
            note=policy.info.latest['note'],
            checkpoint=wanted.checkpoint,
        )
        return shown, episode


def frames_within(views: Sequence[Inbox], first: int, last: int) -> list[Frame]:
    """Every second instant from `first` to `last` (ns) of which every camera has a picture."""
    pictures = [{m.stamp: m.value for m in view.within(first, last)} for view in views]
    stamps = sorted(set.intersection(*(set(p) for p in pictures)))
    return [Frame(to_seconds(s), tuple(p[s] for p in pictures)) for s in stamps[::EVERY]]


def query_from(message: Received) -> Query:
    """What one statistics message says about its inference."""
    values = message.value
    kept = [int(number) for number in values['kept'].split(',') if number]
    return Query(
        mode=values['mode'],
        stamp=to_seconds(message.stamp),
        kept=np.array(kept, dtype=np.int64),
        n_visual=int(values['tokens_total']),
        latency_ms=float(values['node_ms']),
    )
