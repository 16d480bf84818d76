# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the demo leaves behind: a table, results.json, an animated picture and a strip."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_prune_ros.evaluation.statistics import percentiles, wilson_interval
from vla_prune_ros.evaluation.summary import footnotes, percent, table

CAPTION_HEIGHT = 46
LAST_FRAME_MS = 1500  # before the animation starts again


@dataclass(frozen=True)
class Query:
    """One action chunk as the statistics topic told it.

    Attributes:
        mode: pruning mode that made it.
        stamp: of the observation, seconds of simulated time.
        kept: absolute visual ids that entered the last layer, int [K].
        n_visual: visual tokens before pruning.
        latency_ms: wall time from observation to chunk.
    """

    mode: str
    stamp: float
    kept: np.ndarray
    n_visual: int
    latency_ms: float


@dataclass(frozen=True)
class Frame:
    """The camera pictures of one instant, uint8 [H, W, 3] each, in the order of the views."""

    stamp: float
    views: tuple[np.ndarray, ...]


@dataclass
class DemoEpisode:
    """One episode of the demo, as seen on the topics.

    `note` is what `policy_info` says of it, `checkpoint` the name of the weights.
    """

    mode: str
    task: str
    instruction: str
    state: int
    success: bool
    steps: int
    queries: list[Query] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    note: str = ''
    checkpoint: str = ''

    def to_json(self) -> dict:
        """Everything but the pictures."""
        return {
            'mode': self.mode,
            'task': self.task,
            'instruction': self.instruction,
            'state': self.state,
            'success': self.success,
            'steps': self.steps,
            'queries': len(self.queries),
            'kept': [len(query.kept) for query in self.queries],
            'latency_ms': [round(query.latency_ms, 2) for query in self.queries],
        }


def demo_rows(modes: Sequence[str], episodes: Sequence[DemoEpisode]) -> list[dict]:
    """One row per mode, in the order of `modes`.

    Latency leaves out the first query of each episode, which warms up.
    """
    rows = []
    for mode in modes:
        ours = [episode for episode in episodes if episode.mode == mode]
        successes = sum(episode.success for episode in ours)
        low, high = wilson_interval(successes, len(ours))
        queries = [query for episode in ours for query in episode.queries]
        warm = [q.latency_ms for episode in ours for q in episode.queries[1:]]
        rows.append({
            'mode': mode,
            'episodes': len(ours),
            'successes': successes,
            'success': successes / len(ours) if ours else 0.0,
            'low': low,
            'high': high,
            'kept': float(np.mean([len(q.kept) for q in queries])) if queries else 0.0,
            'visual_tokens': max((q.n_visual for q in queries), default=0),
            'latency_ms': percentiles(warm or [q.latency_ms for q in queries], (50, 95)),
            'checkpoint': next((episode.checkpoint for episode in ours), ''),
            'note': next((episode.note for episode in ours), ''),
        })  # fmt: skip
    return rows


def demo_table(rows: Sequence[dict]) -> str:
    """The table of the demo, in Markdown, with notes below it."""
    counts = Counter(row['checkpoint'] for row in rows)
    usual = counts.most_common(1)[0][0] if counts else ''
    notes = [
        [f'on weights {row["checkpoint"]}'] * (row['checkpoint'] not in ('', usual))
        + [row['note']] * bool(row['note'])
        for row in rows
    ]
    names, below = footnotes([row['mode'] for row in rows], notes)
    lines = []
    for name, row in zip(names, rows, strict=True):
        ms = row['latency_ms']
        times = f'{ms["p50"]:.1f} / {ms["p95"]:.1f}' if ms['n'] else '-'
        tokens = f'{row["kept"]:.1f} of {row["visual_tokens"]}'
        lines.append([name, row['episodes'], percent(row), tokens, times])
    headers = [
        'mode',
        'episodes',
        'success (95 % Wilson interval)',
        'visual tokens kept',
        'chunk latency ms, p50 / p95',
    ]
    return table(headers, lines) + (f'\n\n{below}' if below else '')


