# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Broken files of all kinds for the tests: bounded, seeded mutations of valid ones.

As a program it feeds them to one part of the package, in a process of its own with bounded memory:
`corpus.py images|bags|checkpoints FOLDER SEED COUNT` prints what went wrong as JSON.
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

SECONDS = 20  # of wall clock for one case
HUGE = (b'\xff' * 4, b'\xff' * 8, b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f', b'\x00' * 8,
        b'\x40\x00\x00\x00', b'\x00\x00\x00\x40', b'\x00\x00\x00\x00\x01')  # fmt: skip
STRANGE = (None, True, -1, 0, 2**31, 2**70, 1e308, '', 'x' * 1000, [], {}, [[1]], {'a': None})


def broken_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What was done, and the result: cut, flipped bits, huge fields, moved or doubled parts."""
    kind = rng.choice(('cut', 'flip', 'flip', 'field', 'field', 'swap', 'double', 'remove'))
    # Sizes stand at the beginning of most formats, and tables of contents at the end.
    spot = rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 256)),
                       len(data) - 1 - rng.randrange(min(len(data), 256))))  # fmt: skip
    length = rng.choice((1, 8, 64, 1024))
    out = bytearray(data)
    if kind == 'cut':
        del out[spot:]
    elif kind == 'flip':
        for _ in range(rng.choice((1, 1, 4, 32))):
            out[(spot + rng.randrange(length)) % len(out)] ^= 1 << rng.randrange(8)
    elif kind == 'field':
        value = rng.choice(HUGE)
        out[spot : spot + len(value)] = value
    elif kind == 'swap':
        other = rng.randrange(len(data))
        out[spot : spot + length], out[other : other + length] = (
            data[other : other + length], data[spot : spot + length],
        )  # fmt: skip
    elif kind == 'double':
        out[spot:spot] = data[spot : spot + length]
    else:
        del out[spot : spot + length]
    return f'{kind} at {spot}', bytes(out)


def broken_json(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """As `broken_bytes`, or one value of another type or size, or gone."""
    if rng.random() < 0.3:
        return broken_bytes(data, rng)
    content = json.loads(data)
    places = list(_places(content))
    holder, key = rng.choice(places)
    if rng.random() < 0.2 and isinstance(holder, dict):
        del holder[key]
        return f'without {key}', json.dumps(content).encode()
    holder[key] = rng.choice(STRANGE)
    return f'{key} = {str(holder[key])[:20]}', json.dumps(content).encode()


def _places(content) -> Iterator[tuple]:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def broken_files(folder: Path, rng: random.Random, count: int, work: Path) -> Iterator[str]:
    """Copies of a folder in `work`, each with one broken file; what was done to which."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for number in range(count):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        target = files[number % len(files)]
        for file in files:
            if file != target:
                (work / file.name).symlink_to(file)
        change = broken_json if target.suffix == '.json' else broken_bytes
        what, data = change(target.read_bytes(), rng)
        (work / target.name).write_bytes(data)
        yield f'{target.name}: {what}'


# -- the three parts: what is fed, and what may come of it ---------------------------------------
def images(folder: Path, rng: random.Random, count: int) -> tuple[Iterator, int]:
    """Compressed and raw pictures."""
    import cv2
    import numpy as np

    from vla_prune_ros.ros.images import (
        ENCODINGS,
        MAX_PIXELS,
        ImageError,
        decode_compressed_rgb,
        decode_rgb,
    )

    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    pixels[:24] = 7
    options = ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    valid = [cv2.imencode('.jpg', pixels, o)[1].tobytes() for o in options]
    valid += [cv2.imencode('.png', p)[1].tobytes() for p in (pixels, pixels[:, :, 0])]
    valid.append(cv2.imencode('.png', pixels.astype(np.uint16) * 257)[1].tobytes())

    def cases() -> Iterator:
        for number in range(count):
            if number % 3:
                what, data = broken_bytes(valid[number % len(valid)], rng)
                message = SimpleNamespace(format='jpeg', data=data)
                yield what, lambda m=message: check(decode_compressed_rgb(m)), ImageError
                continue
            fields = {'height': 48, 'width': 64, 'step': 192, 'is_bigendian': 0}
            for name in rng.sample(sorted(fields), rng.randrange(3)):
                fields[name] = rng.choice((0, 1, 47, 2**16, 2**31 - 1, 2**32 - 1))
            message = SimpleNamespace(
                encoding=rng.choice([*ENCODINGS, '', 'rgb9']), **fields,
                data=pixels.tobytes()[: rng.choice((None, None, 0, 1, 5000))],
            )  # fmt: skip
            yield str(fields), lambda m=message: check(decode_rgb(m)), ImageError

    def check(got: np.ndarray) -> None:
        assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3
        assert 0 < got.size <= 3 * MAX_PIXELS

    return cases(), 400_000_000


def bags(folder: Path, rng: random.Random, count: int) -> tuple[Iterator, int]:
    """Recordings, strictly read and salvaged."""
    from vla_prune_ros.bags.files import Bag, BagError

    def read(path: Path, salvage: bool) -> None:
        with Bag(path, salvage=salvage) as bag:
            for entry in bag.messages():
                assert entry.topic in bag.types and isinstance(entry.data, bytes)

    def cases() -> Iterator:
        work = folder / 'work'
        for what in broken_files(folder / 'valid', rng, count, work):
            for salvage in (False, True):
                yield f'{what}, salvage {salvage}', lambda s=salvage: read(work, s), BagError

    return cases(), 400_000_000


def checkpoints(folder: Path, rng: random.Random, count: int) -> tuple[Iterator, int]:
    """Checkpoint directories, loaded and checked."""
    import torch

    from vla_prune_ros.evaluation.check import check_checkpoint, text
    from vla_prune_ros.vla.model import OpenVLAOFT

    work = folder / 'work'

    def load() -> None:
        OpenVLAOFT.from_pretrained(work, dtype=torch.float32, device='cpu')

    def cases() -> Iterator:
        for what in broken_files(folder / 'valid', rng, count, work):
            yield what, load, (ValueError, OSError)
            yield f'{what}, check', lambda: text(check_checkpoint(work)), ()

    return cases(), 1_000_000_000


PARTS = {'images': images, 'bags': bags, 'checkpoints': checkpoints}


def main() -> int:
    """Run one part; every case ends cleanly or with its error, in bounded time and memory."""
    part, folder, seed, count = sys.argv[1:]
    faulthandler.enable()
    cases, memory = PARTS[part](Path(folder), random.Random(int(seed)), int(count))
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, _too_long)
    wrong, ended = [], {'clean': 0, 'refused': 0}
    last = Path(folder, 'last')
    for what, run, allowed in cases:
        last.write_text(what)  # a crash leaves it
        if problem := _outcome(run, allowed, ended):
            wrong.append(f'{what}: {problem}')
    print(json.dumps({'wrong': wrong, **ended}))
    return 0


def _outcome(run: Callable, allowed: type | tuple, ended: dict[str, int]) -> str:
    signal.alarm(SECONDS)
    try:
        run()
        ended['clean'] += 1
    except allowed as error:
        ended['refused'] += 1
        return '' if str(error).strip() else f'{type(error).__name__} without a reason'
    except Exception as error:
        return f'{type(error).__name__}: {str(error)[:200]}'
    finally:
        signal.alarm(0)
    return ''


class TooLong(Exception):  # noqa: N818
    """A case took longer than it may."""


def _too_long(*_: object) -> None:
    raise TooLong(f'{SECONDS} s')


if __name__ == '__main__':
    sys.exit(main())
