# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the policy node says about itself, and its parameters, over DDS."""

from __future__ import annotations

import time

import numpy as np
import pytest
from conftest import REPOSITORY

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from faults import FaultPeer, FaultyNode
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_prune_ros.nodes.policy.modes import pruning_specs
from vla_prune_ros.nodes.policy.parameters import POLICY
from vla_prune_ros.ros import messages as m
from vla_prune_ros.ros.images import decode_rgb


@pytest.fixture
def peer(faulty_pair) -> FaultPeer:
    process, peer = faulty_pair
    peer.set_parameters(pruning__mode='none', pruning__random__keep=0)
    peer.trigger('vla_policy/reset')
    peer.forget()
    yield peer
    assert process.popen.poll() is None, process.log


@pytest.fixture
def node(faulty_pair) -> FaultyNode:
    return faulty_pair[0]


def set_atomically(peer: FaultPeer, **values):
    parameters = [
        Parameter(name.replace('__', '.'), value=value).to_parameter_msg()
        for name, value in values.items()
    ]
    request = SetParametersAtomically.Request(parameters=parameters)
    name = 'vla_policy/set_parameters_atomically'
    return peer.call(SetParametersAtomically, name, request).result


# -- parameters --------------------------------------------------------------------------------
def test_mode_and_options_set_atomically_hold_together_from_the_next_chunk(peer):
    peer.asked()
    result = set_atomically(peer, pruning__mode='random', pruning__random__keep=3)
    assert result.successful, result.reason
    peer.asked()
    assert (peer.stats[-1]['mode'], peer.stats[-1]['tokens_kept']) == ('random', '6')
    assert peer.stats[-1]['reset_reason'] == 'mode'
    peer.asked()
    assert peer.stats[-1]['reset_reason'] == ''


def test_one_bad_value_refuses_the_whole_atomic_request(peer):
    result = set_atomically(peer, pruning__mode='random', pruning__random__layer=99)
    assert not result.successful and 'layer' in result.reason
    assert peer.get_parameter('pruning.mode') == 'none'
    peer.asked()
    assert (peer.stats[-1]['mode'], peer.stats[-1]['reset_reason']) == ('none', 'reset')


def test_many_parameters_in_one_request_are_answered_each_and_applied_at_once(peer, node):
    before = len(peer.info)
    results = peer.set_parameters(
        pruning__random__keep=4, pruning__mode='random', pruning__random__keep_ratio=9.0
    )
    assert [r.successful for r in results] == [True, True, False]
    assert 'keep_ratio' in results[2].reason
    peer.asked()
    assert (peer.stats[-1]['mode'], peer.stats[-1]['tokens_kept']) == ('random', '8')
    assert peer.wait_for(lambda: len(peer.info) > before)
    peer.spin(0.2)
    assert len(peer.info) == before + 1, 'one change'


def test_a_parameter_can_be_neither_deleted_nor_invented(peer):
    deleted = SetParameters.Request(parameters=[ParameterMessage(name='pruning.mode')])
    (result,) = peer.call(SetParameters, 'vla_policy/set_parameters', deleted).results
    assert not result.successful
    (result,) = peer.set_parameters(pruning__mod='random')
    assert not result.successful and "did you mean 'pruning.mode'" in result.reason
    result = set_atomically(peer, pruning__mode='random', no_such__thing=1)
    assert not result.successful and "'no_such.thing'" in result.reason
    assert peer.get_parameter('pruning.mode') == 'none'


def test_limits_take_effect_without_a_restart(peer):
    (result,) = peer.set_parameters(max_observation_age=0.05)
    assert result.successful
    peer.send_parts(time.time_ns() - 200_000_000)
    assert peer.gets_nothing()
    peer.set_parameters(max_observation_age=0.5)
    peer.trigger('vla_policy/reset')
    peer.asked(time.time_ns() - 200_000_000)


def test_descriptors_say_what_the_tables_say(peer):
    descriptors = {d.name: d for d in peer.describe_all('vla_policy')}
    for spec in (*POLICY, *pruning_specs()):
        told = descriptors[spec.name]
        assert told.description == spec.description
        assert told.read_only is spec.read_only, spec.name
        assert all(choice in told.additional_constraints for choice in spec.choices)
        if isinstance(spec.default, float) and spec.minimum is not None:
            assert told.floating_point_range[0].from_value == spec.minimum


@pytest.mark.parametrize('name', ['policy', pytest.param('sim', marks=pytest.mark.slow)])
def test_parameter_files_load_without_a_warning(ros, tmp_path, checkpoint, namespace, name):
    process = FaultyNode(tmp_path, checkpoint, namespace, file=REPOSITORY / f'config/{name}.yaml')
    try:
        process.wait_for_log('ready after')
        time.sleep(0.3)
        assert 'WARN' not in process.log and 'ERROR' not in process.log, process.log
    finally:
        process.kill()


def test_misspelt_names_are_reported_with_a_hint(tmp_path, checkpoint, ros):
    process = FaultyNode(tmp_path, checkpoint, max_observation_aeg=1.0, autostart='false')
    try:
        log = process.wait_for_log('did you mean')
        assert "no parameter 'max_observation_aeg'" in log and "'max_observation_age'" in log
    finally:
        process.kill()


# -- life --------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_node_that_cannot_be_activated_says_why_and_stays_inactive(
    ros, tmp_path, checkpoint, namespace
):
    process = FaultyNode(tmp_path, checkpoint, namespace, cameras='["a view","wrist"]')
    peer = FaultPeer(namespace)
    try:
        assert 'a view' in process.wait_for_log('activate failed')
        assert peer.state() == 'inactive'
        assert peer.change('cleanup') and peer.state() == 'unconfigured'
        assert process.end()[0] == 0
    finally:
        process.kill()
        peer.close()


