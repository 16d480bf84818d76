# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark: same queries for all arms, floors and counts by hand, and what it writes.

Nothing here depends on how fast the machine is.
"""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import INSTRUCTIONS

from vla_prune_ros.benchmark import bench
from vla_prune_ros.benchmark import roofline as bench_roofline
from vla_prune_ros.benchmark.cards import CARDS, FORMATS, decoder_floor, floor_table
from vla_prune_ros.benchmark.page import markdown
from vla_prune_ros.benchmark.profile import pauses
from vla_prune_ros.benchmark.report import SCHEMA, main_table, short_table, targets
from vla_prune_ros.benchmark.roofline import Machine, floors, measure_machine
from vla_prune_ros.benchmark.run import Arm
from vla_prune_ros.benchmark.scene import (
    make_queries,
    synthetic_queries,
    tabletop_queries,
)
from vla_prune_ros.benchmark.startup import import_time
from vla_prune_ros.evaluation.entries import make_entries
from vla_prune_ros.evaluation.flops import (
    LayerWork,
    PassWork,
    Product,
    query_flops,
    query_products,
)
from vla_prune_ros.evaluation.plots import latency_by_stage
from vla_prune_ros.policy import VLAPolicy
from vla_prune_ros.pruning import MODES
from vla_prune_ros.trials import realtime
from vla_prune_ros.vla.config import LlamaConfig, OpenVLAConfig, TowerConfig
from vla_prune_ros.vla.selection import TokenLayout

PAGE = Path(__file__).parents[1] / 'doc' / 'benchmark.md'
FLOAT32, BFLOAT16 = (dict.fromkeys(('vision', 'decoder', 'head'), size) for size in (4.0, 2.0))
SMALL_WORK = OpenVLAConfig(
    featurizer=TowerConfig(24, 3, 2, 40, 14, 28, class_token=True),
    fused_featurizer=TowerConfig(16, 2, 2, 36, 14, 28),
    llama=LlamaConfig(32, 3, 4, 48, 60),
)


# -- frames ------------------------------------------------------------------------------------
@pytest.mark.parametrize('make', [synthetic_queries, tabletop_queries])
def test_frames_change_as_on_a_robot(make):
    queries = make(4, horizon=8)
    assert queries[0].first
    for query in queries:
        assert [image.shape for image in query.images.values()] == [(256, 256, 3)] * 2
    before, after = queries[1], queries[2]
    assert len(after.between) == 7 and after.executed.shape == (8, 7)
    assert after.stamp - before.stamp == pytest.approx(0.4)
    # The fixed camera sees a scene of which a part changed, neither none nor all of it.
    still = np.stack([q.images['agentview'][:252, :252] for q in (before, after)])
    changed = (still[0] != still[1]).any(-1).mean()
    assert 0.0 < changed < 0.6


def test_frames_and_actions_are_the_same_at_every_call():
    first, second = (make_queries('synthetic', 5)[1] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.images['wrist'], other.images['wrist'])
    last = second[-1].executed
    assert last.shape == (8, 7) and np.abs(last[:, :6]).max() <= 1.0


@pytest.mark.parametrize('make', [synthetic_queries, tabletop_queries])
def test_every_step_between_two_queries_is_in_the_history(make, checkpoint):
    policy = VLAPolicy.from_pretrained(checkpoint, 'specprune')
    arm = Arm('specprune', policy, 'specprune')
    for query in make(4):
        arm.lead_to(query)
        chunk = arm.answer(query, INSTRUCTIONS[0])
        steps = [frame.step for frame in policy.history.frames]
        newest = policy.history.step
        assert steps == [*range(max(0, newest - 15), newest + 1)]
        # At most base 7 and offset 4 back, at least to the last query.
        assert chunk.stats['dense'] or 8 <= chunk.stats['reference_distance'] <= 11


# -- floors ------------------------------------------------------------------------------------
def test_products_add_up_to_the_flops_of_a_query():
    layout = TokenLayout(2, 4, 9, SMALL_WORK.n_placeholders)
    n = layout.length
    layers = (LayerWork(n, n), LayerWork(n - 3, n, score_products=40),
              LayerWork(0, 0))  # fmt: skip
    work = PassWork(layout, layers)
    flops = query_flops(SMALL_WORK, work)
    summed: dict[str, int] = {}
    for product in query_products(SMALL_WORK, work):
        summed[product.stage] = summed.get(product.stage, 0) + product.flops
    state = 2 * (8 * 32 + 32 * 32)  # the robot state is projected in the decoder's stage
    assert summed['vision'] == flops['vision'] + flops['projectors'] - state
    assert summed['decoder'] == flops['decoder'] + state
    assert summed['head'] == flops['head']


def test_weights_are_read_once_whatever_the_number_of_rows():
    n_numbers = []
    for keep in (8, 1):
        layout = TokenLayout(2, 4, 9, SMALL_WORK.n_placeholders)
        rows = layout.length - 8 + keep
        work = PassWork(layout, (LayerWork(rows, rows),) * 3)
        products = query_products(SMALL_WORK, work)
        n_numbers.append(sum(p.weights for p in products if p.stage == 'decoder'))
    d, mlp = 32, 48
    assert n_numbers[0] == n_numbers[1] == 3 * (4 * d * d + 3 * d * mlp) + 8 * d + d * d


def test_a_floor_is_the_longer_of_reading_and_computing():
    machine = Machine(flops=1e9, bandwidth=1e6)
    assert machine.floor(flops=2e6, weight_bytes=1e3) == pytest.approx(2.0)
    assert machine.floor(flops=2e6, weight_bytes=4e3) == pytest.approx(4.0)
    layout = TokenLayout(2, 4, 9, SMALL_WORK.n_placeholders)
    work = PassWork(layout, (LayerWork(layout.length, layout.length),) * 3)
    slow = floors(SMALL_WORK, work, machine, FLOAT32)
    assert slow['total'] == pytest.approx(slow['vision'] + slow['decoder'] + slow['head'])
    wide = floors(SMALL_WORK, work, Machine(1e30, 1e6), BFLOAT16)
    read = sum(p.weights for p in query_products(SMALL_WORK, work)) * 2.0 / 1e6 * 1e3
    assert wide['total'] == pytest.approx(read)


def test_published_model_has_the_known_floor():
    # By arithmetic at 790 TFLOP/s and 3.0 TB/s: 601 tokens take 11.3 ms in all, of them 10.1 in
    # the decoder; at 167 tokens (78 visual ones) the decoder is read-bound with 4.61 ms.
    h100 = Machine(790e12, 3.0e12)
    config = OpenVLAConfig()
    layout = TokenLayout(2, 256, 31, 56)
    full = floors(config, PassWork(layout, (LayerWork(601, 601),) * 32), h100, BFLOAT16)
    assert full['decoder'] == pytest.approx(10.09, abs=0.03)
    assert full['total'] == pytest.approx(11.3, abs=0.1)
    pruned = floors(config, PassWork(layout, (LayerWork(167, 167),) * 32), h100, BFLOAT16)
    # Our table counts activations, too: 4.3 ms of weights alone.
    assert pruned['decoder'] == pytest.approx(6.476e9 * 2 / 3.0e12 * 1e3, rel=0.02)
    first = next(iter(query_products(config, PassWork(layout, ()))))
    assert first == Product('vision', 2 * 512 * 588 * 1024, 588 * 1024)


def test_a_machine_has_rates():
    one, other = measure_machine('cpu', torch.float32, 0.01), Machine(1.0, 1e30)
    assert one.flops > 1e6 and one.bandwidth > 1e6
    assert one.better(other) == Machine(one.flops, 1e30)


# -- the whole ---------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp('bench')
    code = bench.main([
        '--size', 'tiny', '--threads', '1', '--ticks', '3', '--warm-up', '2',
        '--frames', 'synthetic', '--variant', 'half=random,keep_ratio=0.5',
        '--out', str(out),
    ])  # fmt: skip
    assert code == 0
    return out, json.loads((out / 'results.json').read_text())


def test_every_mode_is_measured_beside_both_plain_paths(written):
    _, content = written
    assert content['schema'] == SCHEMA
    names = [row['name'] for row in content['arms']]
    assert names == ['eager', 'released', *('dense' if m == 'none' else m for m in MODES), 'half']
    for row in content['arms']:
        assert row['latency_ms']['total']['n'] == 3
        stages = sum(v['p50'] for s, v in row['latency_ms'].items() if s != 'total')
        assert stages > 0
        assert row['floor_ms']['total'] > 0 and row['flops_total'] > 0
        for ratios in (row['faster_than'], row['less_processor_time']):
            assert ratios.keys() == {'eager', 'released', 'dense'}
        assert row['memory_bytes']['weights'] > 0


def test_rows_say_what_was_promised(written):
    _, content = written
    rows = {row['name']: row for row in content['arms']}
    assert rows['dense']['promised'] == rows['dense']['faster_than']['dense'] == 1.0
    assert rows['dense']['visual_rows_per_layer'] == [32] * 8
    assert rows['lightvla']['options'] == {'keep': 5}  # 78 of 512
    assert rows['lightvla']['visual_rows_per_layer'] == [5] * 8
    for name in ('specprune', 'lightvla', 'efficient_vla', 'fastv', 'half'):
        row = rows[name]
        assert row['promised'] > 1.0
        share = row['faster_than']['dense'] / row['promised']
        assert row['share_of_promise'] == pytest.approx(share)
    assert rows['eager']['flops_total'] > rows['dense']['flops_total']
    assert rows['eager']['promised'] is None


def test_the_run_says_where_it_was_made(written):
    _, content = written
    run = content['run']
    assert run['command'].startswith('python -m vla_prune_ros bench --size tiny')
    assert (run['threads'], run['frames'], run['ticks']) == (1, 'synthetic', 3)
    assert run['machine']['flops'] > 0 and len(run['load_average']) == 2
    assert run['tokens'] == 32 + run['prompt_tokens'] + 56 + 2
    assert {t['state'] for t in content['targets']} == {'not measured'}


def test_page_and_chart_are_written(written):
    out, content = written
    page = (out / 'report.md').read_text()
    for row in content['arms']:
        assert f'| {row["name"]}' in page
    assert 'dense = 1' in page and ' ms' not in main_table(content['arms'], relative=True)
    assert (out / 'latency.png').stat().st_size > 1000


def test_on_a_gpu_times_are_in_milliseconds(written, tmp_path):
    _, content = written
    run = content['run'] | {'device': 'cuda', 'note': 'not really'}
    text = markdown(run, content['arms'], content['targets'], {}, relative=False)
    dense = next(row for row in content['arms'] if row['name'] == 'dense')
    total = dense['latency_ms']['total']
    assert 'p50 (ms)' in text
    assert re.search(rf'{total["p50"]:.2f} \| +{total["p95"]:.2f}', text)
    assert 'not really' in text and 'Processor time' not in text
    latency_by_stage(content['arms'], tmp_path / 'chart.png', title='a GPU')
    assert (tmp_path / 'chart.png').stat().st_size > 1000


def test_a_run_can_be_shown_again_and_quoted_by_a_page(written, tmp_path):
    out, content = written
    again = tmp_path / 'again'
    again.mkdir()
    shutil.copy(out / 'results.json', again)
    page = tmp_path / 'page.md'
    page.write_text('# A page\n<!-- bench again -->\nold\n<!-- end -->\nbelow\n')
    assert bench.main(['--show', str(again), '--page', str(page)]) == 0
    assert (again / 'report.md').read_text() == (out / 'report.md').read_text()
    assert (again / 'latency.png').stat().st_size > 1000
    quoted = short_table(content['arms'])
    assert '| x eager |' in quoted and '| half ' in quoted
    expected = f'# A page\n<!-- bench again -->\n{quoted}\n<!-- end -->\nbelow\n'
    assert page.read_text() == expected


def test_what_cannot_be_shown_is_refused(written, tmp_path, capsys):
    out, content = written
    page = tmp_path / 'page.md'
    page.write_text('no place')
    assert bench.main(['--show', str(out), '--page', str(page)]) == 2
    assert bench.main(['--show', str(tmp_path)]) == 2
    (tmp_path / 'results.json').write_text(json.dumps({**content, 'schema': 'other'}))
    assert bench.main(['--show', str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert '<!-- bench' in errors and 'No such file' in errors and SCHEMA in errors


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--ticks', '1', '--warm-up', '0'), 'begin an episode'),
        (('--ticks', '0'), 'from 1 on'),
        (('--warm-up', '-1'), 'from 0 on'),
        (('--layers', '0'), 'from 1 on'),
        (('--threads', '-1'), 'from 0 on'),
        (('--unnorm-key', 'x'), '--unnorm-key is for'),
        (('--out', '/proc/nowhere'), '/proc/nowhere'),
        pytest.param(
            ('--device', 'cuda'), 'no GPU',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU'),
        ),
    ],
)  # fmt: skip
def test_impossible_arguments_end_in_one_line_before_anything_is_measured(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(bench_roofline, 'measure_machine', lambda *_: pytest.fail('measured'))
    common = ['--size', 'tiny', '--frames', 'synthetic', '--modes', 'none', '--no-reference']
    try:
        code = bench.main([*common, '--out', str(tmp_path), *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_measured_is_refused(capsys):
    assert bench.main(['--checkpoint', 'nowhere']) == 2
    assert bench.main(['--size', 'huge']) == 2
    assert bench.main(['--size', 'tiny', '--checkpoint', 'tabletop']) == 2
    assert bench.main(['--size', 'tiny', '--dtype', 'int8']) == 2
    errors = capsys.readouterr().err
    assert 'tiny, small, 7b' in errors and 'not both' in errors


def test_an_embedded_policy_can_be_measured(tmp_path, known_machine):
    code = bench.main([
        '--checkpoint', 'tabletop', '--modes', 'none', '--no-reference', '--ticks', '1',
        '--warm-up', '1', '--frames', 'synthetic', '--threads', '1', '--out', str(tmp_path),
    ])  # fmt: skip
    assert code == 0
    content = json.loads((tmp_path / 'results.json').read_text())
    assert content['run']['size'] is None and content['run']['visual_tokens'] == 128


@pytest.fixture
def known_machine(monkeypatch):
    """Spares the seconds of measuring it once more."""
    monkeypatch.setattr(bench_roofline, 'measure_machine', lambda *_: Machine(1e11, 1e10))


def test_traces_tell_work_from_pauses(tmp_path, known_machine):
    code = bench.main([
        '--size', 'tiny', '--modes', 'none', '--no-reference', '--ticks', '1', '--warm-up', '1',
        '--frames', 'synthetic', '--threads', '1', '--profile', '--out', str(tmp_path),
    ])  # fmt: skip
    assert code == 0
    assert (tmp_path / 'trace_dense.json.gz').exists()
    one = json.loads((tmp_path / 'results.json').read_text())['profiles']['dense']
    assert 0 < one['busy_ms'] <= one['wall_ms'] and one['launches'] > 50 and one['top']
    assert '## Profile' in (tmp_path / 'report.md').read_text()


def test_work_is_counted_beside_recorded_stages(tmp_path, known_machine, stand_in):
    code = bench.main([
        '--size', 'tiny', '--modes', 'none,lightvla', '--no-reference', '--ticks', '1',
        '--warm-up', '2', '--frames', 'synthetic', '--threads', '1', '--runtime', 'graphs',
        '--out', str(tmp_path),
    ])  # fmt: skip
    assert code == 0
    dense, lightvla = json.loads((tmp_path / 'results.json').read_text())['arms']
    assert lightvla['visual_rows_per_layer'] == [5] * 8
    assert lightvla['flops_total'] < dense['flops_total']
    assert dense['runtime']['runtime'] == 'graphs' and dense['runtime']['replays'] > 0


def test_plain_paths_keep_weights_that_compile_has_packed(monkeypatch):
    # What `compile` does to the weights on a GPU, without the compiler.
    monkeypatch.setattr(
        'vla_prune_ros.runtime.engine.compile_layers', lambda model: model.decoder.pack()
    )
    args = bench.parser().parse_args(['--size', 'tiny', '--modes', 'none', '--runtime', 'compile'])
    arms = bench.make_arms(args, bench.make_subject(args, torch.float32), torch.float32)
    query = make_queries('synthetic', 1)[1][0]
    eager, _, dense = (arm.answer(query, 'pick up the bowl') for arm in arms)
    np.testing.assert_allclose(eager.actions, dense.actions, rtol=0, atol=1e-4)


# -- targets -----------------------------------------------------------------------------------
def row(name, ms, **more):
    return {'name': name, 'latency_ms': {'total': {'p50': ms}}, **more}


def test_targets_are_met_or_not_only_where_they_apply():
    rows = [
        row('dense', 14.0, faster_than={'eager': 3.0}),
        row('specprune', 9.5, faster_than={'dense': 1.45, 'eager': 4.5}, share_of_promise=0.7),
        row('lightvla', 6.0, faster_than={'dense': 1.8, 'eager': 5.0}, share_of_promise=0.9),
    ]
    run = {'size': '7b', 'device': 'cuda', 'dtype': 'bfloat16', 'quantization': 'default'}
    unknown = 'not measured'
    assert [t['state'] for t in targets(rows, run)] == [
        'met', 'not met', 'met', unknown, unknown, 'not met', 'met', 'met', 'met', *[unknown] * 3
    ]  # fmt: skip
    eight = [t['state'] for t in targets(rows, {**run, 'quantization': 'fp8'})]
    assert eight == [*[unknown] * 3, 'not met', 'met', *[unknown] * 7]
    small = {'size': 'small', 'device': 'cpu', 'dtype': 'float32'}
    states = [t['state'] for t in targets(rows, small)]
    assert states == [*[unknown] * 9, 'met', 'not met', 'met']
    elsewhere = {'size': None, 'device': 'cpu', 'dtype': 'float32'}
    assert {t['state'] for t in targets(rows, elsewhere)} == {unknown}


# -- floors of other cards ---------------------------------------------------------------------
def test_floors_of_other_cards_follow_from_their_rates():
    # Products of 32 layers by hand: 6.476e9 weights, 601 or 167 rows; attention comes on top.
    for name, dense, pruned in (('H100', 9.9, 4.3), ('RTX 4090', 47, 13), ('Thor', 47, 47)):
        assert decoder_floor(CARDS[name], 512, 2.0, False) == pytest.approx(dense, rel=0.04)
        assert decoder_floor(CARDS[name], 78, 2.0, False) == pytest.approx(pruned, rel=0.04)
    assert decoder_floor(CARDS['Thor'], 78, *FORMATS['4-bit weights, 8-bit products']) < 13


def test_floors_of_the_page_are_those_of_the_code():
    text = PAGE.read_text(encoding='utf-8')
    assert f'<!-- bench floors -->\n{floor_table(CARDS)}\n<!-- end -->' in text


def test_the_machine_at_hand_is_measured_beside_them(capsys):
    assert bench.main(['--floors']) == 0
    said = capsys.readouterr().out
    assert 'this machine (cpu)' in said and '| this machine' in said and '| Thor' in said


# -- profile and start-up ----------------------------------------------------------------------
@pytest.mark.parametrize('order', [*itertools.permutations([(0, 4), (1, 2), (6, 9)])])
def test_pauses_are_what_no_span_covers(order):
    assert pauses(order) == (7, [2])


def test_the_package_imports_without_torch_and_says_so():
    assert import_time('vla_prune_ros', 1)['torch'] is False
    assert import_time('vla_prune_ros.vla', 1)['torch'] is True


# -- the page ----------------------------------------------------------------------------------
def commands():
    """Commands in blocks of code and tables."""
    found = re.findall(r'\./run ((?:bench|realtime)[^#`|\n]*)', PAGE.read_text(encoding='utf-8'))
    return sorted({command.strip() for command in found})


def test_there_are_commands_to_check():
    assert len(commands()) >= 5


@pytest.mark.parametrize('command', commands())
def test_commands_of_the_page_are_accepted(command):
    verb, *words = shlex.split(command)
    module = {'bench': bench, 'realtime': realtime}[verb]
    args = module.parser().parse_args(words)
    if verb == 'bench':
        make_entries(args.modes, args.option, args.variant, control='off')


@pytest.mark.parametrize('name', ['small', 'small_bfloat16', 'tabletop'])
def test_figures_of_the_page_are_those_of_the_results(name):
    file = PAGE.parent / 'results' / 'benchmark' / name / 'results.json'
    quoted = short_table(json.loads(file.read_text(encoding='utf-8'))['arms'])
    text = PAGE.read_text(encoding='utf-8')
    assert f'<!-- bench {name} -->\n{quoted}\n<!-- end -->' in text


def test_results_that_the_page_names_are_there():
    linked = re.findall(r'\]\((results/[^)]+)\)', PAGE.read_text(encoding='utf-8'))
    assert linked
    assert [name for name in linked if not (PAGE.parent / name).exists()] == []
