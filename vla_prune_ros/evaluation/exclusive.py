# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One evaluation at a time writes to a directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Keep an output directory to one evaluation; one that it left empty goes again.

    Raises:
        RuntimeError: another one writes there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / '.lock').open('a+') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise RuntimeError(
                f'another evaluation writes to {out} (process {lock.read().strip() or "unknown"});'
                ' wait for it or choose another --out'
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            if [path.name for path in out.iterdir()] == ['.lock']:
                (out / '.lock').unlink()
                out.rmdir()
