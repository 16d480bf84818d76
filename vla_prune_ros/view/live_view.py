# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `live_view`: what a policy sees, keeps, plans and does, as a page in the browser.

Without a bag it shows what runs now; with one, what was recorded. Needs rerun
(requirements/view.txt), which sends anonymous usage data unless `rerun analytics disable` was
called.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vla_prune_ros.view.scene import Scene
from vla_prune_ros.view.sink import RerunSink, ViewerError, require_rerun


def parser() -> argparse.ArgumentParser:
    """The command line, without `--ros-args`."""
    p = argparse.ArgumentParser(
        prog='live_view',
        description=__doc__,
        epilog='Remappings and namespaces of a live system: --ros-args -r __ns:=/left',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument('bag', nargs='?', type=Path, help='show this recording, not a live system')
    p.add_argument('--save', type=Path, metavar='FILE.rrd', help='write a file as well')
    p.add_argument('--no-web', action='store_true', help='no page; needs --save')
    p.add_argument('--bind', default='127.0.0.1', help='address of the page (%(default)s)')
    p.add_argument('--port', type=int, default=9090, help='of the page (%(default)s)')
    p.add_argument('--data-port', type=int, default=9876, help='behind it (%(default)s)')
    p.add_argument('--cameras', default='agentview,wrist', help='names (%(default)s)')
    p.add_argument(
        '--fingers', default='finger_joint1,finger_joint2', help='joint names (%(default)s)'
    )
    p.add_argument('--namespace', default='', help='of the topics in a bag')
    p.add_argument(
        '--image-rate', type=float, default=5.0, help='pictures per second (%(default)s)'
    )
    p.add_argument('--jpeg-quality', type=int, default=75, help='1 to 100 (%(default)s)')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when it was told to end, 1 when there is no viewer, 2 for bad arguments."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv[: argv.index('--ros-args')] if '--ros-args' in argv else argv
    p = parser()
    args = p.parse_args(own)
    if args.no_web and args.save is None:
        p.error('--no-web needs --save: nothing would be shown')
    if not 1 <= args.jpeg_quality <= 100 or not args.image_rate > 0:
        p.error('--jpeg-quality is 1 to 100, --image-rate above 0')
    if args.bag is not None and own is not argv:
        p.error('--ros-args go with a live system, not with a bag')
    try:
        require_rerun()
        cameras = tuple(name for name in args.cameras.split(',') if name)
        with RerunSink(
            args.save,
            '' if args.no_web else args.bind,
            (args.port, args.data_port),
            cameras,
            args.jpeg_quality,
        ) as sink:
            fingers = tuple(args.fingers.split(','))
            if args.bag is not None:
                return _show_bag(args, sink, cameras, fingers)
            return _show_live(args, sink, cameras, fingers, argv[len(own) :])
    except ViewerError as error:
        print(f'live_view: {error}', file=sys.stderr)
        return 1


def _show_live(
    args: argparse.Namespace,
    sink: RerunSink,
    cameras: tuple[str, ...],
    fingers: tuple[str, ...],
    ros_arguments: Sequence[str],
) -> int:
    from vla_prune_ros.ros.process import run_node
    from vla_prune_ros.view.node import LiveView
    from vla_prune_ros.view.source import Reader

    reader = Reader(Scene(cameras), fingers)
    run_node(
        lambda stop: LiveView(stop, sink, reader, args.image_rate),
        ros_arguments,
        'live_view',
        'ROS 2 node live_view.',
    )


def _show_bag(
    args: argparse.Namespace, sink: RerunSink, cameras: tuple[str, ...], fingers: tuple[str, ...]
) -> int:
    from rclpy.serialization import deserialize_message

    from vla_prune_ros.bags.files import Bag, BagError
    from vla_prune_ros.view.source import Reader, topics

    reader = Reader(Scene(cameras), fingers)
    wanted = {
        f'/{args.namespace.strip("/")}/{name}'.replace('//', '/'): (name, kind)
        for name, kind in topics(cameras).items()
    }
    shown = 0
    try:
        with Bag(args.bag, salvage=True) as bag:
            for entry in bag.messages(wanted.keys() & bag.types.keys()):
                name, kind = wanted[entry.topic]
                sink.show(reader.read(name, deserialize_message(entry.data, kind)))
                shown += 1
    except BagError as error:
        print(f'live_view: {error}', file=sys.stderr)
        return 1
    print(f'{shown} messages of {args.bag} shown, {reader.broken} could not be read', flush=True)
    if not shown:
        print(f'live_view: none of {", ".join(wanted)} is in the bag', file=sys.stderr)
        return 1
    if sink.url:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        print(f'open {sink.url}\nCtrl-C ends the page', flush=True)
        stop.wait()
    return 0
