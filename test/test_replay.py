# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The golden bags hold in every mode and tier, and a policy that changed does not pass.

Tolerances are given here: the golden values were made on another machine.
"""

from __future__ import annotations

import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from bag_tools import OUTPUTS, PICK, PUT, replay, rewrite
from diagnostic_msgs.msg import KeyValue

from vla_prune_ros import weights
from vla_prune_ros.bags.feed import Feed, values_of
from vla_prune_ros.bags.files import Bag
from vla_prune_ros.bags.offline import inputs_digest
from vla_prune_ros.bags.streams import FeedSettings
from vla_prune_ros.bags.tracks import recorded_track
from vla_prune_ros.pruning import MODES
from vla_prune_ros.ros.messages import to_ns

ELSEWHERE = ('--atol', '2e-5', '--jaccard', '0.98')
TRACKS = ('recorded', *MODES)


@pytest.mark.parametrize(('bag', 'tiers'), [(PICK, 'T1'), (PUT, 'T0,T1')])
def test_the_golden_bags_hold_in_every_mode(bag, tiers, capsys, tmp_path):
    arguments = ('--modes', 'recorded,all', '--tiers', tiers, *ELSEWHERE)
    result = replay(capsys, tmp_path, bag, *arguments)
    assert result.code == 0, result.text
    passed = {(v['tier'], v['track']) for v in result.verdict['verdicts'] if v['passed']}
    assert passed == {(tier, track) for tier in tiers.split(',') for track in TRACKS}
    assert not result.verdict['warnings'] and not result.verdict['problems']


def test_the_golden_bags_have_changes_of_mode_and_instruction_and_resets():
    total = 0
    for bag in (PICK, PUT):
        total += sum(f.stat().st_size for f in bag.rglob('*') if f.is_file())
        with Bag(bag) as opened:
            assert opened.counts['/instruction'] == 2
            assert opened.counts['/vla_policy/policy_info'] >= 4
    assert total < 2_000_000


def test_resets_and_modes_of_the_recording_come_back(capsys, tmp_path):
    result = replay(capsys, tmp_path, PUT, '--tiers', 'T1', *ELSEWHERE)
    modes = [tick['mode'] for tick in result.ticks]
    assert modes == [
        *['vla_cache'] * 3, *['efficient_vla'] * 2, *['fastv'] * 2, *['random'] * 2,
        *['specprune'] * 3,
    ]  # fmt: skip
    reasons = [tick['reset_reason'] for tick in result.ticks]
    assert reasons[2] == reasons[10] == 'reset'
    assert reasons[6] == 'instruction'
    assert reasons[3] == reasons[5] == 'mode'


def test_the_node_over_dds_gives_the_same_as_the_bag(capsys, tmp_path):
    arguments = ('--tiers', 'T2', '--modes', 'recorded,specprune,vla_cache', *ELSEWHERE)
    result = replay(capsys, tmp_path, PICK, *arguments)
    assert result.code == 0, result.text
    assert [v['track'] for v in result.verdict['verdicts']] == [
        'recorded',
        'specprune',
        'vla_cache',
    ]
    ticks = [tick for tick in result.ticks if tick['track'] == 'recorded']
    assert [t['mode'] for t in ticks][1:3] == ['none', 'specprune']
    assert max(t['max_diff_normalised'] for t in result.ticks) <= 2e-5


def test_report_has_hashes_versions_and_one_line_per_tick(capsys, tmp_path):
    result = replay(
        capsys, tmp_path, PUT, '--tiers', 'T1', '--modes', 'fastv', *ELSEWHERE, plots=True
    )
    header = result.lines[0]
    assert header['type'] == 'header'
    for name in ('bag_sha256', 'golden_sha256', 'config_sha256'):
        assert len(header[name]) == 64
    assert len(header['checkpoint_sha256']['fastv']) == 64
    assert header['environment']['packages']['torch']
    tick = result.ticks[0]
    assert len(result.ticks) == 12
    assert len(tick['max_diff']) == 7 and tick['gripper_agreement'] == 1.0
    assert tick['kept'] == 64 and tick['jaccard'] >= 0.98 and tick['timing']['total'] > 0
    assert (tmp_path / 'out0' / 'actions_fastv.png').stat().st_size > 10_000
    suite = ElementTree.parse(tmp_path / 'out0' / 'junit.xml').getroot()
    assert suite.get('tests') == '1' and suite.get('failures') == '0'


def test_modes_are_compared_on_the_same_bag(capsys, tmp_path):
    arguments = ('--modes', 'all', '--compare', 'none', '--tiers', 'T1', '--limit', '4')
    result = replay(capsys, tmp_path, PUT, '--ignore-outputs', *arguments)
    assert result.code == 0, result.text
    by_mode = {m: [t for t in result.ticks if t['track'] == m] for m in MODES}
    assert all(t['max_diff_normalised'] == 0 for t in by_mode['none'])
    assert any(t['max_diff_normalised'] > 1e-3 for t in by_mode['fastv'])
    assert all(t['kept'] == 64 and t['kept_reference'] == 128 for t in by_mode['fastv'])
    assert all(mode in result.text for mode in MODES)


def test_a_tolerance_makes_the_comparison_of_modes_a_test(capsys, tmp_path):
    arguments = ('--modes', 'fastv', '--compare', 'none', '--tiers', 'T1', '--atol', '1e-6')
    result = replay(capsys, tmp_path, PUT, *arguments)
    assert result.code == 1
    assert 'fastv against none: FAIL' in result.text and 'first tick 0' in result.text


def test_a_mode_can_be_switched_at_a_tick(capsys, tmp_path):
    arguments = ('--modes', 'none', '--compare', 'none', '--switch', '5=grid', '--tiers', 'T1')
    result = replay(capsys, tmp_path, PUT, *arguments)
    assert [tick['mode'] for tick in result.ticks] == [*['none'] * 5, *['grid'] * 7]
    assert result.ticks[5]['reset_reason'] == 'mode'


# -- a wrong policy is caught --------------------------------------------------------------------
def first_failure(result) -> int:
    """The first failing tick, which must also be named on the terminal."""
    assert result.code == 1, result.text
    (failure,) = result.failures
    assert f'first tick {failure["tick"]} (stamp {failure["stamp"] / 1e9:.9f} s)' in result.text
    return failure['tick']


def run_dense(capsys, tmp_path, bag=PUT, *arguments):
    defaults = ('--modes', 'none', '--tiers', 'T1', *ELSEWHERE)
    return replay(capsys, tmp_path, bag, *defaults, *arguments)


@pytest.fixture
def changed_checkpoint(tmp_path):
    """The embedded policy with one weight of the decoder changed."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = tmp_path / 'checkpoint'
    shutil.copytree(weights.directory('tabletop'), folder)
    for file in sorted(folder.glob('*.safetensors')):
        with safe_open(file, 'pt') as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        names = [name for name in tensors if 'layers.1.mlp.down_proj' in name]
        if names:
            weight = tensors[names[0]].clone()
            weight[3, 5] += 0.5
            save_file({**tensors, names[0]: weight}, file, metadata)
            return folder
    raise AssertionError('no such weight')


