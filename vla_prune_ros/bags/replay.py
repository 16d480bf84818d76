# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `replay`: does the policy still do over a recorded bag what it did?"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_prune_ros.bags.plan import UsageError

DESCRIPTION = """\
Run the policy over a recorded bag and compare what it says.

  replay BAG                                   the recorded run again, against the recorded chunks
  replay BAG --modes all --compare golden      every mode against the golden values of the bag
  replay BAG --modes all --compare none        what would pruning have changed on this data?

Tiers: T0 messages and back, bit for bit; T1 the node's converters and core in recorded order;
T2 the real node over DDS, one observation at a time.
Exit code 0: everything passed. 1: a tick failed or the bag cannot be used. 2: bad arguments."""
EPILOG = """\
Tolerances: without options bit for bit if device and software are those of the reference, else
2e-5 (float32) or 2e-2 of a normalised action, Jaccard index 0.98, equal counts, equal gripper.
Against another mode (--compare MODE) nothing is judged unless a tolerance is given."""
TIERS = ('T0', 'T1', 'T2')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='replay',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument('bag', type=Path, help='rosbag2 folder, .mcap or .db3 file')
    p.add_argument(
        '--modes', default='',
        help='names with commas, "all", or "recorded": as it was switched (default: recorded, or'
        ' none where nothing is)',
    )  # fmt: skip
    p.add_argument(
        '--compare', default='golden',
        help='golden: values kept with the bag, or those recorded; or a mode to run beside',
    )  # fmt: skip
    p.add_argument('--tiers', default='T0,T1', help='of T0,T1,T2 (default: T0,T1)')
    p.add_argument(
        '--option', action='append', default=[], metavar='MODE.KEY=VALUE', help='of a mode'
    )
    p.add_argument(
        '--switch', action='append', default=[], metavar='TICK=MODE',
        help='another mode from this tick on (from 0), in every run',
    )  # fmt: skip
    p.add_argument(
        '--audit', action='store_true',
        help='T1: run every observation dense, too, and say what pruning changed',
    )  # fmt: skip
    p.add_argument('--out', type=Path, default=None, help='new folder; default out/replay/BAG')
    p.add_argument('--no-plots', action='store_true', help='no pictures of the actions')
    p.add_argument('--update-golden', action='store_true', help='show the differences, then write')
    p.add_argument('--dry-run', action='store_true', help='with --update-golden: only show')

    t = p.add_argument_group('tolerances')
    t.add_argument('--atol', type=float, default=None, help='of normalised actions')
    t.add_argument('--jaccard', type=float, default=None, help='smallest index of tokens kept')
    t.add_argument('--count', type=int, default=None, help='largest difference of tokens kept')
    t.add_argument('--gripper', type=float, default=None, help='largest share of other sides')

    b = p.add_argument_group('bags of others')
    b.add_argument(
        '--remap', action='append', default=[], metavar='TOPIC:=NAME',
        help='topic of the bag to a name of the node, as in agentview/image_raw',
    )  # fmt: skip
    b.add_argument('--namespace', default='', help='of the recorded topics')
    b.add_argument('--instruction', default='', help='in force until the bag has one')
    b.add_argument('--period', type=float, default=0.0, help='at least between ticks, s (0)')
    b.add_argument('--limit', type=int, default=0, help='ticks to replay; 0: all')
    b.add_argument('--salvage', action='store_true', help='take what is whole of a damaged file')
    b.add_argument('--ignore-outputs', action='store_true', help='take the inputs only')

    m = p.add_argument_group('policy')
    m.add_argument('--checkpoint', default='', help='directory; default: the embedded policy')
    m.add_argument(
        '--checkpoint-for', action='append', default=[], metavar='MODE=DIR',
        help='another one for a mode; embedded: lightvla has its own',
    )  # fmt: skip
    m.add_argument(
        '--other-checkpoint', action='store_true',
        help='compare although the reference was made with other weights',
    )  # fmt: skip
    m.add_argument('--device', default='', help='torch device; default: as the reference')
    m.add_argument(
        '-p', '--param', action='append', default=[], metavar='NAME:=VALUE',
        help='parameter of the node, such as sync.slop:=0.05 or cameras:=[front,hand]; default: as'
        ' recorded, as far as that is known, and one thread',
    )  # fmt: skip
    m.add_argument(
        '--params-file', type=Path, default=None, help='parameters of the node, as it was run with'
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Replay; 0 only if everything passed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(argv)
    try:
        tiers = check(args)
    except UsageError as error:
        print(f'replay: {error}', file=sys.stderr)
        return 2
    # From here on ROS messages and torch are needed.
    from vla_prune_ros.ros.children import ChildDiedError, isolate, keep_local

    if 'T2' in tiers and 'ROS_DOMAIN_ID' in os.environ:
        keep_local()
    elif 'T2' in tiers:
        isolate(None)
    from vla_prune_ros.bags.files import BagError
    from vla_prune_ros.bags.graph import GraphError
    from vla_prune_ros.bags.plan import ReplayError
    from vla_prune_ros.bags.run import Replay

    try:
        return Replay(args, argv, tiers).run()
    except UsageError as error:
        print(f'replay: {error}', file=sys.stderr)
        return 2
    except (ReplayError, ChildDiedError, GraphError, OSError, RuntimeError, ValueError) as error:
        cure = ': use them with --salvage' if isinstance(error, BagError) and error.whole else ''
        print(f'replay: {error}{cure}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nreplay: interrupted', file=sys.stderr)
        return 130


def check(args: argparse.Namespace) -> list[str]:
    """The tiers asked for, in order.

    Raises:
        UsageError: something is wrong that needs no bag to see it.
    """
    if not args.bag.exists():
        raise UsageError(f'{args.bag} does not exist')
    tiers = [tier for tier in args.tiers.split(',') if tier]
    if unknown := [tier for tier in tiers if tier not in TIERS]:
        raise UsageError(f'unknown tier {unknown[0]!r}; tiers: {", ".join(TIERS)}')
    if not tiers:
        raise UsageError('--tiers: none')
    for text in args.remap:
        source, sign, target = text.partition(':=')
        if not (source and sign and target):
            raise UsageError(f'--remap {text!r} is not TOPIC:=NAME')
    limits = {'atol': args.atol, 'jaccard': args.jaccard, 'gripper': args.gripper}
    for name, value in (limits | {'count': args.count}).items():
        if value is not None and not value >= 0:
            raise UsageError(f'--{name} {value} is not a tolerance')
    if args.audit and 'T1' not in tiers:
        raise UsageError('--audit goes with T1')
    if args.update_golden and 'T1' not in tiers:
        raise UsageError('--update-golden takes the values of T1')
    if args.dry_run and not args.update_golden:
        raise UsageError('--dry-run goes with --update-golden')
    return [tier for tier in TIERS if tier in tiers]


if __name__ == '__main__':
    sys.exit(main())
