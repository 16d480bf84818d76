# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Inference that fails, dawdles or hangs, over DDS: what the policy node does."""

from __future__ import annotations

import signal
import time

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from conftest import patience
from faults import FaultPeer, FaultyNode, running

from vla_prune_ros.ros import messages as m


@pytest.fixture
def peer(faulty_pair) -> FaultPeer:
    process, peer = faulty_pair
    peer.trigger('vla_policy/reset')
    peer.forget()
    yield peer
    assert process.popen.poll() is None, process.log
    behave(peer, fail='never', fail_at=0, sleep=0.0)
    peer.asked()  # whatever happened, a good observation is answered


@pytest.fixture
def node(faulty_pair) -> FaultyNode:
    return faulty_pair[0]


def behave(peer: FaultPeer, **options) -> None:
    """Tell the pruning mode how to misbehave."""
    values = {f'pruning__faulty__{name}': value for name, value in options.items()}
    results = peer.set_parameters(pruning__mode='faulty', **values)
    assert all(r.successful for r in results), results


def start_slow(peer: FaultPeer, seconds: float) -> int:
    """Begin an inference that takes so long; returns its stamp."""
    behave(peer, sleep=seconds)
    stamp = peer.send_parts()
    peer.spin(0.3)
    assert not peer.chunks
    return stamp


@pytest.mark.parametrize('fail', ['error', 'memory', 'exit'])
def test_a_failed_inference_is_counted_and_reported_and_the_next_one_works(peer, node, fail):
    behave(peer, fail='never')
    before = peer.count('dropped.failed')
    behave(peer, fail=fail)
    peer.send_parts()
    text = peer.wait_for_report('Inference', lambda r: r[0] == 2)[1]
    assert 'the last inference failed' in text
    node.wait_for_log('inference failed (1 in a row)')
    behave(peer, fail='never')
    peer.asked()
    assert peer.stats[-1]['reset_reason'] in ('exception', 'mode')
    assert int(peer.stats[-1]['dropped.failed']) == before + 1
    assert peer.wait_for_report('Inference', lambda r: r[0] == 0)


def test_a_failure_empties_the_history(peer):
    behave(peer, fail='error', fail_at=3)
    peer.asked()
    peer.asked()
    assert peer.stats[-1]['reset_reason'] == ''
    peer.send_parts()
    assert peer.gets_nothing()
    peer.asked()
    assert peer.stats[-1]['reset_reason'] == 'exception'


def test_three_failures_in_a_row_deactivate_the_node_until_it_is_activated_again(peer, node):
    behave(peer, fail='error')
    for _ in range(6):
        peer.send_parts()
        peer.spin(0.05)
    assert peer.wait_for(lambda: 'deactivating after 3 failures in a row' in node.log)
    assert 'selector fault' in node.log
    assert peer.state() == 'inactive'
    assert peer.wait_for_report('Node', lambda r: r[0] == 1)[2]['state'] == 'inactive'
    behave(peer, fail='never')
    assert peer.change('activate')
    peer.wait_until_active(node)
    peer.asked()


def test_a_slow_model_gets_the_latest_observation_and_a_warning(peer):
    behave(peer, sleep=0.45)  # a chunk lasts 0.4 s
    last = 0
    for _ in range(25):
        last = peer.send_parts()
        peer.spin(0.05)
    assert peer.wait_for(lambda: m.to_ns(peer.chunks[-1].header.stamp) == last, 3.0)
    assert len(peer.chunks) <= 5
    assert int(peer.stats[-1]['superseded']) >= 15
    text = peer.wait_for_report('Inference', lambda r: r[0] == 1)[1]
    assert 'above the chunk duration 400 ms' in text


def test_an_inference_that_hangs_is_reported_and_its_chunk_dropped_while_services_answer(
    peer, node
):
    start_slow(peer, 2.6)
    asked = time.monotonic()
    assert peer.get_parameter('control_rate') == 20.0
    assert time.monotonic() - asked < 1.0
    text = peer.wait_for_report('Inference', lambda r: r[0] == 2)[1]
    assert 'has been running' in text
    node.wait_for_log('takes longer than 2 s')
    assert peer.gets_nothing(0.8)
    behave(peer, sleep=0.0)
    assert peer.count('dropped.late') == 1


@pytest.mark.parametrize('how', ['reset', 'disable'])
def test_a_chunk_from_before_a_reset_is_not_published(peer, how):
    stamp = start_slow(peer, 0.7)
    if how == 'reset':
        assert peer.trigger('vla_policy/reset').success
    else:
        peer.enable(False)
        peer.enable(True)
    assert peer.gets_nothing(1.0) and not peer.stats
    behave(peer, sleep=0.0)
    peer.asked()
    assert stamp not in [m.to_ns(c.header.stamp) for c in peer.chunks]


@pytest.mark.slow
def test_a_deactivated_node_publishes_nothing_not_even_what_it_is_computing(peer, node):
    start_slow(peer, 0.7)
    assert peer.change('deactivate')
    assert node.wait_for_log('deactivate: inactive')
    for task in ('Node', 'Inference', 'Inputs', 'Pruning'):
        assert peer.wait_for_report(task, lambda r: r[0] >= 1 and 'inactive' in r[1])
    assert peer.gets_nothing(1.0)
    assert peer.change('activate')
    peer.wait_until_active(node)
    behave(peer, sleep=0.0)
    peer.asked()
    assert peer.stats[-1]['reset_reason'] in ('deactivate', 'mode')


def test_actions_that_led_to_a_dropped_observation_reach_the_history(peer):
    behave(peer, fail='never')
    peer.asked()
    peer.trigger('vla_policy/reset')
    now = time.time_ns()
    old = now - 300_000_000  # too old by the time it is sent
    for _ in range(4):  # repeats count once; a fresh subscription may miss the first
        peer.executed.publish(m.executed_message([[0.1] * 7] * 3, old, 50_000_000))
        peer.spin(0.1)
    peer.send_parts(old)
    assert peer.gets_nothing()
    peer.asked()
    assert int(peer.stats[-1]['faulty.executed']) == 3


@pytest.mark.parametrize(
    'number', [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_ends_the_node_within_two_seconds_during_an_inference(
    ros, tmp_path, checkpoint, namespace, number
):
    with running(tmp_path, checkpoint, namespace) as (process, peer):
        start_slow(peer, 30.0)
        files = process.shared_memory()
        assert files, 'DDS talks through shared memory'
        code, seconds = process.end(number)
        assert (code, seconds < patience(2.0)) == (0, True), (code, seconds, process.log)
        assert [path for path in files if path.exists()] == []
        assert 'Traceback' not in process.log
