# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same three small episodes in every format, and a writer of tfrecords."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / 'data/training'
LENGTHS = (9, 4, 13)
TEXTS = ('lift the cup', 'lift the cup', 'open the drawer')
SIZE = 24


class Small(NamedTuple):
    """One episode: upright frames [2, T, S, S, 3], gripper of the actions as in LIBERO."""

    instruction: str
    actions: np.ndarray
    proprio: np.ndarray
    frames: np.ndarray

    @property
    def policy_actions(self) -> np.ndarray:
        """With 1 for open and 0 for closed."""
        actions = self.actions.astype(np.float32)
        actions[:, 6] = 1 - np.clip(actions[:, 6], 0, 1)
        return actions


def small(number: int, length: int | None = None) -> Small:
    """Episode `number`; pictures are smooth, so that JPEG and video change little of them."""
    rng = np.random.default_rng(number)
    n = length or LENGTHS[number % 3]
    actions = rng.uniform(-1, 1, (n, 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(n) < n // 2, -1, 1)
    row, column = np.mgrid[:SIZE, :SIZE]
    frames = np.zeros((2, n, SIZE, SIZE, 3), np.uint8)
    for view in range(2):
        for t in range(n):
            frames[view, t, ..., 0] = 9 * column
            frames[view, t, ..., 1] = 9 * row
            frames[view, t, ..., 2] = 12 * t + 60 * view
    return Small(TEXTS[number % 3], actions, rng.normal(0, 1, (n, 8)).astype(np.float32), frames)


def jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, 'JPEG', quality=95, subsampling='4:2:0')
    return buffer.getvalue()


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, 'PNG')
    return buffer.getvalue()


def pixels(picture: bytes | np.ndarray) -> np.ndarray:
    """What a reader gives, as int [H, W, 3]."""
    if isinstance(picture, bytes):
        picture = np.asarray(Image.open(io.BytesIO(picture)))
    return picture.astype(int)


# -- tfrecords ---------------------------------------------------------------------------------
def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(values: dict[str, object]) -> bytes:
    entries = b''
    for name, value in values.items():
        if isinstance(value, list):
            feature = field(1, b''.join(field(1, part) for part in value))
        elif value.dtype.kind == 'f':
            feature = field(2, field(1, value.astype('<f4').tobytes()))
        else:
            feature = field(3, field(1, b''.join(varint(int(v)) for v in value)))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def record(data: bytes) -> bytes:
    import google_crc32c

    def masked(content: bytes) -> bytes:
        crc = google_crc32c.value(content)
        return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    head = struct.pack('<Q', len(data))
    return head + masked(head) + data + masked(data)


def steps_of(episode: Small) -> dict[str, object]:
    n = len(episode.actions)
    return {
        'steps/observation/image': [jpeg(frame) for frame in episode.frames[0]],
        'steps/observation/wrist_image': [jpeg(frame) for frame in episode.frames[1]],
        'steps/observation/state': episode.proprio.reshape(-1),
        'steps/action': episode.actions.reshape(-1),
        'steps/language_instruction': [episode.instruction.encode()] * n,
        'steps/is_last': (np.arange(n) == n - 1).astype(np.int64),
    }


def write_rlds(folder: Path, episodes: list[dict[str, object]], shards: int = 1) -> Path:
    """A data set NAME/1.0.0 as tensorflow-datasets names it; returns the folder NAME."""
    version = folder / '1.0.0'
    version.mkdir(parents=True)
    tensor = {'pythonClassName': 'tensorflow_datasets.core.features.tensor_feature.Tensor'}
    image = {'pythonClassName': 'tensorflow_datasets.core.features.image_feature.Image'}

    def tree(features: dict) -> dict:
        return {'featuresDict': {'features': features}}

    observation = tree({'image': image, 'wrist_image': image, 'state': tensor})
    steps = tree({'observation': observation, 'action': tensor})
    features = tree({'steps': {'sequence': {'feature': steps}}})
    (version / 'features.json').write_text(json.dumps(features))
    for shard in range(shards):
        content = b''.join(record(example(e)) for e in episodes[shard::shards])
        name = f'small-train.tfrecord-{shard:05d}-of-{shards:05d}'
        (version / name).write_bytes(content)
    return folder


# -- LeRobot -----------------------------------------------------------------------------------
KEYS = ('observation.images.front', 'observation.images.wrist')


def write_video(path: Path, frames: np.ndarray, rate: int = 20) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=rate, options={'crf': '1', 'g': '2'})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, 'yuv444p'
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
        container.mux(stream.encode())


def rows_of(number: int, episode: Small, first: int, images: bool) -> dict[str, list]:
    n = len(episode.actions)
    rows = {
        'observation.state': episode.proprio.tolist(),
        'action': episode.actions.tolist(),
        'timestamp': [t / 20 for t in range(n)],
        'frame_index': list(range(n)),
        'episode_index': [number] * n,
        'index': list(range(first, first + n)),
        'task_index': [sorted(set(TEXTS)).index(episode.instruction)] * n,
    }
    if images:
        for key, frames in zip(KEYS, episode.frames, strict=True):
            rows[key] = [{'bytes': png(f), 'path': f'{t}.png'} for t, f in enumerate(frames)]
    return rows


def write_table(path: Path, rows: dict[str, list], row_group_size: int | None = None) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {'observation.state': (8, 'float32'), 'action': (7, 'float32')}
    arrays = {}
    for name, values in rows.items():
        kind = None
        if name in kinds and all(len(v) == kinds[name][0] for v in values):
            kind = pyarrow.list_(pyarrow.float32(), kinds[name][0])
        arrays[name] = pyarrow.array(values, kind)
    parquet.write_table(pyarrow.table(arrays), path, row_group_size=row_group_size)


