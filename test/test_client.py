# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The client of the graph against nodes that answer late, out of order or not at all."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Process, patience

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from vla_prune_ros.ros import messages as m
from vla_prune_ros.ros.children import claim_domain
from vla_prune_ros.ros.client import Client, GraphError
from vla_prune_ros.trials.demo_client import CAMERAS, DemoClient, Wanted

PERIOD = 50_000_000
STEPS = 8


class World(Node):
    """A policy and a bridge whose messages overtake each other."""

    def __init__(self, context: Context) -> None:
        super().__init__('world', context=context, start_parameter_services=False)
        self.number = 0
        self.answer = '{}'  # of ~/reset_episode
        self.has_statistics = True
        for name in ('vla_policy', 'sim_bridge'):
            service = f'{name}/set_parameters_atomically'
            self.create_service(SetParametersAtomically, service, self._set)
        self.create_service(GetState, 'vla_policy/get_state', self._state)
        self.create_service(Trigger, 'sim_bridge/reset_episode', self._reset)
        self.info, self.episode, self.stats = (
            self.create_publisher(DiagnosticArray, topic, qos)
            for topic, qos in (
                ('vla_policy/policy_info', m.LATCHED),
                ('sim_bridge/episode', m.LATCHED),
                ('vla_policy/inference_stats', m.RELIABLE),
            )
        )
        self.images = [self.create_publisher(Image, f'{c}/image_raw', m.RELIABLE) for c in CAMERAS]
        self.info.publish(m.values_message('policy', {'mode': 'none', 'note': ''}, 0))

    def _set(self, request, response):
        response.result.successful = True
        for parameter in request.parameters:
            if parameter.name == 'pruning.mode':
                values = {'mode': parameter.value.string_value, 'note': ''}
                self.info.publish(m.values_message('policy', values, 0))
        return response

    def _state(self, request, response):
        response.current_state.id = State.PRIMARY_STATE_ACTIVE
        return response

    def _reset(self, request, response):
        self.number += 1
        response.success, response.message = True, self.answer.format(self.number)
        threading.Timer(0.1, self._play, (self.number,)).start()
        return response

    def start_of(self, number: int) -> int:
        return number * 10_000_000_000

    def _play(self, number: int) -> None:
        begin = self.start_of(number)
        for k in range(STEPS):  # of the episode before
            self._picture(number - 1, k)
        self._report(number, 'running', 0)
        for k in (3, 1, 0, 2):
            self._picture(number, k)
        self._report(number, 'done', STEPS)
        time.sleep(0.2)
        for k in (7, 5, 6, 4):
            self._picture(number, k)
        values = {'mode': 'random', 'kept': '1,2', 'tokens_total': 4, 'node_ms': 1.0}
        for stamp in (self.start_of(number - 1), begin):
            if self.has_statistics:
                self.stats.publish(m.values_message('inference', values, stamp))

    def _picture(self, number: int, k: int) -> None:
        pixels = np.full((16, 16, 3), number, np.uint8)
        for publisher in self.images:
            stamp = self.start_of(number) + k * PERIOD
            publisher.publish(m.image_message(pixels, stamp, 'camera'))

    def _report(self, number: int, state: str, step: int) -> None:
        result = 'step_limit' if state == 'done' else ''
        values = {
            'episode': number, 'state': state, 'step': step, 'result': result, 'queries': 1,
            'mode': 'lockstep', 'task': 't', 'instruction': 'i', 'initial_state': 0,
            'success': False,
        }  # fmt: skip
        stamp = self.start_of(number) + step * PERIOD
        self.episode.publish(m.values_message('episode', values, stamp))


@pytest.fixture
def world():
    context = Context()
    context.init([])
    node, executor = World(context), SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()
    node.destroy_node()
    context.try_shutdown()