def test_other_weights_are_refused(changed_checkpoint, capsys, tmp_path):
    result = run_dense(capsys, tmp_path, PUT, '--checkpoint', str(changed_checkpoint))
    assert result.code == 1
    assert '--other-checkpoint' in result.text and not result.lines


def test_one_changed_weight_fails(changed_checkpoint, capsys, tmp_path):
    arguments = ('--checkpoint', str(changed_checkpoint), '--other-checkpoint')
    assert first_failure(run_dense(capsys, tmp_path, PUT, *arguments)) == 0


def test_one_changed_position_id_fails(monkeypatch, capsys, tmp_path):
    from vla_prune_ros.vla import decoder

    real = decoder.rope_table

    def shifted(position_ids, *rest):
        position_ids = position_ids.clone()
        position_ids[..., 7] += 1
        return real(position_ids, *rest)

    monkeypatch.setattr(decoder, 'rope_table', shifted)
    assert first_failure(run_dense(capsys, tmp_path)) == 0


def test_the_same_resize_filter_in_other_arithmetic_fails(monkeypatch, capsys, tmp_path):
    from PIL import Image

    from vla_prune_ros.vla import pictures

    def lanczos(image, size):
        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))

    monkeypatch.setattr(pictures, 'resize', lanczos)
    assert first_failure(run_dense(capsys, tmp_path)) == 0


