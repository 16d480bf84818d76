# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The policy node's protocol in random orders, over DDS: whatever was before, it serves again.

Thousands of orders, without DDS: `test_nodes_conversation.py`.
"""

from __future__ import annotations

import signal
import time

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

import numpy as np
from faults import FaultPeer, FaultyNode, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peer import PERIOD
from std_msgs.msg import String
from test_faults_inference import behave

from vla_prune_ros.ros import messages as m

SLOW = 0.3  # s


def request(peer: FaultPeer, stamp: int) -> None:
    """Executed actions that ask for a chunk."""
    peer.executed.publish(m.executed_message(np.full((2, 7), 0.1), stamp, PERIOD))


def instruct(peer: FaultPeer, text: str) -> None:
    """Publish an instruction and wait until it is in force, where a model is loaded."""
    peer.instruction.publish(String(data=text))
    peer.wait_for(lambda: peer.info[-1]['instruction'] == text, 0.3)


STEPS = {
    'observe': lambda peer: peer.send_parts(),
    'observe and ask': lambda peer: request(peer, peer.send_parts()),
    'ask': lambda peer: request(peer, time.time_ns()),
    'half': lambda peer: peer.send_parts(wrist=None),
    'old': lambda peer: request(peer, peer.send_parts(time.time_ns() - 3 * m.NANOSECONDS)),
    'stop': lambda peer: instruct(peer, ''),
    'go': lambda peer: instruct(peer, 'go'),
    'wave': lambda peer: instruct(peer, 'wave'),
    'reset': lambda peer: peer.trigger('vla_policy/reset'),
    'off': lambda peer: peer.enable(False),
    'on': lambda peer: peer.enable(True),
    'slow': lambda peer: behave(peer, sleep=SLOW, fail='never'),
    'failing': lambda peer: behave(peer, sleep=0.0, fail='error'),
    'well': lambda peer: behave(peer, sleep=0.0, fail='never'),
    'mode': lambda peer: peer.set_parameters(pruning__mode='specprune'),
    'wait': lambda peer: peer.spin(0.2),
    **{
        name: lambda peer, name=name: peer.change(name)
        for name in ('deactivate', 'activate', 'cleanup', 'configure')
    },
}


def check_serves(process: FaultyNode, peer: FaultPeer, *, by_request: bool) -> None:
    """Bring the node up from wherever it is; a good observation gets its one chunk."""
    behave(peer, sleep=0.0, fail='never')
    for transition in ('deactivate', 'cleanup', 'configure', 'activate'):  # as far as they apply
        state = peer.state()
        if (transition, state) in (('configure', 'unconfigured'), ('activate', 'inactive')):
            assert peer.change(transition), process.log
    peer.wait_until_active(process)
    peer.enable(True)
    instruct(peer, 'go')
    peer.spin(SLOW + 0.2)
    peer.forget()
    stamp = peer.send_parts()
    if by_request:
        request(peer, stamp)
    answers = lambda: [c for c in peer.chunks if m.to_ns(c.header.stamp) == stamp]  # noqa: E731
    assert peer.wait_for(answers, 10.0), process.log
    peer.spin(0.1)
    assert len(answers()) == 1
    assert 'Traceback' not in process.log and process.popen.poll() is None


@pytest.mark.parametrize('trigger', ['observation', 'request'])
@pytest.mark.parametrize('examples', [3, pytest.param(60, marks=pytest.mark.slow)])
def test_the_node_serves_again_after_any_order_of_what_may_happen(
    ros, tmp_path, checkpoint, namespace, trigger, examples
):
    configuration = {'trigger': trigger, 'input_reliability': 'reliable'}
    with running(tmp_path, checkpoint, namespace, **configuration) as (process, peer):

        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=examples < 10,
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        )  # fmt: skip
        @given(st.lists(st.sampled_from(sorted(STEPS)), min_size=5, max_size=25))
        def try_order(order: list[str]) -> None:
            for name in order:
                STEPS[name](peer)
            check_serves(process, peer, by_request=trigger == 'request')

        try_order()
        assert process.end(signal.SIGINT)[0] == 0, process.log
