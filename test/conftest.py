# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every test run gets a ROS domain of its own; processes started by a test end with it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import vla_prune_ros
from vla_prune_ros.ros.children import claim_domain, die_with_parent, slowness

# As in the background of a script or under nohup; the nodes would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
_numbers = itertools.count()
LAUNCH_TESTS = ('test_launch_sim.py',)
HERE = Path(__file__).parent
REPOSITORY = HERE.parent


os.environ['ROS_DOMAIN_ID'] = str(claim_domain())
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
# Processes started by tests use the package that the tests import, installed or not.
_package = str(Path(vla_prune_ros.__file__).parent.parent)
os.environ['PYTHONPATH'] = os.pathsep.join(
    filter(None, [_package, os.environ.get('PYTHONPATH', '')])
)
os.environ.setdefault('OMP_NUM_THREADS', '1')


def patience(seconds: float) -> float:
    """A time limit of an idle machine, for the machine as loaded as it is."""
    return seconds * slowness()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector):
    """Keep launch_testing away from test files that are none of its own.

    Its hook imports every file, and a skip on the level of a module then skips all files.
    """
    if module_path.name in LAUNCH_TESTS and _can_launch():
        return None
    return pytest.Module.from_parent(parent, path=module_path)


def _can_launch() -> bool:
    """Whether launch is here and the package is installed where it looks."""
    if any(find_spec(name) is None for name in ('launch_testing', 'launch_ros', 'mujoco')):
        return False
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        get_package_share_directory('vla_prune_ros')
    except PackageNotFoundError:
        return False
    return True


class Process:
    """A verb of the package in a process group of its own."""

    program: tuple[str, ...] = ('-m', 'vla_prune_ros')  # what Python runs

    def __init__(
        self, folder: Path, verb: str, *arguments: str, program: tuple[str, ...] | None = None
    ) -> None:
        self.program = program or self.program
        self.log_path = folder / f'{verb}_{time.monotonic_ns()}.log'
        command = [sys.executable, *self.program, *filter(None, [verb]), *arguments]
        self._before = set(Path('/dev/shm').glob('fastdds_*'))
        with self.log_path.open('w') as log:
            self.popen = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def log(self) -> str:
        """What the process wrote so far."""
        return self.log_path.read_text()

    def wait_for_log(self, text: str, timeout: float = 60.0) -> str:
        """Wait until `text` is in the log."""
        started = time.monotonic()
        while text not in self.log:
            assert self.popen.poll() is None, f'ended early:\n{self.log}'
            waited = time.monotonic() - started
            assert waited < patience(timeout), f'no {text!r} in:\n{self.log}'
            time.sleep(0.05)
        return self.log

    def wait(self, timeout: float) -> int:
        """Exit code; a busy machine gets more time."""
        started = time.monotonic()
        while self.popen.poll() is None:
            assert time.monotonic() - started < patience(timeout), f'still running:\n{self.log}'
            time.sleep(0.05)
        return self.popen.returncode

    def end(self, number: int = signal.SIGINT, timeout: float = 10.0) -> tuple[int, float]:
        """Send a signal; returns exit code and seconds until the end."""
        started = time.monotonic()
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(timeout), time.monotonic() - started

    def shared_memory(self) -> set[Path]:
        """DDS segments that came with the process; it maps those of its peers as well."""
        maps = Path(f'/proc/{self.popen.pid}/maps').read_text()
        mapped = {Path(line.split()[-1]) for line in maps.splitlines() if 'fastdds_' in line}
        return {path for path in mapped - self._before if 'port' not in path.name}

    def kill(self) -> None:
        """End the process and its children in any case, politely first: SIGKILL leaves files."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.end()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@pytest.fixture(scope='module')
def start_shared(tmp_path_factory):
    """Starts verbs that live until the end of the module."""
    folder = tmp_path_factory.mktemp('processes')
    started: list[Process] = []

    def start(verb: str, *arguments: str) -> Process:
        started.append(Process(folder, verb, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def start(tmp_path):
    """Starts verbs that live until the end of the test."""
    started: list[Process] = []

    def run(verb: str, *arguments: str) -> Process:
        started.append(Process(tmp_path, verb, *arguments))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def busy():
    """Four busy loops per core until the end of the test; they die with this process."""
    command = [sys.executable, '-c', 'while True: pass']
    loops = [
        subprocess.Popen(command, preexec_fn=die_with_parent)
        for _ in range(4 * len(os.sched_getaffinity(0)))
    ]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.fixture
def namespace() -> str:
    """A ROS namespace that no other test uses: for DDS a killed process lives for seconds."""
    return f'/test{next(_numbers)}'


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random checkpoint."""
    from tiny import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp('checkpoint'))


@pytest.fixture(scope='session')
def faulty_pair(ros, tmp_path_factory, checkpoint):
    """One policy node that can be made to fail, and its peer, for all files of faults."""
    from faults import running

    folder = tmp_path_factory.mktemp('faulty')
    settings = {'inference_timeout': 2.0, 'max_gap': 1.5, 'overlay__rate': 10.0}
    with running(folder, checkpoint, '/faulty', **settings) as pair:
        yield pair


@pytest.fixture(scope='session')
def ros():
    """One rclpy for the whole run."""
    rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture
def stand_in(monkeypatch) -> None:
    """Let `runtime: graphs` record on a CPU."""
    from recorded_operations import RecordedOperations

    from vla_prune_ros.runtime.engine import BACKENDS

    monkeypatch.setitem(BACKENDS, 'cpu', RecordedOperations)
