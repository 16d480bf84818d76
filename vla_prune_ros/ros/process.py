# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A node's process: start, spin, one way down.

SIGINT and SIGTERM set a flag that the main thread looks at; they never raise, so a second signal
(launch sends two) cannot break the teardown. The node is closed first, then DDS, so that its
shared memory goes with it, even if the model is still busy in its thread. Whoever sent the signal
may be gone: a process that hangs on its way down says where, and ends itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from io import UnsupportedOperation
from typing import Any, NoReturn

import rclpy
from rclpy.context import Context
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from vla_prune_ros.ros.children import end_within
from vla_prune_ros.ros.parameters import ParameterError, check_file, files_of

POLL = 0.1  # s, how often a spinning node looks for a signal
END = 20.0  # s from a signal to the end of the process on an idle machine, at most


def ros_arguments(argv: Sequence[str] | None, name: str, description: str) -> list[str]:
    """Arguments for rclpy. Prints help; SystemExit 2 for anything outside `--ros-args ... --`."""
    from rclpy.utilities import remove_ros_args

    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        others = remove_ros_args(['node', *argv])[1:]
    except Exception as error:  # such as `-p name:=`, which lacks a value: write `name:="''"`
        sys.exit(f'{name}: {error}')
    parser = argparse.ArgumentParser(
        prog=name,
        usage=f'{name} [-h] [--ros-args ...]',
        description=description,
        epilog='Parameters and remappings: --ros-args -p NAME:=VALUE --params-file FILE -r A:=B',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(others)
    return argv


def make_executor(context: Context | None = None) -> Executor:
    """An executor for one thread, the one that waits on events where rclpy has it (from Kilted).

    Building a new wait set for every message costs the other one a third more per observation.
    """
    try:
        from rclpy.experimental import EventsExecutor

        return EventsExecutor(context=context)
    except (ImportError, UnsupportedOperation):  # it wants a stderr that is a file
        return SingleThreadedExecutor(context=context)


def end_on_signal(stop: threading.Event) -> None:
    """Let SIGINT and SIGTERM set `stop`; the process ends with 1 if it is still there after `END`.

    A thread looks at the signals, as Python's own handlers run in the main thread only, and that
    may be stuck inside DDS.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def watch() -> None:
        os.read(read_end, 1)
        stop.set()
        end_within(END)

    threading.Thread(target=watch, name='end_on_signal', daemon=True).start()


def run_node(
    factory: Callable[[threading.Event], Any],
    argv: Sequence[str] | None,
    name: str,
    description: str,
) -> NoReturn:
    """Run the node that `factory` makes until SIGINT, SIGTERM or shutdown of ROS, then exit.

    `factory` gets the event that is set when the process is to end; its node has `start()`,
    `close()`, which stops its threads within about a second, and `failed`. The exit code is 0
    after a signal, 1 if the node could not be made or failed.
    """
    arguments = ros_arguments(argv, name, description)
    stop = threading.Event()
    end_on_signal(stop)
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:
        sys.exit(f'{name}: {error}')
    executor = make_executor()
    node, code = None, 0
    try:
        node = factory(stop)
        for file in files_of(arguments):
            check_file(file, node.get_fully_qualified_name())
        executor.add_node(node)
        node.start()
        while rclpy.ok() and not stop.is_set():
            executor.spin_once(timeout_sec=POLL)
    except ParameterError as error:
        print(f'{name}: {error}', file=sys.stderr)
        code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    if node is not None:
        node.close()
        code = max(code, int(node.failed))
        executor.remove_node(node)
        node.destroy_node()
    executor.shutdown(timeout_sec=0)
    rclpy.try_shutdown()
    # All is closed now, DDS with its shared memory too. Python's own way out would take two more
    # seconds with torch loaded, fall back to the default action of a second signal meanwhile, and
    # wait for or crash on a thread that is still inside the model.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
