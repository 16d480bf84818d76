# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `check`: is a checkpoint directory complete, what does it fit, what does it need.

Headers and small files are read, the weights are not: a 7B checkpoint takes seconds.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.command_line import exit_code_of, verb_parser, write_json
from vla_prune_ros.vla.variant import KEYS, PRESETS

DESCRIPTION = """\
Check a checkpoint directory in the published OpenVLA-OFT layout: names and shapes of all tensors,
statistics, tokenizer; which suites and pruning modes it fits, the memory it needs, the read-out to
use. Exit code 0: it can be used; 1: it cannot; 2: there is no such directory, or --json cannot be
written."""
BLANK_ID, LLAMA_VOCABULARY = 29871, 32064  # the piece that ends every prompt, in Llama 2
SHOWN = 3  # names of tensors in a message


@dataclass
class Report:
    """What was found: problems that forbid the use, remarks, and facts by name."""

    directory: str
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = verb_parser('check', DESCRIPTION)
    p.add_argument('directory', metavar='DIR', help='directory, or name of an embedded policy')
    p.add_argument(
        '--variant', default='', metavar='NAME[,KEY=VALUE...]',
        help='what the files do not say: ' + ', '.join(PRESETS) + '; see doc/variants.md',
    )  # fmt: skip
    p.add_argument('--json', type=Path, metavar='FILE', help='write the report there, too')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    args = parser().parse_args(sys.argv[1:] if argv is None else argv)
    return exit_code_of('check', lambda: check(args), wrong=2)


def check(args: argparse.Namespace) -> int:
    """Look, print, write; returns the exit code.

    Raises:
        OSError: there is no such directory, or the report cannot be written.
    """
    from vla_prune_ros import weights
    from vla_prune_ros.evaluation.rollouts import checkpoint_directory

    directory = checkpoint_directory(args.directory)
    if not directory.is_dir():
        known = ', '.join(weights.available())
        raise NotADirectoryError(f'no directory {directory}, and no embedded policy ({known})')
    report = check_checkpoint(directory, args.variant)
    print(text(report))
    if args.json:
        write_json(args.json, asdict(report))
    return 1 if report.problems else 0


def check_checkpoint(directory: str | Path, variant: str = '') -> Report:
    """Look at everything; a part that cannot be read is a problem and ends nothing else.

    Args:
        directory: of the checkpoint.
        variant: what the user declares, see `vla.variant.declared`.
    """
    import torch

    from vla_prune_ros.vla import OpenVLAOFT
    from vla_prune_ros.vla.config import OpenVLAConfig

    report = Report(str(directory))
    try:
        config = OpenVLAConfig.from_directory(directory, variant)
        with torch.device('meta'):
            model = OpenVLAOFT(config)
    except (OSError, ValueError, TypeError) as error:
        report.problems.append(str(error))
        return report
    _sizes(report, config)
    _weights(report, model, Path(directory))
    _statistics(report, config)
    _tokenizer(report, config, Path(directory))
    _modes(report, config)
    _readout(report, config)
    return report


def _sizes(report: Report, config: Any) -> None:
    llama, first, second = config.llama, config.featurizer, config.fused_featurizer
    report.facts['sizes'] = {
        'llama': f'{llama.n_layers} layers of {llama.hidden_size}, {llama.n_heads} heads',
        'towers': f'{first.depth} blocks of {first.dim}, {second.depth} blocks of {second.dim}',
        'image': f'{config.image_size} px, {config.patches_per_view} tokens per view',
    }
    report.facts['variant'] = {
        key: f'{_said(getattr(config, key))} ({config.origins[key]})' for key in KEYS
    }
    if config.head == 'tokens':
        report.remarks.append(
            "discrete tokens: made for weights of the authors' fine-tuning; models of RLinf have "
            'the same names and are another function (causal), which is not supported'
        )


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return ', '.join(value) if isinstance(value, tuple) else str(value)


# -- weights -----------------------------------------------------------------------------------
def _weights(report: Report, model: Any, directory: Path) -> None:
    from vla_prune_ros.vla.checkpoint import problems_of, published_shapes, unused_shapes
    from vla_prune_ros.vla.stored import FILM_FILE, head_file, head_names, stored_tensors

    config, stored = model.config, {}
    try:
        stored = stored_tensors(directory)
    except (OSError, ValueError) as error:
        report.problems.append(str(error))
    else:
        types = sorted({tensor.dtype for tensor in stored.values()})
        if strange := [t for t in types if t not in ('BF16', 'F16', 'F32', 'F64')]:
            report.problems.append(f'tensors of type {", ".join(strange)}, not floating point')
        report.facts['tensors'] = {
            'found': len(stored),
            'expected': len(published_shapes(model)),
            'without use here': len(unused_shapes(config).keys() & stored.keys()),
            'types': types,
            'files': len({tensor.path for tensor in stored.values()}),
        }
    for name in (*head_names(config), *([FILM_FILE] if config.film else [])):
        try:
            report.facts[name] = head_file(directory, name).name
        except (OSError, ValueError):
            report.facts[name] = 'in the safetensors'
    try:
        if stored:
            report.problems += problems_of(model, directory, stored, SHOWN)
    except (OSError, ValueError) as error:
        report.problems.append(str(error))
    _memory(report, model)