def test_a_dropped_frame_fails_at_its_tick(capsys, tmp_path):
    stamps = []

    def change(topic, time, message):
        if topic == '/wrist/image_raw':
            stamps.append(time)
            if len(stamps) == 5:
                return []
        return [(topic, time, message)]

    bag = rewrite(PUT, tmp_path / 'bag', change)
    shutil.copytree(PUT / 'golden', bag / 'golden')
    result = run_dense(capsys, tmp_path, bag)
    assert first_failure(result) == 4
    assert 'missing' in result.text


def test_a_dropped_frame_between_two_ticks_fails_at_the_next(capsys, tmp_path):
    """Even if this frame has no influence on the actions."""
    seen = []

    def change(topic, time, message):
        if topic == '/agentview/image_raw':
            seen.append(time)
            if len(seen) == 4 * 8 + 3:
                return []
        return [(topic, time, message)]

    bag = rewrite(PICK, tmp_path / 'bag', change)
    shutil.copytree(PICK / 'golden', bag / 'golden')
    arguments = ('--modes', 'specprune', '--tiers', 'T1', *ELSEWHERE)
    result = replay(capsys, tmp_path, bag, *arguments)
    assert first_failure(result) == 5
    assert 'other inputs' in result.text


def test_swapped_cameras_fail(capsys, tmp_path):
    arguments = [
        f'--remap=/{a}/image_raw:={b}/image_raw'
        for a, b in (('agentview', 'wrist'), ('wrist', 'agentview'))
    ]
    assert first_failure(run_dense(capsys, tmp_path, PUT, *arguments)) == 0


def test_a_stale_cache_fails_where_it_begins(monkeypatch, capsys, tmp_path):
    from vla_prune_ros.policy import VLAPolicy

    real = VLAPolicy.reset

    def forgetful(self, reason='reset'):
        if reason != 'instruction':
            real(self, reason)

    monkeypatch.setattr(VLAPolicy, 'reset', forgetful)
    arguments = ('--modes', 'vla_cache', '--tiers', 'T1', *ELSEWHERE)
    assert first_failure(replay(capsys, tmp_path, PUT, *arguments)) == 6


# -- what the policy says it looked at -----------------------------------------------------------
def with_words(tmp_path, forget=(), invent=()):
    """The golden bag with `between` and `executed` in its statistics, as the node gives them.

    The frames at the stamps `forget` are left out of the words; `invent` is said in addition, at
    the sixth tick.
    """
    with Bag(PICK) as bag:
        track = recorded_track(bag, FeedSettings())
        ticks = list(Feed(bag, FeedSettings(), track.stamps))
    between = {t.observation.stamp: [f.stamp for f in t.between] for t in ticks}
    sixth = ticks[5].observation.stamp
    between[sixth] = [*invent, *between[sixth]]

    def change(topic, time, message):
        if topic == '/vla_policy/inference_stats':
            stamp = to_ns(message.header.stamp)
            words = ' '.join(str(t) for t in between[stamp] if t not in forget)
            message.status[0].values += [
                KeyValue(key='between', value=words), KeyValue(key='executed', value=str(stamp)),
            ]  # fmt: skip
        return [(topic, time, message)]

    bag = rewrite(PICK, tmp_path / 'bag', change)
    shutil.copytree(PICK / 'golden', bag / 'golden')
    return bag, ticks


