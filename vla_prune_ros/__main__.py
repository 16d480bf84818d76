# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`vla_prune_ros VERB ...` or `python -m vla_prune_ros VERB ...`: every command in one place.

A verb is a module with `main(argv) -> int | None`, imported only when it is called. A new command
is one line in `VERBS` and, for `ros2 run`, one link in scripts/.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
from collections.abc import Sequence

VERBS = {
    'demo': ('vla_prune_ros.trials.demo', 'both nodes, several tasks and pruning modes'),
    'evaluate': ('vla_prune_ros.evaluation.evaluate', 'success rates of pruning modes'),
    'shifts': ('vla_prune_ros.evaluation.shifts', 'worlds that differ from the suite'),
    'bench': ('vla_prune_ros.benchmark.bench', 'latency of pruning modes, by stage'),
    'gpu_check': ('vla_prune_ros.benchmark.gpu_check', 'tests and times of a GPU, unattended'),
    'deadline': ('vla_prune_ros.benchmark.deadline', 'governor against fixed budgets under load'),
    'latency': ('vla_prune_ros.trials.latency_sweep', 'success in real time against latency'),
    'realtime': ('vla_prune_ros.trials.realtime', 'both nodes in real time on a few cores'),
    'overhead': ('vla_prune_ros.trials.overhead', 'what the node adds to a direct call'),
    'soak': ('vla_prune_ros.trials.soak', 'hours of ticks: do memory and latency stay flat'),
    'calibrate': ('vla_prune_ros.evaluation.calibrate', 'layer importance for efficient_vla'),
    'train': ('vla_prune_ros.training.train', 'demonstrations and behaviour cloning'),
    'check': ('vla_prune_ros.evaluation.check', 'is a checkpoint complete, and what for'),
    'libero_setup': ('vla_prune_ros.sim.libero.setup', 'is LIBERO ready; fetch its assets'),
    'libero_expert': ('vla_prune_ros.trials.libero_expert', 'LIBERO and nodes, by an expert'),
    'expert_node': ('vla_prune_ros.nodes.expert_node', 'ROS node: a scripted expert'),
    'policy_node': ('vla_prune_ros.nodes.policy.policy_node', 'ROS node: the policy'),
    'sim_bridge': ('vla_prune_ros.nodes.simulation.sim_bridge', 'ROS node: a simulated robot'),
    'robot_bridge': ('vla_prune_ros.nodes.robot.robot_bridge', 'ROS node: chunks on a robot arm'),
    'robot_check': ('vla_prune_ros.trials.robot_check', 'how far an action moves the hand'),
    'robot_trial': ('vla_prune_ros.trials.robot_trial', 'success of policy, bridge and an arm'),
    'live_view': ('vla_prune_ros.view.live_view', 'cameras, plans and numbers in a browser'),
    'record': ('vla_prune_ros.bags.record', 'what the policy gets and gives into a bag'),
    'replay': ('vla_prune_ros.bags.replay', 'run the policy over a recorded bag'),
}

NODES = (
    'expert_node',
    'policy_node',
    'robot_bridge',
    'sim_bridge',
)  # they end with 0 when they are told to

# What a verb can do with rooms above its own: modules whose `register` is called before it.
BEFORE = {'train': ('vla_prune_ros.bags.demonstrations',)}


def usage() -> str:
    """The help text."""
    lines = ['usage: vla_prune_ros VERB [arguments]', '', 'verbs:']
    lines += [f'  {verb:12} {summary}' for verb, (_, summary) in VERBS.items()]
    return '\n'.join([*lines, '', 'VERB --help describes one verb.'])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; its exit code is returned, 2 for an unknown verb."""
    if not faulthandler.is_enabled():  # a crash in native code says where every thread was
        faulthandler.enable(sys.__stderr__)
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help'):
        print(usage())
        return 0 if argv else 2
    verb, *rest = argv
    if verb not in VERBS:
        print(f'unknown verb {verb!r}\n\n{usage()}', file=sys.stderr)
        return 2
    if verb in NODES:  # imports take a second, in which there is nothing to tidy up yet
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(0))
        # Before torch is loaded: threads of OpenMP that spin while they wait take the cores from
        # the robot's other processes, which then hold up the thread that all the others wait for.
        os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    for name in BEFORE.get(verb, ()):
        importlib.import_module(name).register()
    try:
        code = importlib.import_module(VERBS[verb][0]).main(rest) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:  # while it was imported, or where a verb has nothing to say about it
        print(f'\n{verb}: interrupted', file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read along, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == '__main__':
    sys.exit(main())
