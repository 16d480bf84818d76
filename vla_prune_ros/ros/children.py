# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Nodes as child processes, which must not outlive the one that started them. Imports no ROS."""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

DOMAINS = 101  # above, DDS ports collide with the system's ephemeral ones
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


class ChildDiedError(RuntimeError):
    """A child ended although it was still needed; the text has the end of its log."""


def keep_local() -> None:
    """Talk to nobody beyond this machine, here and in the children."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.pop('ROS_LOCALHOST_ONLY', None)  # the old name would override the new one


def claim_domain() -> int:
    """A ROS domain that nothing else of this package uses on this machine, until we end."""
    start = random.randrange(DOMAINS)
    for offset in range(DOMAINS):
        domain = 1 + (start + offset) % DOMAINS
        name = Path(tempfile.gettempdir(), f'vla_prune_ros_domain_{domain}_{os.getuid()}.lock')
        lock = os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)  # open as long as we live
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return domain
        except OSError:
            os.close(lock)
    raise RuntimeError('no free ROS domain')


def isolate(domain_id: int | None, inherit: bool = False) -> None:
    """Keep to this machine and to a ROS domain of our own, here and in the children.

    Args:
        domain_id: the domain; None: a free one.
        inherit: or else that of the environment, if there is one.
    """
    if domain_id is not None or not (inherit and 'ROS_DOMAIN_ID' in os.environ):
        domain_id = claim_domain() if domain_id is None else domain_id
        if not 0 <= domain_id <= DOMAINS:
            raise ValueError(f'ROS domain {domain_id} is not within 0..{DOMAINS}')
        os.environ['ROS_DOMAIN_ID'] = str(domain_id)
    keep_local()


def slowness() -> float:
    """How much longer things take on this machine as it is loaded; at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def end_within(seconds: float) -> None:
    """End this process with 1 that long from now, longer on a busy machine, wherever it hangs.

    It says where every thread is, and needs neither Python's main thread nor its lock for it.
    """
    faulthandler.dump_traceback_later(seconds * slowness(), exit=True)


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f'/proc/{pid}/stat').read_text(encoding='ascii').rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def family_seconds(pid: int) -> float:
    """User and system time so far of a process and of those that it started."""
    total = processor_seconds(pid)
    for path in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):  # it may have ended
            fields = path.read_text(encoding='ascii', errors='replace').rpartition(')')[2].split()
            if int(fields[1]) == pid:
                total += processor_seconds(int(path.parent.name))
    return total


def die_with_parent() -> None:
    """For the `preexec_fn` of a process: the kernel ends it when the one that started it ends."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Children:
    """A set of child processes, each in a session of its own with its output in a file.

    A session of its own keeps Ctrl-C of the terminal away from them: they end in order, when the
    context manager is left for whatever reason. If this process is killed, the kernel ends them.
    """

    def __init__(self, log_directory: Path, **environment: str) -> None:
        self._logs = Path(log_directory)
        # A log must not wait for a buffer to fill.
        self._environment = {**os.environ, 'PYTHONUNBUFFERED': '1', **environment}
        self._running: dict[str, subprocess.Popen] = {}

    def start(self, verb: str, *arguments: str, name: str = '') -> None:
        """Start one verb of the package; its output goes to NAME.log, by default VERB.log."""
        self._logs.mkdir(parents=True, exist_ok=True)
        name = name or verb
        with self.log(name).open('wb') as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, '-m', 'vla_prune_ros', verb, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def start_node(self, verb: str, parameters: Sequence[str], name: str = '') -> None:
        """Start a node with parameters NAME:=VALUE."""
        words = (word for parameter in parameters for word in ('-p', parameter))
        self.start(verb, '--ros-args', *words, name=name)

    def pid(self, name: str) -> int:
        """Process id of a child."""
        return self._running[name].pid

    def log(self, name: str) -> Path:
        """File with the output of a child."""
        return self._logs / f'{name}.log'

    def tail(self, name: str, lines: int = 25) -> str:
        """The end of a child's output."""
        text = self.log(name).read_text(encoding='utf-8', errors='replace')
        return '\n'.join(text.splitlines()[-lines:])

    def tails(self) -> list[str]:
        """The end of every running child's output, headed by its file."""
        return [f'the end of {self.log(name)}:\n{self.tail(name)}' for name in self._running]

    def check(self) -> None:
        """Raise if a child has ended.

        Raises:
            ChildDiedError: names the child, its exit code and the end of its log.
        """
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                raise ChildDiedError(
                    f'{name} ended with exit code {code}; the end of {self.log(name)}:\n'
                    f'{self.tail(name)}'
                )

    def stop(self, *names: str) -> dict[str, int]:
        """End children: SIGINT, after 8 s SIGTERM, after 3 s more SIGKILL, to each session.

        Args:
            names: which; all without any.

        Returns:
            Exit code by name.
        """
        ending = {n: p for n, p in self._running.items() if n in names or not names}
        for number, patience in ((signal.SIGINT, 8.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3)):
            for process in ending.values():
                if process.poll() is None:
                    _signal_session(process.pid, number)
            for process in ending.values():
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        for name, process in ending.items():
            _signal_session(process.pid, signal.SIGKILL)  # what a child may have started
            del self._running[name]
        return {name: process.returncode for name, process in ending.items()}

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not stop us
        try:
            self.stop()
        finally:
            signal.signal(signal.SIGINT, before)


def _signal_session(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it may have gone
        os.killpg(leader, number)