def write_results(
    path: Path, run: dict, rows: Sequence[dict], episodes: Sequence[DemoEpisode]
) -> None:
    """The table and every episode as JSON."""
    data = {'run': run, 'modes': list(rows), 'episodes': [e.to_json() for e in episodes]}
    Path(path).write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')


def choose_episode(episodes: Sequence[DemoEpisode]) -> DemoEpisode:
    """The episode worth showing: with pruning, then successful, then not by a control."""
    with_pictures = [e for e in episodes if e.frames and e.queries]
    if not with_pictures:
        raise ValueError('no episode has pictures and inference statistics')

    def merit(episode: DemoEpisode) -> tuple:
        pruned = any(len(query.kept) < query.n_visual for query in episode.queries)
        control = episode.mode in ('random', 'grid')
        return pruned, episode.success, not control, len(episode.frames)

    return max(with_pictures, key=merit)


def draw_frame(episode: DemoEpisode, frame: Frame, scale: int = 1) -> Image.Image:
    """Both cameras with the kept patches of the query in force, over a caption."""
    from vla_prune_ros.pruning.overlay import draw_views  # the room imports torch

    query = query_at(episode, frame.stamp)
    per_view = query.n_visual // len(frame.views)
    picture = draw_views(frame.views, query.kept, per_view, scale=scale)
    height, width = picture.shape[:2]
    canvas = Image.new('RGB', (width, height + CAPTION_HEIGHT), (250, 250, 250))
    canvas.paste(Image.fromarray(picture), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    pen.text((8, height + 4), f'"{episode.instruction}"', fill=(20, 20, 20), font=font)
    facts = f'{episode.mode}: {len(query.kept)} of {query.n_visual} visual tokens'
    facts += f', {query.latency_ms:.0f} ms, t = {frame.stamp - episode.frames[0].stamp:.1f} s'
    pen.text((8, height + 24), facts, fill=(90, 90, 90), font=font)
    return canvas


def query_at(episode: DemoEpisode, stamp: float) -> Query:
    """The last query whose observation is not newer than `stamp`; the first one before that."""
    past = [query for query in episode.queries if query.stamp <= stamp + 1e-6]
    return past[-1] if past else episode.queries[0]


def write_animation(path: Path, episode: DemoEpisode) -> None:
    """An animated GIF of one episode in real time; it opens in every browser and viewer."""
    frames = [draw_frame(episode, frame).quantize(96, dither=0) for frame in episode.frames]
    steps = np.diff([frame.stamp for frame in episode.frames])
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=[*(round(1000 * float(step)) for step in steps), LAST_FRAME_MS],
        loop=0,
    )


def write_strip(path: Path, episodes: Sequence[DemoEpisode], moments: int = 3) -> None:
    """One row per mode, time from left to right: the same initial state under every mode."""
    rows = comparable(episodes)
    width, height = draw_frame(rows[0], rows[0].frames[0]).size
    strip = Image.new('RGB', (moments * width, len(rows) * height))
    for y, episode in enumerate(rows):
        picks = np.linspace(0, len(episode.frames) - 1, moments).round().astype(int)
        for x, k in enumerate(picks):
            strip.paste(draw_frame(episode, episode.frames[k]), (x * width, y * height))
    strip.save(path)


def comparable(episodes: Sequence[DemoEpisode]) -> list[DemoEpisode]:
    """One episode per mode, all of the same task and initial state where there is such a set."""
    pictured = [e for e in episodes if e.frames and e.queries]
    modes = list(dict.fromkeys(e.mode for e in pictured))
    best: list[DemoEpisode] = []
    for key in dict.fromkeys((e.task, e.state) for e in pictured):
        same = {e.mode: e for e in pictured if (e.task, e.state) == key}
        if len(same) > len(best):
            best = [same[mode] for mode in modes if mode in same]
    if not best:
        raise ValueError('no episode has pictures and inference statistics')
    return best
