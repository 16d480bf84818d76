# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes in parallel processes, and the file that makes an interrupted run go on.

Each worker is a fresh process (spawn: no inherited rendering context or thread pool) with its own
policy and robot. A worker that dies takes one episode with it, which is recorded as an
exception, and is replaced.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vla_prune_ros.evaluation.rollouts import Episode, EpisodeRecord, Session, Setup
from vla_prune_ros.sim import backend_of

EXECUTORS = ('processes', 'ray')


class EpisodeLog:
    """Finished episodes, one JSON object per line, appended and flushed one at a time.

    The file survives a kill at any moment: a half-written last line is cut off on opening.
    """

    def __init__(self, path: Path, fingerprint: dict) -> None:
        """Open or create the log.

        Args:
            path: the .jsonl file.
            fingerprint: what must be equal for old episodes to count, such as the checkpoint's
                hash; kept as the first line.

        Raises:
            ValueError: the file belongs to a run with another fingerprint.
        """
        self.path = Path(path)
        self.records: dict[tuple, EpisodeRecord] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._complete_lines()
        if lines:
            found = json.loads(lines[0])['run']
            wanted = json.loads(json.dumps(fingerprint))
            if found != wanted:
                differ = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
                raise ValueError(
                    f'{self.path} holds episodes of another run (different: {", ".join(differ)});'
                    ' choose another output directory or remove the file'
                )
            for line in lines[1:]:
                record = EpisodeRecord.from_json(json.loads(line))
                self.records[record.episode.key] = record
        else:
            self._append({'run': fingerprint})

    def finished(self, episode: Episode) -> EpisodeRecord | None:
        """The stored outcome; None when there is none or when it was an exception."""
        record = self.records.get(episode.key)
        return None if record is None or record.error else record

    def add(self, record: EpisodeRecord) -> None:
        """Store one outcome; a later one of the same episode replaces it."""
        self.records[record.episode.key] = record
        self._append(record.to_json())

    def _append(self, data: dict) -> None:
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(data, separators=(',', ':')) + '\n')
            file.flush()
            os.fsync(file.fileno())

    def _complete_lines(self) -> list[str]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding='utf-8')
        whole = text[: text.rfind('\n') + 1]
        if whole != text:
            self.path.write_text(whole, encoding='utf-8')
        return whole.splitlines()


def run_episodes(
    setup: Setup,
    episodes: Sequence[Episode],
    log: EpisodeLog,
    workers: int = 1,
    on_record: Callable[[EpisodeRecord], None] | None = None,
    session: Callable[[Setup], Session] = Session,
    executor: str = 'processes',
) -> list[EpisodeRecord]:
    """Run what the log does not hold yet and return all outcomes in the order asked for.

    Args:
        setup: what each worker builds.
        episodes: what to run.
        log: where outcomes go, and where finished ones come from. Episodes that ended in an
            exception are tried again.
        workers: how many run at once.
        on_record: called with every new outcome, for progress.
        session: factory of the object that runs episodes; picklable unless one process does.
        executor: one of `EXECUTORS`. Processes are on this machine; a single one is this process,
            unless the simulator would swallow an interrupt there.
    """
    todo = [episode for episode in episodes if log.finished(episode) is None]
    n = min(workers, len(todo))
    if executor == 'ray':
        from vla_prune_ros.evaluation.ray_executor import run_on_ray

        outcomes = run_on_ray(setup, todo, n, session)
    elif n > 1 or (n and swallows_interrupts(setup)):
        outcomes = _run_parallel(setup, todo, n, session)
    else:
        outcomes = _run_here(setup, todo, session)
    for record in outcomes:
        log.add(record)
        if on_record:
            on_record(record)
    return [log.records[episode.key] for episode in episodes]


def swallows_interrupts(setup: Setup) -> bool:
    """Whether an interrupt may get lost in the simulator: robosuite has bare `except` clauses."""
    return backend_of(setup.suite) == 'libero'


def _run_here(
    setup: Setup, episodes: Sequence[Episode], session: Callable[[Setup], Session]
) -> Iterator[EpisodeRecord]:
    if not episodes:
        return
    runner = session(setup)
    try:
        for episode in episodes:
            yield runner.run(episode)
    finally:
        runner.close()


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: multiprocessing.connection.Connection
    episode: Episode | None = None


def _run_parallel(
    setup: Setup,
    episodes: Iterable[Episode],
    n: int,
    session: Callable[[Setup], Session],
) -> Iterator[EpisodeRecord]:
    queue = deque(episodes)
    workers = [_start(setup, session) for _ in range(n)]
    try:
        while workers:
            ready = multiprocessing.connection.wait([w.pipe for w in workers])
            for worker in [w for w in workers if w.pipe in ready]:
                try:
                    answer = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    workers.remove(worker)
                    if worker.episode is None:
                        raise RuntimeError(
                            'an evaluation worker died while starting'
                            f' (exit code {worker.process.exitcode})'
                        ) from None
                    yield _lost(worker)
                    if queue:
                        workers.append(_start(setup, session))
                    continue
                if isinstance(answer, str):
                    raise RuntimeError(f'an evaluation worker could not start:\n{answer}')
                if answer is not None:
                    yield answer
                worker.episode = queue.popleft() if queue else None
                with suppress(OSError):  # if it has just died, `wait` reports it next
                    worker.pipe.send(worker.episode)
                if worker.episode is None:  # it closes its robot and leaves
                    workers.remove(worker)
                    worker.process.join(timeout=20)
                    _stop(worker)
    finally:
        for worker in workers:
            _stop(worker)


def _start(setup: Setup, session: Callable[[Setup], Session]) -> _Worker:
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, setup, session), daemon=True)
    process.start()
    theirs.close()  # so that the death of the worker is the end of the file here
    return _Worker(process, ours)


def _stop(worker: _Worker) -> None:
    if worker.process.is_alive():
        worker.process.terminate()
        worker.process.join(timeout=5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.pipe.close()


def _lost(worker: _Worker) -> EpisodeRecord:
    """The record of an episode whose worker died."""
    error = f'worker died with exit code {worker.process.exitcode}'
    return EpisodeRecord(worker.episode, task_name='', instruction='', error=error)


def _work(
    pipe: multiprocessing.connection.Connection,
    setup: Setup,
    session: Callable[[Setup], Session],
) -> None:
    """Life of a worker: build, say ready (None), then one record per episode until None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        runner = session(setup)
    except Exception:
        pipe.send(traceback.format_exc())
        return
    pipe.send(None)
    try:
        while (episode := pipe.recv()) is not None:
            pipe.send(runner.run(episode))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    finally:
        runner.close()
