# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One process with the model, several with simulators: `evaluate --shared-model`.

A 7B model fits a GPU once, a simulator needs a core of its own. The server loads the weights once;
every worker has its own policy there, with its own history, so an episode gives the same actions
as alone. Queries are answered one after the other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from vla_prune_ros.evaluation.rollouts import (
    MAX_POLICIES,
    Episode,
    EpisodeRecord,
    Session,
    Setup,
    checkpoint_directory,
    load_policy,
)


class ServerGoneError(RuntimeError):
    """The process with the model has ended; no episode can go on."""


@contextmanager
def shared_model(setup: Setup) -> Iterator[Callable[[Setup], Session]]:
    """Run a server for the time of a context; yields the factory of sessions that use it.

    Raises:
        RuntimeError: the server could not start; the text says why.
    """
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix='vla_prune_') as folder:
        address = str(Path(folder) / 'policy')
        key = os.urandom(16)
        process = context.Process(target=_serve, args=(theirs, setup, address, key), daemon=True)
        process.start()
        theirs.close()
        try:
            try:
                answer = ours.recv()
            except EOFError:
                process.join()
                answer = f'it died with exit code {process.exitcode}'
            if answer is not None:
                raise RuntimeError(f'the process with the model could not start:\n{answer}')
            yield partial(SharedSession, address=address, key=key)
        finally:
            ours.close()  # tells it to end
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()


class SharedSession(Session):
    """A session whose robot is here and whose policies are in the server."""

    def __init__(self, setup: Setup, address: str, key: bytes) -> None:
        try:
            self._connection = Client(address, authkey=key)
        except OSError as error:
            raise ServerGoneError(f'no process with the model: {error}') from error
        self._remote: dict[Path, RemotePolicy] = {}
        super().__init__(setup)

    def use(self, checkpoint: str | None) -> Any:
        """Take the policy of a checkpoint; the server loads it if need be."""
        directory = checkpoint_directory(checkpoint or self.setup.checkpoint)
        if directory not in self._remote:
            self._remote[directory] = RemotePolicy(self._connection, str(directory))
        self.policy = self.meter = self._remote[directory]
        return self.policy

    def run(self, episode: Episode) -> EpisodeRecord:
        """As `Session.run`; an end of the server is no outcome of an episode.

        Raises:
            ServerGoneError: the server has ended.
        """
        record = super().run(episode)
        if any(remote.gone for remote in self._remote.values()):
            raise ServerGoneError('the process with the model has ended')
        return record

    def close(self) -> None:
        """Free the rendering context and the policies."""
        super().close()
        self._connection.close()


class RemotePolicy:
    """A policy in the server, with the methods that an episode calls, and its work meter."""

    def __init__(self, connection: Connection, directory: str) -> None:
        self._connection, self._directory = connection, directory
        self.gone = False
        self.last: Any = None  # work of the last pass
        self.wants_frames = self.wants_query = False
        self.config, self.settings = self._ask('config'), self._ask('settings')

    def step(self, observation: Any) -> Any:
        """As `VLAPolicy.step`; the work of the pass is then in `last`."""
        chunk, self.last = self._ask('step', observation)
        return chunk

    def audit(self, *, steps: int = 0) -> Any:
        """As `VLAPolicy.audit`."""
        return self._ask('audit', steps=steps)

    def set_pruning(self, mode: str, **options: Any) -> None:
        """As `VLAPolicy.set_pruning`."""
        self._ask('set_pruning', mode, **options)

    def reset(self) -> None:
        """As `VLAPolicy.reset`."""
        self._ask('reset')

    def record_executed(self, actions: Any) -> None:
        """As `VLAPolicy.record_executed`."""
        self._ask('record_executed', actions)

    def observe(self, images: Any) -> None:
        """As `VLAPolicy.observe`."""
        self._ask('observe', images)

    def info(self) -> dict[str, Any]:
        """As `VLAPolicy.info`."""
        return self._ask('info')

    def _ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        try:
            self._connection.send((self._directory, what, args, kwargs))
            result, error, self.wants_frames, self.wants_query = self._connection.recv()
        except (EOFError, OSError) as failure:
            self.gone = True
            raise ServerGoneError('the process with the model has ended') from failure
        if error is not None:
            raise error
        return result


# -- the server --------------------------------------------------------------------------------
class _Models:
    """Weights, loaded once each, and a lock that gives the device to one query at a time."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._loaded: dict[str, tuple[Any, Any]] = {}
        self.lock = threading.RLock()
        self.policy(setup.checkpoint)

    def policy(self, checkpoint: str) -> tuple[Any, Any]:
        """A new policy on weights that are loaded at most once, and their work meter."""
        from vla_prune_ros.evaluation.flops import WorkMeter
        from vla_prune_ros.policy import VLAPolicy

        directory = str(checkpoint_directory(checkpoint))
        with self.lock:
            if directory not in self._loaded:
                while len(self._loaded) >= MAX_POLICIES:
                    del self._loaded[next(iter(self._loaded))]
                first = load_policy(self._setup, Path(directory))
                self._loaded[directory] = first, WorkMeter(first.model.decoder)
            first, meter = self._loaded[directory]
            own = VLAPolicy(
                first.model,
                first.processor,
                readout_start=self._setup.readout_start,
                checkpoint=directory,
                quantization=self._setup.quantization,
            )
            return own, meter


def _serve(pipe: Connection, setup: Setup, address: str, key: bytes) -> None:
    """Life of the server: load, say ready (None), answer until the parent closes the pipe."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    torch.set_num_threads(setup.threads)
    try:
        models = _Models(setup)
        listener = Listener(address, backlog=64, authkey=key)
    except Exception:
        pipe.send(traceback.format_exc())
        return
    pipe.send(None)
    threading.Thread(target=_accept, args=(listener, models), daemon=True).start()
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(0)  # threads may be inside the model


def _accept(listener: Listener, models: _Models) -> None:
    while True:
        try:
            connection = listener.accept()
        except (OSError, EOFError, multiprocessing.AuthenticationError):
            continue
        threading.Thread(target=_answer, args=(connection, models), daemon=True).start()


def _answer(connection: Connection, models: _Models) -> None:
    """One worker: a policy per checkpoint, one answer per question."""
    policies: dict[str, tuple[Any, Any]] = {}
    while True:
        try:
            directory, what, args, kwargs = connection.recv()
        except (EOFError, OSError):
            return
        result = error = None
        wants = (False, False)
        with models.lock:
            try:
                if directory not in policies:
                    while len(policies) >= MAX_POLICIES:  # they hold weights
                        del policies[next(iter(policies))]
                    policies[directory] = models.policy(directory)
                policy, meter = policies[directory]
                value = getattr(policy, what)
                result = value(*args, **kwargs) if callable(value) else value
                if what == 'step':
                    result = (result, meter.last)
                wants = (policy.wants_frames, policy.wants_query)
            except Exception as failure:
                error = failure
        try:
            connection.send((result, error, *wants))
        except (OSError, BrokenPipeError):
            return
