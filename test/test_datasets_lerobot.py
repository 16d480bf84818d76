# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LeRobot: sets of the real library, sets in every layout, and every kind of damage."""

import json

import numpy as np
import pytest
from datasets_tools import (
    GOLDEN,
    KEYS,
    LENGTHS,
    SIZE,
    pixels,
    rows_of,
    small,
    write_lerobot,
    write_table,
    write_video,
)

from vla_prune_ros.datasets import DataError, ReadOptions, open_dataset

pytest.importorskip('pyarrow', reason='pyarrow is not installed')
LAYOUTS = [(v, images) for v in ('v2.0', 'v2.1', 'v3.0') for images in (True, False)]


def needs(images):
    if not images:
        pytest.importorskip('av', reason='av is not installed')


@pytest.mark.parametrize('name', ['v21_image', 'v21_video', 'v30_image', 'v30_video'])
def test_sets_of_the_real_library(name):
    needs('image' in name)
    data = open_dataset(GOLDEN / 'lerobot' / name)
    assert (data.format, data.name, data.rate) == ('lerobot', name, 20.0)
    assert data.cameras == ('agentview', 'wrist')
    lengths = []
    for number, episode in enumerate(data):
        lengths.append(len(episode))
        assert episode.instructions == (['pick up the cup', 'open the drawer'][number // 2],)
        assert episode.actions.shape[1] == 7 and episode.proprio.shape[1] == 8
        assert set(np.unique(episode.actions[:, 6])) <= {0.0, 1.0}
        for camera in data.cameras:
            for t, picture in enumerate(episode.pictures[camera]):
                frame = pixels(picture)
                frame = frame[::-1] if camera == 'wrist' else frame  # rows bottom up
                square = np.arange(2 * t, 2 * t + 8)
                wanted = np.empty((64, 64, 3))
                wanted[..., 0] = np.linspace(0, 255, 64)
                wanted[..., 1] = np.linspace(0, 255, 64)[:, None]
                wanted[..., 2] = 60 * number
                assert np.median(np.abs(frame - wanted)) < 6
                inside = frame[10:22, square[square < 64][1:-1]]
                assert inside.size and inside.mean() > 200, f'{camera} {t}: another frame'
    assert lengths == [12, 7, 30]


@pytest.mark.parametrize(('version', 'images'), LAYOUTS)
def test_what_was_written_is_read(tmp_path, version, images):
    needs(images)
    data = open_dataset(write_lerobot(tmp_path / 'mine', version, images))
    assert data.name == 'mine' and len(data) == 3
    assert data.cameras == ('agentview', 'wrist')
    for number in (2, 0, 1):
        episode, wanted = data.read(number), small(number)
        assert len(episode) == LENGTHS[number] and episode.id == str(number)
        np.testing.assert_array_equal(episode.actions, wanted.policy_actions)
        np.testing.assert_array_equal(episode.proprio, wanted.proprio)
        assert episode.instructions == (wanted.instruction,)
        for view, camera in enumerate(data.cameras):
            pictures = list(episode.pictures[camera])
            assert len(pictures) == len(episode)
            for picture, frame in zip(pictures, wanted.frames[view], strict=True):
                assert picture[:2] == b'\xff\xd8'
                assert np.abs(pixels(picture) - frame).max() < 20
    assert any('gripper: env' in note for note in data.notes)


def test_several_instructions_in_one_episode(tmp_path):
    folder = write_lerobot(tmp_path / 'mine', 'v2.1', True)
    rows = rows_of(0, small(0), 0, True)
    rows['task_index'] = [0] * 4 + [1] * 5
    write_table(folder / 'data/chunk-000/episode_000000.parquet', rows)
    episode = open_dataset(folder).read(0)
    assert episode.instructions == ('lift the cup', 'open the drawer')
    assert episode.segments == ((0, 4), (4, 9)) and episode.starts(4).tolist() == [0, 4, 5]


def rewritten(folder, change):
    """Episode 1 with other rows."""
    rows = rows_of(1, small(1), 9, True)
    change(rows)
    write_table(folder / 'data/chunk-000/episode_000001.parquet', rows)


def at(name, step, value):
    def change(rows):
        rows[name][step] = value

    return change


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            at('timestamp', 2, 0.3),
            r'step 1: 0.2500 s to the next time stamp, where 20 fps say 0.05',
        ),
        (at('timestamp', 3, 0.1), r'step 2: 0.0000 s to the next'),
        (at('frame_index', 2, 5), 'step 2: frame_index is 5; rows are missing'),
        (at('episode_index', 0, 7), 'are of episode 7'),
        (at('task_index', 0, 9), 'task 9 is not among the tasks'),
        (at('action', 1, [np.nan] * 7), 'episode 1, step 1: number 0 of the action is nan'),
        (at('action', 1, [0.0] * 6), 'action is not the same number of numbers'),
        (at(KEYS[1], 2, {'bytes': None, 'path': 'x.png'}), "step 2: .* only the path 'x.png'"),
        (at(KEYS[1], 2, {'bytes': b'\x89PNG', 'path': ''}), 'step 2: .*4 bytes are no whole pic'),
        (lambda rows: rows.pop('action'), 'no column action; there are: .*timestamp'),
        (lambda rows: [v.pop() for v in rows.values()], '3 rows, where meta/ says 4'),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    folder = write_lerobot(tmp_path / 'mine', 'v2.1', True)
    rewritten(folder, change)
    data = open_dataset(folder, ReadOptions(gripper='env'))
    with pytest.raises(DataError, match=message) as caught:
        list(data.read(1).pictures['wrist'])
    assert caught.value.episode == '1' and 'episode_000001.parquet' in caught.value.file
    assert len(data.read(2)) == LENGTHS[2]


def test_a_missing_or_damaged_file_is_named(tmp_path):
    folder = write_lerobot(tmp_path / 'mine', 'v3.0', True)
    data = open_dataset(folder)
    assert len(data.read(2)) == LENGTHS[2]
    file = folder / 'data/chunk-000/file-001.parquet'
    whole = file.read_bytes()
    for content, message in (
        (whole[:-20], 'no parquet can be read: .*; cut off or damaged'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            data.read(2)
        assert caught.value.episode == '2' and caught.value.file == str(file)
    file.unlink()
    with pytest.raises(DataError, match='there is no such file'):
        data.read(2)
    assert len(data.read(1)) == LENGTHS[1]


def test_a_missing_or_short_video_is_named(tmp_path):
    needs(False)
    folder = write_lerobot(tmp_path / 'mine', 'v2.1', False)
    file = folder / f'videos/chunk-000/{KEYS[1]}/episode_000000.mp4'
    whole = file.read_bytes()
    data = open_dataset(folder)
    write_video(file, small(0).frames[1][:6])
    with pytest.raises(DataError, match=r'step 6: the video ends at 0.300 s, its rows go on unti'):
        data.read(0)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match='no video can be read'):
        list(data.read(0).pictures['wrist'])
    file.unlink()
    with pytest.raises(DataError, match='episode 0: there is no such file') as caught:
        data.read(0)
    assert caught.value.file == str(file)
    assert len(list(data.read(1).pictures['wrist'])) == LENGTHS[1]


def test_a_video_of_another_episode_is_noticed(tmp_path):
    needs(False)
    folder = write_lerobot(tmp_path / 'mine', 'v2.1', False)
    frames = np.repeat(small(0).frames[1], 2, axis=0)
    write_video(folder / f'videos/chunk-000/{KEYS[1]}/episode_000000.mp4', frames, 7)
    with pytest.raises(DataError, match=r'step 1: no frame near 0.050 s; the nearest is at'):
        list(open_dataset(folder).read(0).pictures['wrist'])


def test_versions_and_conventions_that_are_not_known(tmp_path):
    folder = write_lerobot(tmp_path / 'mine', 'v2.1', True)
    file = folder / 'meta/info.json'
    info = json.loads(file.read_text())
    for version, cure in (('v1.6', 'convert_dataset_v1_to_v2'), ('v9', 'known: v2.0, v2.1, v3.0')):
        file.write_text(json.dumps(info | {'codebase_version': version}))
        with pytest.raises(DataError, match=f'codebase_version {version} is not known; .*{cure}'):
            open_dataset(folder)
    file.write_text('{')
    with pytest.raises(DataError, match='no JSON'):
        open_dataset(folder)
    file.write_text(json.dumps({'codebase_version': 'v2.1'}))
    with pytest.raises(DataError, match="incomplete: KeyError\\('fps'\\)"):
        open_dataset(folder)
    file.write_text(json.dumps(info))
    for number in range(3):
        rows = rows_of(number, small(number), 0, True)
        rows['action'] = np.clip(rows['action'], 0, 1).tolist()
        name = f'data/chunk-{number // 2:03d}/episode_{number:06d}.parquet'
        write_table(folder / name, rows)
    with pytest.raises(DataError, match=r'from 0 to 1, which does not say .* is open; say'):
        open_dataset(folder).read(1)
    grippers = open_dataset(folder, ReadOptions(gripper='inverse')).read(1).actions[:, 6]
    assert grippers.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'fps': 0}, 'fps is 0'),
        ({'features': None}, 'incomplete'),
        ({'features': {'action': {'shape': [7]}}}, "incomplete: KeyError\\('dtype'\\)"),
    ],
)
def test_an_info_that_cannot_be_is_named(tmp_path, change, message):
    file = write_lerobot(tmp_path / 'mine', 'v2.1', True) / 'meta/info.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=f'info.json: {message}'):
        open_dataset(tmp_path / 'mine')
    file.write_bytes(b'\xff\xfe')
    with pytest.raises(DataError, match=r'info.json: no JSON'):
        open_dataset(tmp_path / 'mine')