@pytest.mark.parametrize('answer', ['{}', 'episode {} starts with task 3'])
def test_pictures_and_queries_belong_to_the_episode_whose_stamps_they_carry(world, answer):
    world.answer = answer
    with Client('late', patience=20.0) as client:
        demo = DemoClient(client)
        demo.wait_for_nodes()
        for number in (1, 2, 3):
            shown, episode = demo.run_episode(Wanted('random', 't', 0, pictures=True))
            start = world.start_of(number)
            assert (episode.first, episode.last) == (start, start + STEPS * PERIOD)
            stamps = [round(frame.stamp * 1e9) for frame in shown.frames]
            assert stamps == [start + k * PERIOD for k in (0, 2, 4, 6)]
            assert {int(view.max()) for f in shown.frames for view in f.views} == {number}
            assert [query.stamp for query in shown.queries] == [start / 1e9]


def test_what_never_comes_is_named_after_the_time_that_was_given(world):
    world.has_statistics = False
    with Client('waiting', patience=1.0) as client:
        demo = DemoClient(client)
        demo.wait_for_nodes()
        with pytest.raises(GraphError, match=r'waited \d+ s in vain for 1 inference statistics'):
            demo.run_episode(Wanted('random', 't', 0))


def test_nodes_that_are_not_there_are_named():
    alone = Client('alone', patience=0.5, domain_id=claim_domain())
    text = 'in vain for the service sim_bridge/reset_episode'
    with alone as client, pytest.raises(GraphError, match=text):
        DemoClient(client).wait_for_nodes()


def test_a_domain_is_given_to_one_only():
    assert claim_domain() != claim_domain()


@pytest.mark.parametrize('verb', ['soak', 'overhead'])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_trial_in_order(start, tmp_path, checkpoint, verb, number):
    out = tmp_path / 'out'
    process = start(verb, '--checkpoint', str(checkpoint), '--ticks', '90000', '--out', str(out))
    log = out / 'policy_node.log'
    started = time.monotonic()
    while not (log.exists() and 'ready after' in log.read_text()):
        assert time.monotonic() - started < patience(60), process.log
        assert process.popen.poll() is None, process.log
        time.sleep(0.1)
    code, _ = process.end(number, timeout=patience(30))
    assert code == 130, process.log
    assert f'{verb}: interrupted; all nodes were stopped' in process.log
    assert 'Traceback' not in process.log + log.read_text()


def test_a_trial_that_hangs_after_a_signal_says_where_and_ends_with_its_nodes(tmp_path):
    """Later signals are ignored, so that nobody but SIGKILL could end it."""
    program = tmp_path / 'hanging.py'
    program.write_text(
        'import subprocess, sys, threading\n'
        'from vla_prune_ros.ros.children import die_with_parent\n'
        'from vla_prune_ros.trials import command\n'
        'command.END = 0.5\n'
        'def run(args, argv):\n'
        '    node = subprocess.Popen(["sleep", "1000"], preexec_fn=die_with_parent)\n'
        '    print("node", node.pid, flush=True)\n'
        '    while True:\n'
        '        try:\n'
        '            threading.Event().wait()\n'
        '        except BaseException:\n'
        '            continue\n'
        'command.run_verb(command.parser("hanging", ""), run, [])\n'
    )
    process = Process(tmp_path, '', program=(str(program),))
    try:
        node = int(process.wait_for_log('node ').split()[1])
        assert process.end(signal.SIGTERM)[0] == 1
        assert f'File "{program}", line 10 in run' in process.log
        until = time.monotonic() + 10
        while Path(f'/proc/{node}').exists() and time.monotonic() < until:
            time.sleep(0.05)  # who adopts it has to collect it
        assert not Path(f'/proc/{node}').exists()
    finally:
        process.kill()


def test_the_time_between_two_messages_is_that_of_the_sender(world):
    with Client('starved', patience=20.0) as client:
        inbox = client.listen(DiagnosticArray, 'sim_bridge/episode', m.values_from)

        def heard():
            world._report(1, 'running', 0)
            client.spin(0.05)
            return list(inbox)

        client.wait(heard, 'discovery, of which each side has its own')
        client.spin(0.2)
        inbox.clear()
        for step in (0, 1):
            world._report(1, 'running', step)
            time.sleep(0.3)  # in which this process does not get its turn
        client.wait(lambda: len(list(inbox)) == 2, 'both')
        first, second = inbox.within(0, 20_000_000_000)
        assert second.arrived - first.arrived < 0.1
        assert 0.29 < second.sent - first.sent < 0.29 * 5
