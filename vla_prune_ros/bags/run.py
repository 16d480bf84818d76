# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One run of the verb `replay`, from its arguments to its files and its exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vla_prune_ros.bags import report
from vla_prune_ros.bags.auditing import audit_report
from vla_prune_ros.bags.compare import (
    TickComparison,
    Tolerance,
    Verdict,
    compare,
    default_tolerance,
    judge,
)
from vla_prune_ros.bags.feed import Feed
from vla_prune_ros.bags.files import Bag
from vla_prune_ros.bags.graph import Player
from vla_prune_ros.bags.offline import (
    WAYS,
    Schedule,
    Setup,
    fingerprint,
    load,
    run_track,
    setup_of,
)
from vla_prune_ros.bags.plan import GOLDEN, ReplayError, chosen_switches, chosen_tracks
from vla_prune_ros.bags.settings import chosen_parameters, device_of, said_by
from vla_prune_ros.bags.streams import FeedSettings
from vla_prune_ros.bags.tracks import (
    RECORDED,
    Track,
    golden_path,
    read_golden,
    recorded_track,
    start_of,
    write_golden,
)


class Replay:
    """Everything that the arguments ask for."""

    def __init__(self, args: argparse.Namespace, argv: Sequence[str], tiers: list[str]) -> None:
        self.args, self.argv, self.tiers = args, list(argv), tiers
        self.verdicts: list[Verdict] = []
        self.warnings: list[str] = []
        self._policies: dict[str, Any] = {}

    def run(self) -> int:
        """Do it; the exit code."""
        with ExitStack() as stack:
            self.bag = stack.enter_context(Bag(self.args.bag, self.args.salvage))
            self._prepare()
            references = self._references()
            self.out = report.new_folder(self.args.out, self.args.bag)
            self.lines = report.Lines(self.out / report.LINES)
            stack.callback(self.lines.close)
            print(f'replay: {self.args.bag}: {", ".join(self.tracks)}; results in {self.out}')
            self._header()
            for tier in self.tiers:
                getattr(self, f'_{tier.lower()}')(references)
            return self._finish()

    # -- what is to be done --------------------------------------------------------------------
    def _prepare(self) -> None:
        args = self.args
        given = chosen_parameters(args.params_file, args.param)
        self.settings = FeedSettings(
            namespace=args.namespace,
            remap=dict(text.split(':=', 1) for text in args.remap),
            instruction=args.instruction.strip(),
            period=args.period,
            limit=args.limit,
        )
        self.recorded = (
            Track(RECORDED) if args.ignore_outputs else recorded_track(self.bag, self.settings)
        )
        self.golden_path = golden_path(args.bag)
        self.golden = read_golden(self.golden_path)
        self.checkpoint = args.checkpoint or given.get('checkpoint', '')
        self.tracks = chosen_tracks(args, self.checkpoint, bool(self.recorded.outputs))
        if args.device:
            given['device'] = args.device
        references = (*self.golden.values(), self.recorded)
        info = next((r.info for r in references if r.info), {})
        values = said_by(self.recorded.info) | given
        if args.compare == GOLDEN and given.get('device', 'auto') == 'auto':
            values |= device_of(info) | ({'dtype': given['dtype']} if 'dtype' in given else {})
        self.setup = setup_of(self.checkpoint, values)
        self.settings = self.settings.for_node(self.setup.config, given)
        self.feed = Feed(self.bag, self.settings, self.recorded.stamps, self.recorded.seen)
        self.switches = chosen_switches(args.switch)
        self.results: dict[str, Track] = {}

    def _setup(self, name: str) -> Setup:
        entry = self.tracks[name]
        checkpoint = (entry.checkpoint if entry is not None else None) or self.checkpoint
        if checkpoint and not Path(checkpoint).is_dir():
            from vla_prune_ros import weights

            checkpoint = str(weights.directory(checkpoint))
        return replace(self.setup, checkpoint=checkpoint)

    def _policy(self, name: str) -> Any:
        setup = self._setup(name)
        if setup.checkpoint not in self._policies:
            self._policies[setup.checkpoint] = load(setup)
        return self._policies[setup.checkpoint]

    def _schedule(self, name: str) -> Schedule:
        entry = self.tracks[name]
        forced = None if entry is None else (entry.mode, dict(entry.options))
        return Schedule(self.recorded, forced, self.switches)

    # -- references ----------------------------------------------------------------------------
    def _references(self) -> dict[str, Track]:
        """Track -> what it is held against; those of --compare MODE come from T1."""
        if self.args.compare != GOLDEN:
            return {}
        found, missing = {}, []
        for name in self.tracks:
            reference = self.golden.get(name)
            if reference is None and self.recorded.outputs:
                modes = {output.mode for output in self.recorded.outputs}
                if name == RECORDED or modes == {name}:
                    reference = self.recorded
            if reference is None:
                missing.append(name)
                continue
            found[name] = reference
        if self.args.update_golden:
            return found
        if missing:
            there = ', '.join([*self.golden, *([RECORDED] if self.recorded.outputs else [])])
            raise ReplayError(
                f'no golden values of {", ".join(missing)} for {self.args.bag}; there are:'
                f' {there or "none"}. Make them with --update-golden, or use --compare MODE'
            )
        for name, reference in found.items():
            self._require_same_weights(name, reference)
        return found

    def _require_same_weights(self, name: str, reference: Track) -> None:
        expected = {moment.sha256 for moment in reference.moments} - {''}
        found = self._policy(name).info()['sha256']
        if not expected:
            self.warnings.append(f'{name}: the reference does not say which weights it comes from')
        elif found not in expected and not self.args.other_checkpoint:
            others = ', '.join(f'{sha256[:16]}...' for sha256 in sorted(expected))
            raise ReplayError(
                f'{name}: the reference was made with the weights {others}, these are'
                f' {found[:16]}...; give --checkpoint, or --other-checkpoint to compare anyway'
            )

    def _left_out(self, name: str, reference: Track) -> set[int]:
        """Stamps of recorded ticks that cannot come out the same."""
        if reference.name != RECORDED:
            return set()
        own, first = self._policy(name).info()['sha256'], start_of(reference)
        stamps, moments = reference.stamps, reference.moments
        foreign = [moment.sha256 not in ('', own) for moment in moments]
        others = {s for s, other in zip(stamps, foreign, strict=True) if other}
        if self.args.other_checkpoint:
            others.clear()
        if others:
            self.warnings.append(
                f'{len(others)} recorded ticks come from other weights and are left out; replay'
                ' them with --checkpoint'
            )
        if first:
            self.warnings.append(
                f'the recording begins in the middle of a run: its first {first} ticks depend on'
                ' what came before and are left out'
            )
        return others | set(stamps[:first])

    def _tolerance(self, name: str, reference: Track) -> Tolerance | None:
        args = self.args
        named = {key: getattr(args, key) for key in ('atol', 'jaccard', 'count', 'gripper')}
        given = {key: value for key, value in named.items() if value is not None}
        if args.compare != GOLDEN:
            return replace(Tolerance(np.inf, 0.0, sys.maxsize, 1.0), **given) if given else None
        own = fingerprint(self._policy(name))
        same = all(reference.info.get(key) == value for key, value in own.items())
        for key in WAYS:
            if reference.info.get(key, own[key]) != own[key]:
                self.warnings.append(
                    f'{key} is {own[key]}, that of the reference was {reference.info[key]}'
                )
        return replace(default_tolerance(same, own['dtype']), **given)

    def _compare(
        self, tier: str, name: str, result: Track, reference: Track
    ) -> list[TickComparison]:
        normaliser = self._policy(name).processor.normaliser
        zero = np.zeros(self._policy(name).config.action_dim)
        scale = normaliser.normalise_actions(zero + 1.0) - normaliser.normalise_actions(zero)
        tolerance = Tolerance() if tier == 'T0' else self._tolerance(name, reference)
        expected, outputs = reference.outputs, result.outputs
        if self.args.limit:
            expected = expected[: self.args.limit]
        if self.args.compare == GOLDEN and tier != 'T0':  # those that cannot come out the same
            out = self._left_out(name, reference)
            expected = [e for e in expected if e.stamp not in out]
            outputs = [o for o in outputs if o.stamp not in out]
        comparisons = compare(
            outputs, expected, scale, tolerance,
            same_mode=self.args.compare == GOLDEN and not self.switches,
        )  # fmt: skip
        label = 'the direct call' if tier == 'T0' else self._label(reference)
        for comparison in comparisons:
            where = {'tier': tier, 'track': name, 'reference': label}
            self.lines.write(comparison.record() | where)
        verdict = judge(tier, name, label, comparisons)
        self.verdicts.append(verdict)
        print(f'replay: {verdict.text()}', flush=True)
        return comparisons

    # -- tiers ---------------------------------------------------------------------------------
    def _t0(self, references: Mapping[str, Track]) -> None:
        for name in self.tracks:
            direct = self._offline(name)
            through = self._run(name, 'T0', by_messages=True)
            self._compare('T0', name, through, replace(direct, name='direct'))

    def _t1(self, references: Mapping[str, Track]) -> None:
        compared: dict[str, list[TickComparison]] = {}
        names = self._policy(next(iter(self.tracks))).info()['dimension_names']
        for name in self.tracks:
            track = self._offline(name)
            reference = self._reference(name, references)
            if reference is None:
                print(f'replay: T1 {name}: {len(track.outputs)} ticks, no golden values yet')
                continue
            if not self.args.no_plots:
                other = self._label(reference)
                report.actions_plot(
                    track.outputs, reference.outputs, (f'{name} now', f'reference: {other}'),
                    names, f'{self.args.bag.name}: {name}',
                    self.out / f'actions_{name.replace(" ", "_")}.png',
                )  # fmt: skip
            compared[name] = self._compare('T1', name, track, reference)
        print(f'\n{report.difference_table(compared, names)}\n')
        if self.args.audit:
            print(audit_report(self.bag, self.settings, self.results, self.lines))
        if self.args.update_golden:
            self._update_golden()

    def _offline(self, name: str) -> Track:
        if name not in self.results:
            self.results[name] = self._run(name, 'T1', audit=self.args.audit)
            if not self.results[name].outputs:
                raise ReplayError('\n'.join([self.feed.nothing(), *self.feed.warnings()]))
        return self.results[name]

    def _run(self, name: str, tier: str, **how: bool) -> Track:
        policy, schedule = self._policy(name), self._schedule(name)
        with self._progress(f'{tier} {name}') as bar:
            return run_track(policy, self.feed, schedule, self.setup, name, bar.update, **how)

    def _t2(self, references: Mapping[str, Track]) -> None:
        by_checkpoint: dict[str, list[str]] = {}
        for name in self.tracks:
            by_checkpoint.setdefault(self._setup(name).checkpoint, []).append(name)
        for number, names in enumerate(by_checkpoint.values()):
            with Player(self._setup(names[0]), self.out / f'node{number}') as player:
                for name in names:
                    with self._progress(f'T2 {name}') as bar:
                        track = player.play(self.feed, self._schedule(name), name, bar.update)
                    reference = self._reference(name, references)
                    self._compare('T2', name, track, reference or self._offline(name))
            if player.exit_code:
                raise ReplayError(f'the policy node ended with exit code {player.exit_code}')

    def _reference(self, name: str, references: Mapping[str, Track]) -> Track | None:
        if self.args.compare == GOLDEN:
            return references.get(name)
        return self._offline(self.args.compare)

    def _label(self, reference: Track) -> str:
        return self.args.compare if reference is not self.recorded else RECORDED

    def _progress(self, text: str) -> tqdm:
        return tqdm(desc=text, unit=' ticks', leave=False, disable=not sys.stderr.isatty())

    # -- results -------------------------------------------------------------------------------
    def _header(self) -> None:
        config = {
            'feed': asdict(self.settings),
            'setup': asdict(self.setup),
            'tracks': {n: None if e is None else asdict(e) for n, e in self.tracks.items()},
            'switches': self.switches,
            'compare': self.args.compare,
            'trigger': self.feed.trigger,
        }
        policies = {name: self._policy(name) for name in self.tracks}
        golden = self.golden_path if self.golden else None
        self.lines.write(report.header(self.argv, self.bag, golden, config) | {
            'checkpoint_sha256': {name: p.info()['sha256'] for name, p in policies.items()},
            'topics': {stream.name: topic for topic, stream in self.feed.streams.items()},
            'fingerprint': fingerprint(next(iter(policies.values()))),
        })  # fmt: skip

    def _update_golden(self) -> None:
        if start_of(self.recorded):
            raise ReplayError('no golden values: the recording does not begin with a clean reset')
        self.verdicts = [v for v in self.verdicts if v.tier != 'T1']  # shown, not judged
        if self.args.dry_run:
            print(f'replay: {self.golden_path} is left as it is')
            return
        write_golden(self.golden_path, {**self.golden, **self.results}, self.setup.period)
        print(f'replay: golden values of {", ".join(self.results)} written to {self.golden_path}')

    def _finish(self) -> int:
        warnings = list(dict.fromkeys([*self.warnings, *self.feed.warnings()]))
        references = self.recorded, *self.golden.values()
        problems = [*self.feed.problems(), *(p for r in references for p in r.problems)]
        for warning in warnings:
            print(f'replay: warning: {warning}', file=sys.stderr)
        for problem in problems:
            print(f'replay: the reference is incomplete: {problem}', file=sys.stderr)
        broken = problems and self.args.compare == GOLDEN
        passed = all(v.passed for v in self.verdicts) and not broken
        self.lines.write({
            'type': 'verdict',
            'passed': passed,
            'verdicts': [v.record() for v in self.verdicts],
            'problems': problems,
            'warnings': warnings,
        })  # fmt: skip
        report.write_junit(self.verdicts, self.out / report.JUNIT)
        print(f'replay: {"PASS" if passed else "FAIL"}')
        return 0 if passed else 1
