# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of video files by their time, decoded front to back, by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune_ros.datasets.base import DataError
from vla_prune_ros.datasets.checks import check_file
from vla_prune_ros.datasets.optional import library


def _open(file: Path, episode: str) -> Any:
    av = library('av', f'{file.name}: reading video')
    try:
        check_file(file)
        container = av.open(str(file))
    except DataError as error:
        raise DataError(file, error.what, error.cure, episode) from error
    except (OSError, ValueError) as error:
        raise _damaged(file, error, episode) from error
    if not container.streams.video:
        container.close()
        raise DataError(file, 'there is no video in it', 'download it again', episode)
    return container


def _damaged(file: Path, error: Exception, episode: str) -> DataError:
    return DataError(file, f'no video can be read: {error}', 'download it again', episode)


def check_length(file: Path, times: np.ndarray, rate: float, episode: str) -> None:
    """Whether a video says that it is as long as its rows; nothing is decoded.

    Raises:
        DataError: it is shorter, or cannot be opened.
    """
    with _open(file, episode) as container:
        stream = container.streams.video[0]
        if stream.duration is None:
            return
        begin = stream.start_time or 0
        end = float((begin + stream.duration) * stream.time_base)
    if len(times) and times[-1] > end - 0.5 / rate:
        raise _short(file, end, times, rate, episode)


def _short(file: Path, end: float, times: np.ndarray, rate: float, episode: str) -> DataError:
    step = int(np.searchsorted(times, end - 0.5 / rate))
    return DataError(
        file,
        f'the video ends at {end:.3f} s, its rows go on until {times[-1]:.3f} s',
        'download it again, or leave the episode out',
        episode,
        step,
    )


def frames(file: Path, times: np.ndarray, rate: float, episode: str) -> Iterator[np.ndarray]:
    """The frame nearest to each time, uint8 RGB [H, W, 3].

    Args:
        file: of the video.
        times: increasing, s.
        rate: of the rows, Hz; a frame may be half a period away.
        episode: whom errors are about.

    Raises:
        DataError: there is no frame near a time, or the video cannot be decoded.
    """
    av = library('av', f'{file.name}: reading video')
    with _open(file, episode) as container:
        stream = container.streams.video[0]
        try:
            container.seek(int(times[0] / stream.time_base), stream=stream)
            decoded = _timed(container, stream)
            here = next(decoded, None)
            following = next(decoded, None)
            for step, wanted in enumerate(times):
                while following is not None and here is not None:
                    if abs(following[0] - wanted) > abs(here[0] - wanted):
                        break
                    here, following = following, next(decoded, None)
                if here is None or abs(here[0] - wanted) > 0.5 / rate:
                    raise DataError(
                        file,
                        f'no frame near {wanted:.3f} s'
                        + ('' if here is None else f'; the nearest is at {here[0]:.3f} s'),
                        'the video does not belong to the rows, or is cut off: download it again',
                        episode,
                        step,
                    )
                yield here[1].to_ndarray(format='rgb24')
        except (av.FFmpegError, OSError) as error:
            raise _damaged(file, error, episode) from error


def _timed(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield float(frame.pts * stream.time_base), frame