def _memory(report: Report, model: Any) -> None:
    from vla_prune_ros.vla.checkpoint import unused_shapes

    used = sum(p.numel() for p in model.parameters())
    idle = sum(int(np.prod(shape)) for shape in unused_shapes(model.config).values())
    report.facts['parameters'] = {'used': used, 'loaded but not used': idle}
    report.facts['memory'] = {
        name: f'{_bytes(used * size)} of weights on the device'
        for name, size in (('float32', 4), ('bfloat16', 2), ('float16', 2))
    }
    kept = f'{_bytes(idle * 2)} of tensors without use here stay in host memory (bfloat16)'
    report.facts['memory']['besides'] = kept


def _bytes(n: int) -> str:
    return f'{n / 1e9:.2f} GB' if n >= 1e9 else f'{n / 1e6:.2f} MB'


# -- statistics and tokenizer ------------------------------------------------------------------
def _statistics(report: Report, config: Any) -> None:
    from vla_prune_ros.sim.libero.suites import SUITES
    from vla_prune_ros.vla.normalisation import BOUNDS, Normaliser

    usable, (low, high) = [], BOUNDS[config.normalisation]
    for key, statistics in config.norm_stats.items():
        try:
            made = Normaliser(
                statistics, config.action_dim, config.proprio_dim, config.normalisation
            )
        except (ValueError, KeyError, TypeError) as error:
            report.problems.append(f'statistics {key}: {type(error).__name__}: {error}')
            continue
        for kind in ('action', 'proprio'):
            q = getattr(made, kind)
            if q is None:
                continue
            if not np.isfinite([q.low, q.span]).all():
                report.problems.append(f'statistics {key}: {kind} has numbers that are not finite')
            elif (q.span[q.mask] <= 0).any():
                report.problems.append(f'statistics {key}: {kind} has a {high} below its {low}')
            if constant := [i for i, same in enumerate(q.constant) if same]:
                report.remarks.append(
                    f'statistics {key}: {kind} numbers {constant} never change in the data'
                )
        if config.action_kind == 'delta_pose' and made.action.mask.tolist() != [True] * 6 + [
            False
        ]:
            report.remarks.append(f'statistics {key}: LIBERO scales six numbers, not the gripper')
        usable.append(key)
    if not config.norm_stats:
        report.problems.append('no statistics, neither dataset_statistics.json nor norm_stats')
    report.facts['statistics'] = usable
    fits = {}
    for suite in ('tabletop', *SUITES):
        own = [key for key in (suite, f'{suite}_no_noops') if key in usable]
        if own and config.action_dim == 7 and config.proprio_dim in (0, 8) and config.n_views < 3:
            fits[suite] = own[0]
    report.facts['suites'] = fits
    if not fits and usable:
        report.remarks.append('the statistics are of no suite here; evaluate wants --unnorm-key')


def _tokenizer(report: Report, config: Any, directory: Path) -> None:
    from vla_prune_ros.vla.tokenizer import PromptTokenizer

    try:
        tokenizer = PromptTokenizer.from_directory(
            directory, config.bos_id, config.llama.vocab_size
        )
        ids = tokenizer.prompt_ids('pick up the black bowl and place it on the plate')
    except (OSError, ValueError, ImportError) as error:
        report.problems.append(f'tokenizer: {error}')
        return
    except Exception as error:  # the tokenizers library has no exception type of its own
        report.problems.append(f'tokenizer: {type(error).__name__}: {error}')
        return
    if config.llama.vocab_size == LLAMA_VOCABULARY and ids[-1] != BLANK_ID:
        report.problems.append(
            f'tokenizer: prompts end with id {ids[-1]}, Llama 2 has {BLANK_ID}: not its vocabulary'
        )
    report.facts['tokenizer'] = f'{len(ids)} tokens for a sentence, the last one {ids[-1]}'


# -- what it is good for -----------------------------------------------------------------------
def _modes(report: Report, config: Any) -> None:
    from vla_prune_ros.pruning import MODES, make_selector

    modes = {}
    for mode in MODES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # the note says it
                modes[mode] = make_selector(mode, config).note or 'fits'
        except ValueError as error:
            modes[mode] = f'cannot run: {error}'
    report.facts['modes'] = modes
    report.facts['trained for'] = config.pruning_trained or 'not marked'


def _readout(report: Report, config: Any) -> None:
    trained, late = -(config.n_placeholders + 2), -config.n_placeholders
    options = {str(trained): 'as OpenVLA-OFT is trained; the default'}
    if not config.pruning_trained:
        options[str(late)] = (
            'only for weights of the LightVLA release, which carry no mark: its training reads'
            f' {trained}, its inference {late}. Measure both with --readout-start on the same'
            ' episodes'
        )
    report.facts['read-out'] = options
    report.facts['read-out recorded'] = 'readout_start in policy_info and in every results.json'


def text(report: Report) -> str:
    """The report for people."""
    lines = [f'checkpoint {report.directory}']
    for name, value in report.facts.items():
        if isinstance(value, Mapping):
            lines.append(f'{name}:' if value else f'{name}: none')
            lines += [f'  {key}: {_plain(v)}' for key, v in value.items()]
        else:
            lines.append(f'{name}: {_plain(value)}')
    lines += [f'remark: {remark}' for remark in report.remarks]
    lines += [f'PROBLEM: {problem}' for problem in report.problems]
    lines.append(f'{len(report.problems)} problem(s)' if report.problems else 'can be used')
    return '\n'.join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ', '.join(map(str, value)) or 'none'
    return f'{value:,}' if isinstance(value, int) else str(value)