# -- topics ------------------------------------------------------------------------------------
def test_every_reset_is_visible_in_the_statistics(peer):
    def reason() -> str:
        peer.asked()
        return peer.stats[-1]['reset_reason']

    peer.asked()
    assert reason() == ''
    peer.trigger('vla_policy/reset')
    assert reason() == 'reset'
    peer.instruction.publish(String(data='go'))
    assert peer.wait_for(lambda: peer.info[-1]['instruction'] == 'go')
    assert reason() == 'instruction'
    peer.set_parameters(pruning__mode='random')
    assert reason() == 'mode'
    peer.enable(False)
    peer.enable(True)
    assert reason() == 'enabled'
    peer.spin(1.6)
    assert reason() == 'gap'
    assert reason() == ''
    peer.instruction.publish(String(data='wave'))  # the node is shared with other tests
    assert peer.wait_for(lambda: peer.info[-1]['instruction'] == 'wave')


def test_the_statistics_name_every_stage_and_have_the_stamp_of_their_chunk(peer):
    stamp = time.time_ns()
    peer.asked(stamp)
    stats = peer.stats[-1]
    stages = ('preprocess', 'vision', 'decoder', 'head', 'postprocess', 'total')
    own = ('convert', 'queue', 'prepare', 'check', 'publish')
    assert all(float(stats[f'{stage}_ms']) >= 0 for stage in stages)
    assert all(float(stats[f'node.{stage}_ms']) >= 0 for stage in own)
    assert float(stats['node_ms']) >= float(stats['total_ms'])
    assert stats['stamp'] == stamp
    assert stats['requery'] == '0'
    assert int(stats['tokens_kept']) == len(stats['kept'].split(',')) == 32


def test_a_mode_that_wants_an_early_query_says_after_how_many_actions(peer):
    """The chunk is slow from its first action on, and the first queries of a mode are coarse."""
    slow = {'enter_translation': 3.0, 'enter_rotation': 3.0}
    slow |= {'leave_translation': 3.0, 'leave_rotation': 3.0, 'requery_on_enter': True}
    result = set_atomically(
        peer, pruning__mode='specprune', **{f'pruning__specprune__{k}': v for k, v in slow.items()}
    )
    assert result.successful, result.reason
    actions = peer.asked()
    down = np.flatnonzero(actions[:-1, 2] <= 0)
    assert len(down), 'an action that does not rise'
    assert int(peer.stats[-1]['requery']) == down[0] + 1


def test_the_description_is_latched_and_names_what_runs(peer):
    late = FaultPeer(peer.namespace)
    assert late.wait_for(lambda: late.info)
    info = late.info[-1]
    assert len(info['sha256']) == 64 and info['mode'] == 'none'
    assert info['dimension_names'].split(',')[-1] == 'gripper'
    assert len(info['units'].split('; ')) == 7, 'one of them has a comma'
    assert info['control_mode'] == 'end-effector delta'
    assert info['instruction'] and float(info['control_rate']) == 20.0 and info['hardware']
    late.close()


def test_the_overlay_is_drawn_only_for_subscribers_and_at_most_at_its_rate(peer, node):
    peer.set_parameters(pruning__mode='random', pruning__random__keep=2)
    pictures: list[Image] = []
    white = np.full((48, 64, 3), 255, np.uint8)

    def look(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stamp = time.time_ns()
            views = {n: m.image_message(white, stamp, n) for n in ('agentview', 'wrist')}
            peer.asked(stamp, **views)

    topic = 'vla_policy/pruning_overlay'
    subscription = peer.node.create_subscription(Image, topic, pictures.append, m.RELIABLE)
    assert peer.wait_for(lambda: peer.node.count_publishers(f'{peer.namespace}/{topic}'))
    look(0.5)
    pictures.clear()
    look(1.0)
    assert 3 <= len(pictures) <= 11
    pixels = decode_rgb(pictures[-1])
    assert pixels.shape == (48, 128, 3)
    bright = (pixels == 255).all(axis=2).mean()
    assert 0 < bright < 0.25, 'two of sixteen patches of each view'
    stamps = {s['stamp'] for s in peer.stats}
    assert m.to_ns(pictures[-1].header.stamp) in stamps
    peer.node.destroy_subscription(subscription)


def test_diagnostics_keep_the_conventions_of_the_updater(peer):
    for _ in range(5):
        peer.asked()
    level, text, values = peer.wait_for_report('Inference', lambda r: 'total p95_ms' in r[2])
    assert (level, text) == (0, 'OK')
    assert float(values['total p50_ms']) <= float(values['total p95_ms'])
    assert int(values['cold, not in the figures']) >= 1
    inputs = peer.wait_for_report('Inputs', lambda r: True)[2]
    assert float(inputs['agentview: rate (Hz)']) >= 0 and 'ee_pose: age (s)' in inputs
    assert peer.wait_for_report('Pruning', lambda r: r[2]['mode'] == 'none')
    assert float(peer.wait_for_report('Device', lambda r: True)[2]['resident memory (MB)']) > 50
    assert set(peer.reports) == {
        'Node', 'Inference', 'Inputs', 'Pruning', 'Budget', 'Device',
    }  # fmt: skip
    peer.hardware_ids.clear()  # none is known while the model is being loaded
    assert peer.wait_for(lambda: peer.hardware_ids) and all(peer.hardware_ids)
