# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`train data`: is my data right? Numbers, a picture, every bad file with its cure, exit code."""

import json

import numpy as np
import pytest
from datasets_tools import GOLDEN, small, steps_of, write_aloha, write_libero, write_rlds
from PIL import Image
from tiny import tiny_checkpoint, variant

from vla_prune_ros import weights
from vla_prune_ros.datasets import Store
from vla_prune_ros.training import data_report
from vla_prune_ros.training.options import _stores
from vla_prune_ros.training.train import build_parser, main
from vla_prune_ros.vla.variant import KEYS

pytest.importorskip('h5py', reason='h5py is not installed')


def look(capsys, path, out, *arguments):
    """Exit code, what was printed, and what was written."""
    code = main(['data', str(path), '--out', str(out), *arguments])
    captured = capsys.readouterr()
    files = list(out.glob('*.json'))
    written = json.loads(files[0].read_text()) if files else None
    return code, captured.out + captured.err, written


def test_good_data_is_described(capsys, tmp_path):
    (tmp_path / 'set').mkdir()
    write_libero(tmp_path / 'set/lift_the_cup_demo.hdf5', [small(k) for k in range(3)])
    code, text, written = look(capsys, tmp_path / 'set', tmp_path / 'out')
    assert code == 0 and 'this data can be trained on' in text
    assert 'set: LIBERO HDF5 (1 HDF5 files with data/demo_*)' in text
    assert '3 episodes, 26 frames, 8 chunks of 8 actions to train on; 20 Hz' in text
    assert 'agentview 24x24, wrist 24x24' in text and '3  lift the cup' in text
    assert 'gripper: open (1) in 46% of the steps, 1.0 changes per episode' in text
    assert 'are they upright' in text and 'warning: 1 episodes are shorter than a chunk' in text
    assert written['samples'] == 8 and written['statistics']['num_transitions'] == 26
    with Image.open(tmp_path / 'out/set.png') as picture:
        assert picture.size[1] > 3 * 160