def feed_of(path):
    with Bag(path) as bag:
        track = recorded_track(bag, FeedSettings())
        assert track.seen
        feed = Feed(bag, FeedSettings(), track.stamps, track.seen)
        return list(feed), feed


def test_a_recording_that_says_what_was_looked_at_gives_the_same_ticks(capsys, tmp_path):
    bag, ticks = with_words(tmp_path)
    again, _ = feed_of(bag)
    digests = [[inputs_digest(values_of(tick)) for tick in run] for run in (ticks, again)]
    assert digests[0] == digests[1]
    arguments = ('--modes', 'recorded,specprune', '--tiers', 'T1', *ELSEWHERE)
    assert replay(capsys, tmp_path, bag, *arguments).code == 0


def test_a_frame_that_the_policy_did_not_see_is_not_shown(tmp_path):
    """It reached the recorder, but the policy too late."""
    _, ticks = with_words(tmp_path / 'one')
    lost = ticks[4].between[2].stamp
    bag, _ = with_words(tmp_path / 'two', forget=[lost])
    again, feed = feed_of(bag)
    shown = [[frame.stamp for frame in tick.between] for tick in again]
    wanted = [[frame.stamp for frame in tick.between if frame.stamp != lost] for tick in ticks]
    assert shown == wanted and not feed.missing
    again, _ = feed_of(bag)  # as often as wanted
    assert len(again) == len(ticks)


def test_a_frame_that_the_policy_saw_and_the_bag_lacks_fails(capsys, tmp_path):
    bag, _ = with_words(tmp_path, invent=[12_345_678_901])
    result = replay(capsys, tmp_path, bag, '--tiers', 'T1', *ELSEWHERE)
    assert result.code == 1
    assert '1 messages that the policy used are not in the bag' in result.text
    assert '12.345678901 s' in result.text


def test_the_checkpoint_is_held_once(capsys, tmp_path, monkeypatch):
    from vla_prune_ros.bags import run

    loaded, load = [], run.load
    monkeypatch.setattr(run, 'load', lambda setup: loaded.append(setup) or load(setup))
    from vla_prune_ros.bags.replay import main

    arguments = ['--modes', 'none,fastv', '--limit', '2', '--no-plots', *ELSEWHERE]
    assert main([str(PUT), '--out', str(tmp_path / 'out'), *arguments]) == 0
    assert len(loaded) == 1, capsys.readouterr()