def write_lerobot(folder: Path, version: str, images: bool, episodes: int = 3) -> Path:
    """v2: one file per episode, two per chunk; v3: two episodes in the first file."""
    chosen = [small(k) for k in range(episodes)]
    begins = np.cumsum([0, *(len(e.actions) for e in chosen)]).tolist()
    modern = version == 'v3.0'
    shape = {'shape': [SIZE, SIZE, 3], 'names': ['height', 'width', 'channel']}
    features = {key: {'dtype': 'image' if images else 'video', **shape} for key in KEYS}
    features |= {'observation.state': {'dtype': 'float32', 'shape': [8]}}
    features |= {'action': {'dtype': 'float32', 'shape': [7]}}
    per_chunk, per_file = 'chunk-{episode_chunk:03d}/', 'episode_{episode_index:06d}'
    if modern:
        per_chunk, per_file = 'chunk-{chunk_index:03d}/', 'file-{file_index:03d}'
    video = 'videos/{video_key}/' + per_chunk if modern else 'videos/' + per_chunk + '{video_key}/'
    info = {
        'codebase_version': version,
        'fps': 20,
        'chunks_size': 2,
        'data_path': f'data/{per_chunk}{per_file}.parquet',
        'video_path': None if images else f'{video}{per_file}.mp4',
        'features': features,
    }
    meta = folder / 'meta'
    meta.mkdir(parents=True)
    (meta / 'info.json').write_text(json.dumps(info))
    texts = sorted(set(TEXTS))
    tables = [rows_of(k, e, begins[k], images) for k, e in enumerate(chosen)]
    if modern:
        tasks = {'task_index': [0, 1], '__index_level_0__': texts}
        write_table(meta / 'tasks.parquet', tasks)
        lines: dict[str, list] = {}
        for file, members in enumerate([range(2), range(2, episodes)]):
            merged = {n: [v for k in members for v in tables[k][n]] for n in tables[0]}
            write_table(folder / f'data/chunk-000/file-{file:03d}.parquet', merged, 5)
            for key, view in zip(KEYS, (0, 1), strict=True) if not images else ():
                frames = np.concatenate([chosen[k].frames[view] for k in members])
                write_video(folder / f'videos/{key}/chunk-000/file-{file:03d}.mp4', frames)
            for k in members:
                line = {
                    'episode_index': k,
                    'tasks': [chosen[k].instruction],
                    'length': len(chosen[k].actions),
                    'dataset_from_index': begins[k],
                    'dataset_to_index': begins[k + 1],
                    'data/chunk_index': 0,
                    'data/file_index': file,
                }
                for key in KEYS if not images else ():
                    line[f'videos/{key}/chunk_index'] = 0
                    line[f'videos/{key}/file_index'] = file
                    line[f'videos/{key}/from_timestamp'] = (begins[k] - begins[members[0]]) / 20
                for name, value in line.items():
                    lines.setdefault(name, []).append(value)
        write_table(meta / 'episodes/chunk-000/file-000.parquet', lines)
        return folder
    entries = [{'task_index': k, 'task': text} for k, text in enumerate(texts)]
    (meta / 'tasks.jsonl').write_text('\n'.join(map(json.dumps, entries)))
    entries = [{'episode_index': k, 'length': len(e.actions)} for k, e in enumerate(chosen)]
    (meta / 'episodes.jsonl').write_text('\n'.join(map(json.dumps, entries)))
    for k, episode in enumerate(chosen):
        write_table(folder / f'data/chunk-{k // 2:03d}/episode_{k:06d}.parquet', tables[k])
        for key, frames in zip(KEYS, episode.frames, strict=True) if not images else ():
            write_video(folder / f'videos/chunk-{k // 2:03d}/{key}/episode_{k:06d}.mp4', frames)
    return folder


# -- HDF5 --------------------------------------------------------------------------------------
def write_libero(file: Path, episodes: list[Small]) -> Path:
    """As `regenerate_libero_dataset.py` writes it; rows of the pictures bottom up."""
    import h5py

    with h5py.File(file, 'w') as data:
        for number, episode in enumerate(episodes):
            group = data.create_group(f'data/demo_{number}')
            n = len(episode.actions)
            states = np.random.default_rng(number).normal(0, 0.1, (n, 20))
            group['actions'], group['states'] = episode.actions, states
            obs = group.create_group('obs')
            obs['joint_states'] = states[:, 1:8]
            obs['ee_states'], obs['gripper_states'] = np.split(episode.proprio, [6], axis=1)
            obs['agentview_rgb'], obs['eye_in_hand_rgb'] = episode.frames[:, :, ::-1, ::-1]
    return file


def write_aloha(file: Path, number: int = 0, length: int = 9, **changes: object) -> Path:
    """One episode of two arms; `changes` replace what is at a key, None removes it."""
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    values = {
        'action': rng.normal(0, 1, (length, 14)).astype(np.float32),
        'observations/qpos': rng.normal(0, 1, (length, 14)),
    }
    frames = small(number, length).frames
    for view, name in enumerate(('cam_high', 'cam_left_wrist', 'cam_right_wrist')):
        values[f'observations/images/{name}'] = frames[view % 2].repeat(2, axis=1)
    with h5py.File(file, 'w') as data:
        data.attrs['sim'] = False
        for key, value in (values | changes).items():
            if value is not None:
                data[key] = value
    return file