def test_what_is_bad_is_named_and_the_exit_code_says_it(capsys, tmp_path):
    (tmp_path / 'set').mkdir()
    whole = write_libero(tmp_path / 'set/a_demo.hdf5', [small(0)]).read_bytes()
    (tmp_path / 'set/b_demo.hdf5').write_bytes(whole[: len(whole) // 2])
    broken = small(2)
    broken.proprio[4, 2] = np.nan
    write_libero(tmp_path / 'set/c_demo.hdf5', [small(2), broken])
    code, text, written = look(capsys, tmp_path / 'set', tmp_path / 'out')
    assert code == 1 and 'this data cannot be trained on as it is' in text
    assert 'ERROR: ' in text and 'b_demo.hdf5: no HDF5 can be read' in text
    assert 'episode c_demo/demo_1, step 4: number 2 of the state is nan' in text
    first, second = written['errors']
    assert first['cure'].startswith('copy or download') and second['step'] == 4
    assert written['episodes'] == 2


def test_a_checkpoint_says_what_it_expects(capsys, tmp_path):
    (tmp_path / 'set').mkdir()
    write_libero(tmp_path / 'set/a_demo.hdf5', [small(0)])
    checkpoint = str(weights.directory('tabletop'))
    code, text, _ = look(capsys, tmp_path / 'set', tmp_path / 'out', '--checkpoint', checkpoint)
    assert code == 0, text
    assert 'warning: set: proprio number 0 is in' in text and 'the heads were trained for' in text
    one = look(
        capsys, tmp_path / 'set', tmp_path / 'one', '--checkpoint', checkpoint,
        '--cameras', 'agentview=agentview_rgb',
    )  # fmt: skip
    assert one[0] == 1 and '1 cameras (agentview), the checkpoint takes 2; name them' in one[1]
    write_aloha(tmp_path / 'aloha/episode_0.hdf5')
    code, text, written = look(
        capsys, tmp_path / 'aloha', tmp_path / 'two', '--checkpoint', checkpoint
    )
    assert code == 1 and 'action has 14 numbers, the checkpoint takes 7; name another key' in text
    assert '3 cameras (cam_high, cam_left_wrist, cam_right_wrist), the checkpoint takes 2' in text
    assert len(written['unfit']) == 3
    bare = tiny_checkpoint(tmp_path / 'bare', **variant('aloha'))
    path = bare / 'config.json'
    said = {k: v for k, v in json.loads(path.read_text()).items() if k not in KEYS}
    path.write_text(json.dumps(said))
    options = (tmp_path / 'aloha', tmp_path / 'three', '--chunk', '8', '--checkpoint', str(bare))
    assert look(capsys, *options, '--variant', 'aloha')[0] == 0, 'as it is declared'
    for file in bare.glob('*.pt'):
        file.unlink()
    code, text, _ = look(capsys, *options)
    assert code == 0 and f'{bare} has no head: it becomes what' in text


def test_every_picture_is_looked_at_if_it_is_wanted(capsys, tmp_path):
    pytest.importorskip('google_crc32c', reason='google-crc32c is not installed')
    steps = steps_of(small(0))
    steps['steps/observation/wrist_image'][5] = b'\xff\xd8cut off'
    folder = write_rlds(tmp_path / 'set', [steps, steps_of(small(2))])
    assert look(capsys, folder, tmp_path / 'out')[0] == 0
    code, text, _ = look(capsys, folder, tmp_path / 'out', '--every-picture')
    assert code == 1 and 'train-00000/0, step 5: a picture of wrist cannot be decoded' in text


def test_a_checkpoint_that_is_not_there_is_no_checkpoint_without_a_head(capsys, tmp_path):
    (tmp_path / 'set').mkdir()
    write_libero(tmp_path / 'set/a_demo.hdf5', [small(0)])
    missing = str(tmp_path / 'nowhere')
    code, text, _ = look(capsys, tmp_path / 'set', tmp_path / 'out', '--checkpoint', missing)
    assert (code, text) == (1, f'train: no config.json in checkpoint directory {missing}\n')


def test_a_folder_that_cannot_be_made_is_said_before_the_data_is_read(
    capsys, tmp_path, monkeypatch
):
    (tmp_path / 'set').mkdir()
    write_libero(tmp_path / 'set/a_demo.hdf5', [small(0)])
    (tmp_path / 'file').touch()
    monkeypatch.setattr(data_report, 'look_at', lambda *_, **__: pytest.fail('was read'))
    code, text, _ = look(capsys, tmp_path / 'set', tmp_path / 'file/out')
    assert code == 1 and text.startswith('train: ') and str(tmp_path / 'file/out') in text


def test_nothing_known_and_wrong_options(capsys, tmp_path):
    code, text, _ = look(capsys, tmp_path, tmp_path / 'out')
    assert code == 1 and text.startswith(f'train: {tmp_path}: no data set was found here; looked')
    code, text, _ = look(
        capsys, GOLDEN / 'libero10_no_noops', tmp_path / 'out', '--gripper', 'policy'
    )
    assert code == 1 and 'the gripper goes from -1 to 1, which is not the convention poli' in text
    assert 'say which one with --gripper' in text


def test_another_rate_and_a_state_that_nobody_takes(capsys, tmp_path):
    (tmp_path / 'set').mkdir()
    write_libero(tmp_path / 'set/a_demo.hdf5', [small(0)])
    start = tiny_checkpoint(tmp_path / 'start', proprio_dim=0, control_rate=10.0)
    statistics = start / 'dataset_statistics.json'
    known = json.loads(statistics.read_text())
    for entry in known.values():
        entry['proprio'] = {key: [0.0] * 5 for key in entry['action'] if key != 'mask'}
    statistics.write_text(json.dumps(known))
    code, text, _ = look(capsys, tmp_path / 'set', tmp_path / 'out', '--checkpoint', str(start))
    assert code == 0, text
    assert 'warning: set: actions at 20 Hz, those of the policy are at 10 Hz' in text
    code, text, _ = look(
        capsys, tmp_path / 'set', tmp_path / 'two', '--checkpoint', str(start), '--rate', '10'
    )
    assert code == 0 and 'Hz, those of' not in text


def test_data_sets_with_names_that_begin_alike_get_stores_of_their_own(tmp_path):
    for name, number in (('put_1', 0), ('put', 2)):
        (tmp_path / name).mkdir()
        write_libero(tmp_path / name / 'lift_the_cup_demo.hdf5', [small(number)])
    paths = [str(tmp_path / 'put_1'), str(tmp_path / 'put'), str(tmp_path / 'put')]
    args = ['oft', '--start', str(tmp_path), '--out', str(tmp_path / 'out'), '--data', *paths]
    stores = _stores(build_parser().parse_args(args), None)
    assert [path.name for path in stores] == ['put_1', 'put', 'put_2']
    assert [Store(path).name for path in stores] == ['put_1', 'put', 'put']