def test_lists_are_cut_at_the_ends_of_lines_only(tmp_path):
    """As jsonlines writes them: every other character as it is."""
    folder, texts = write_lerobot(tmp_path / 'mine', 'v2.1', True), ['lift\u2028it', 'put\x85it']
    lines = (json.dumps({'task_index': k, 'task': t}) for k, t in enumerate(texts))
    file = folder / 'meta/tasks.jsonl'
    file.write_text('\n'.join(line.encode().decode('unicode-escape') for line in lines) + '\n\n')
    data = open_dataset(folder)
    assert {data.read(k).instructions for k in range(3)} == {(text,) for text in texts}
    file.write_bytes(b'{"task_index": 0, "task": "\xff"}')
    with pytest.raises(DataError, match=r'tasks.jsonl: line 1 is no JSON'):
        open_dataset(folder)
    file.write_text('{"task": "lift it"}')
    with pytest.raises(DataError, match=r"no list of tasks: KeyError\('task_index'\)"):
        open_dataset(folder)


@pytest.mark.parametrize('version', ['v2.1', 'v3.0'])
def test_an_episode_without_a_step_is_named(tmp_path, version):
    folder = write_lerobot(tmp_path / 'mine', version, True)
    if version == 'v3.0':
        from pyarrow import parquet

        file = folder / 'meta/episodes/chunk-000/file-000.parquet'
        lines = parquet.read_table(file).to_pydict()
        lines['length'][0] = 0
        write_table(file, lines)
    else:
        (folder / 'meta/episodes.jsonl').write_text(
            '{"episode_index": 0, "length": 0}\n{"episode_index": 1, "length": 4}'
        )
    data = open_dataset(folder)
    with pytest.raises(DataError, match='episode 0: meta/ says that it has no step; leave it out'):
        data.read(0)
    assert len(data.read(1)) == LENGTHS[1]


def test_cameras_are_guessed_or_named(tmp_path):
    folder = write_lerobot(tmp_path / 'mine', 'v2.1', True)
    with pytest.raises(DataError, match=r'no x; there are: observation.images.front'):
        open_dataset(folder, ReadOptions(cameras={'agentview': 'x'}))
    one = open_dataset(folder, ReadOptions(cameras={'side': KEYS[1]}, rotate=180))
    assert one.cameras == ('side',)
    frame = pixels(next(iter(one.read(0).pictures['side'])))
    assert frame.shape == (SIZE, SIZE, 3)
    assert np.abs(frame - small(0).frames[1, 0, ::-1, ::-1]).max() < 20
    file = folder / 'meta/info.json'
    info = json.loads(file.read_text())
    for key in KEYS:
        info['features'][f'{key}_left'] = info['features'].pop(key)
    info['features']['side'] = info['features'][f'{KEYS[0]}_left']
    file.write_text(json.dumps(info))
    with pytest.raises(DataError, match='which camera is the third-person view cannot be told'):
        open_dataset(folder)