def test_parameters_come_from_a_file_of_the_node(capsys, tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text('vla_policy:\n  ros__parameters:\n    cameras: [wrist, agentview]\n')
    swapped = run_dense(capsys, tmp_path, PUT, '--params-file', str(file))
    assert first_failure(swapped) == 0
    both = ('--params-file', str(file), '-p', 'cameras:=[agentview, wrist]')
    assert run_dense(capsys, tmp_path, PUT, *both).code == 0


# -- golden values -------------------------------------------------------------------------------
def test_update_golden_shows_the_differences_first(changed_checkpoint, capsys, tmp_path):
    bag = shutil.copytree(PUT, tmp_path / 'bag')
    inputs = (bag / 'put_on_plate.mcap').read_bytes()
    before = (bag / 'golden' / 'golden.mcap').read_bytes()
    update = ('--modes', 'none', '--update-golden', '--tiers', 'T1', '--checkpoint',
              str(changed_checkpoint))  # fmt: skip
    shown = replay(capsys, tmp_path, bag, *update, '--dry-run')
    assert '| none' in shown.text and (bag / 'golden' / 'golden.mcap').read_bytes() == before
    written = replay(capsys, tmp_path, bag, *update)
    assert written.code == 0, written.text
    assert written.text.index('| none') < written.text.index('written to')
    assert (bag / 'put_on_plate.mcap').read_bytes() == inputs
    checkpoint = ('--checkpoint', str(changed_checkpoint))
    assert run_dense(capsys, tmp_path, bag, *checkpoint).code == 0
    others = ('--modes', 'fastv', '--tiers', 'T1', *ELSEWHERE)  # were left alone
    assert replay(capsys, tmp_path, bag, *others).code == 0


def test_golden_values_that_are_missing_are_asked_for(capsys, tmp_path):
    bag = rewrite(PUT, tmp_path / 'bag', without=OUTPUTS)
    result = run_dense(capsys, tmp_path, bag)
    assert result.code == 1
    assert 'no golden values of none' in result.text and '--update-golden' in result.text


def test_a_recording_that_lost_a_chunk_does_not_pass(capsys, tmp_path):
    chunks = []

    def change(topic, time, message):
        chunks.append(topic) if topic == '/action_chunk' else None
        lost = topic == '/action_chunk' and len(chunks) == 3
        return [] if lost else [(topic, time, message)]

    bag = rewrite(PUT, tmp_path / 'bag', change)
    result = replay(capsys, tmp_path, bag, '--tiers', 'T1', *ELSEWHERE)
    assert result.code == 1
    assert 'the reference is incomplete: the chunk with the stamp' in result.text


def test_results_are_never_written_over(capsys, tmp_path):
    (tmp_path / 'out0').mkdir()
    (tmp_path / 'out0' / 'mine.txt').write_text('mine')
    from vla_prune_ros.bags.replay import main

    assert main([str(PUT), '--out', str(tmp_path / 'out0'), '--tiers', 'T1', *ELSEWHERE]) == 1
    assert 'never written over' in capsys.readouterr().err
    assert [p.name for p in (tmp_path / 'out0').iterdir()] == ['mine.txt']


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['--modes', 'nonsense'], 'nonsense'),
        (['--tiers', 'T7'], 'T7'),
        (['--remap', 'a=b'], 'TOPIC:=NAME'),
        (['--compare', 'yesterday'], 'yesterday'),
        (['--switch', 'x=none'], 'TICK=MODE'),
        (['--atol', '-1'], 'tolerance'),
        (['--dry-run'], '--update-golden'),
        (['-p', 'camera:=a'], 'cameras'),
        (['-p', 'control_rate:=fast'], 'control_rate'),
        (['-p', 'trigger:=never'], 'observation, request'),
        (['--params-file', 'nowhere.yaml'], 'nowhere.yaml'),
    ],
)
def test_bad_arguments_are_refused(arguments, reason, capsys, tmp_path):
    result = replay(capsys, tmp_path, PUT, *arguments)
    assert result.code == 2
    assert reason in result.text and not result.lines


def test_a_bag_that_is_not_there_is_a_usage_error(capsys, tmp_path):
    assert replay(capsys, tmp_path, tmp_path / 'nowhere').code == 2


def test_the_commands_of_the_page_exist():
    from pathlib import Path

    from vla_prune_ros.bags import record, replay
    from vla_prune_ros.trials import demo

    parsers = {'replay': replay.parser(), 'record': record.parser(), 'demo': demo.parser()}
    text = (Path(__file__).parents[1] / 'doc' / 'bags.md').read_text()
    lines = [line.partition('#')[0].split() for line in text.splitlines() if './run ' in line]
    commands = [line for line in lines if line[:1] == ['./run'] and '[--modes' not in line]
    assert {command[1] for command in commands} == {'replay', 'demo'}
    for _, verb, *arguments in commands:
        parsers[verb].parse_args(arguments)
    options = set(re.findall(r'`(--[a-z-]+)', text))
    known = {o for p in parsers.values() for a in p._actions for o in a.option_strings}
    of_others = {
        *('--exclude-topics', '--clock-topics-all', '--topics', '--clock', '--delay'),
        '--qos-profile-overrides-path',
    }
    assert options - of_others <= known
