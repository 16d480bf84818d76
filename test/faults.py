# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of faults share: a node that can be made to fail, and a peer that misbehaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from conftest import Process
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from peer import FINGERS, Peer
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool

from vla_prune_ros.ros import messages as m

UNIT = np.array([0, 0, 0, 1.0])
TRANSITIONS = {'configure': 1, 'cleanup': 2, 'activate': 3, 'deactivate': 4}


class FaultyNode(Process):
    """The policy node of `faulty_node.py`."""

    program = (str(Path(__file__).with_name('faulty_node.py')),)

    def __init__(
        self,
        folder: Path,
        checkpoint: Path,
        namespace: str = '',
        file: Path | None = None,
        **parameters,
    ) -> None:
        given = {
            'checkpoint': str(checkpoint),
            'torch_threads': 1,
            'default_instruction': 'wave',
            'stream_timeout': 0.5,
            'diagnostic_updater__period': 0.2,
        } | parameters
        words = [f'{name.replace("__", ".")}:={value}' for name, value in given.items()]
        remap = ['-r', f'__ns:={namespace}'] if namespace else []
        remap += ['--params-file', str(file)] if file else []
        super().__init__(
            folder, '', '--ros-args', *remap, *(w for word in words for w in ('-p', word))
        )


@contextmanager
def running(folder: Path, checkpoint: Path, namespace: str = '', **parameters) -> Iterator:
    """A node and its peer, both ready; they end with the block."""
    process = FaultyNode(folder, checkpoint, namespace, **parameters)
    peer = FaultPeer(namespace, simulated=bool(parameters.get('use_sim_time')))
    try:
        peer.wait_until_active(process, raw='image_transport' not in parameters)
        yield process, peer
    finally:
        process.kill()
        peer.close()


class FaultPeer(Peer):
    """A peer that sends parts of observations, and watches the diagnostics."""

    def __init__(self, namespace: str = '', *, simulated: bool = False) -> None:
        super().__init__(namespace)
        self.namespace = namespace
        self.reports: dict[str, tuple[int, str, dict[str, str]]] = {}
        self.hardware_ids: set[str] = set()
        self.node.create_subscription(
            DiagnosticArray, '/diagnostics', self._on_diagnostics, QoSProfile(depth=10)
        )
        if simulated:
            self.start_clock()

    def start_clock(self) -> None:
        """Become the source of simulated time."""
        self.clock = self.node.create_publisher(Clock, '/clock', QoSProfile(depth=1))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        mine = f'{self.namespace}/vla_policy: '.lstrip('/')
        for status in message.status:
            if status.name.startswith(mine):
                values = {pair.key: pair.value for pair in status.values}
                self.hardware_ids.add(status.hardware_id)
                task = status.name.removeprefix(mine)
                self.reports[task] = (status.level[0], status.message, values)

    def send_parts(self, stamp: int | None = None, **parts) -> int:
        """Publish an observation of black images, some of its messages replaced or left out.

        Args:
            stamp: of the usual messages, by default now.
            parts: agentview, wrist, joints, pose -> a message, or None to leave it out.
        """
        stamp = time.time_ns() if stamp is None else stamp
        black = np.zeros((48, 64, 3), np.uint8)
        usual = {
            'joints': m.joint_message(FINGERS, np.zeros(2), stamp),
            'pose': m.pose_message(np.full(3, 0.1), UNIT, stamp, 'world'),
            'agentview': m.image_message(black, stamp, 'a'),
            'wrist': m.image_message(black, stamp, 'w'),
        } | parts
        publishers = {'joints': self.joints, 'pose': self.pose, **self.images}
        for name, message in usual.items():
            if message is not None:
                publishers[name].publish(message)
        return stamp

    def asked(self, stamp: int | None = None, timeout: float = 10.0, **parts):
        """The chunk that answers `send_parts`."""
        stamp = self.send_parts(stamp, **parts)
        answered = lambda: any(m.to_ns(c.header.stamp) == stamp for c in self.chunks)  # noqa: E731
        assert self.wait_for(answered, timeout), 'no chunk'
        described = lambda: any(s['stamp'] == stamp for s in self.stats)  # noqa: E731
        assert self.wait_for(described, 2.0), 'no statistics'
        return m.actions_from(self.chunks[-1])

    def gets_nothing(self, seconds: float = 0.2) -> bool:
        """Whether no further chunk comes."""
        before = len(self.chunks)
        self.spin(seconds)
        return len(self.chunks) == before

    def count(self, name: str) -> int:
        """A counter of the statistics, by way of a good observation."""
        self.asked()
        return int(self.stats[-1].get(name, 0))

    def tell_time(self, stamp: int) -> None:
        """Set the simulated clock."""
        for _ in range(3):
            self.clock.publish(Clock(clock=m.to_time(stamp)))
            self.spin(0.03)

    def change(self, transition: str) -> bool:
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        return self.call(ChangeState, 'vla_policy/change_state', request, 30.0).success

    def state(self) -> str:
        return self.call(GetState, 'vla_policy/get_state', GetState.Request()).current_state.label

    def enable(self, value: bool) -> None:
        request = SetBool.Request(data=value)
        assert self.call(SetBool, 'vla_policy/set_enabled', request).success

    def wait_for_report(self, task: str, condition: Callable[[tuple], object]) -> tuple:
        """The first report of a diagnostic task for which the condition holds."""
        holds = lambda: task in self.reports and condition(self.reports[task])  # noqa: E731
        assert self.wait_for(holds, 10.0), self.reports.get(task)
        return self.reports[task]
