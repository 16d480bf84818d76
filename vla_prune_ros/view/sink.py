# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Drawings to rerun, the only place that knows it: a page in the browser, a file, or both.

The server is a child process: it listens where it is told to (the one inside the SDK listens on
every address), its memory is bounded, and a viewer that cannot follow blocks neither it nor us for
long. The SDK may block while it sends, so it is called from one thread that nobody waits for.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from vla_prune_ros.ros.children import die_with_parent
from vla_prune_ros.view.scene import Drawing, Lines

SERVER_MEMORY = '256MB'
START = 20.0  # s that the server may take to listen
YEAR_2001 = 1_000_000_000  # s; stamps below are those of a simulation
COLOURS = {
    'world/path': (60, 180, 75),
    'world/plan': (255, 150, 0),
    'world/superseded': (150, 150, 150),
    'world/unplayed': (120, 120, 160),
}
EYE = np.array([0.3, -0.3, 0.2])  # m, from the first path to whoever looks at it
BELOW = 0.08  # m; a robot begins above its work
PLOTS = {  # two lines of one plot must not get one colour
    'time/age': (230, 60, 60),
    'time/chunk_lasts': (150, 150, 150),
    'tokens/kept': (255, 150, 0),
    'tokens/total': (150, 150, 150),
    'gripper/measured': (60, 180, 75),
    'gripper/wished': (255, 150, 0),
}


class ViewerError(RuntimeError):
    """There is no viewer, or it does not start; the text says what to do."""


def require_rerun() -> None:
    """ViewerError unless rerun is installed; does not import it."""
    if find_spec('rerun') is None:
        raise ViewerError(
            'live_view needs rerun, about 650 MB on disk:  pip install -r requirements/view.txt'
        )


class RerunSink:
    """Shows drawings; use it as a context manager.

    Args:
        file: an .rrd file to write; None: none.
        bind: address of the web page; '' for no page.
        ports: of the page, and of the data behind it.
        cameras: names of the pictures, for the layout.
        jpeg_quality: of pictures, 1 to 100.

    Raises:
        ViewerError: rerun is missing, or a port is taken.
    """

    def __init__(
        self,
        file: Path | None,
        bind: str,
        ports: tuple[int, int],
        cameras: tuple[str, ...],
        jpeg_quality: int = 75,
    ) -> None:
        require_rerun()
        import rerun

        self._rerun, self._quality, self._server = rerun, jpeg_quality, None
        self.url = ''
        self._recording = rerun.RecordingStream('vla_prune_ros')
        sinks: list[Any] = []
        if bind:
            self._serve(bind, *ports)
            host = '127.0.0.1' if bind == '0.0.0.0' else bind
            data = f'rerun+http://{host}:{ports[1]}/proxy'
            self.url = f'http://{host}:{ports[0]}/?url={quote(data, safe=":/")}'
            sinks.append(rerun.GrpcSink(data))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            sinks.append(rerun.FileSink(str(file)))
        self._cameras, self._aimed = cameras, False
        self._recording.set_sinks(*sinks, default_blueprint=_layout(cameras, None))
        for path, colour in PLOTS.items():
            style = rerun.SeriesLines(colors=[colour], names=[path.rpartition('/')[2]])
            self._recording.log(path, style, static=True)
        self._recording.log('world', rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

    def _serve(self, bind: str, web_port: int, data_port: int) -> None:
        for port in (web_port, data_port):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((bind, port))
                except OSError as error:
                    raise ViewerError(f'cannot listen on {bind}:{port}: {error}') from error
        # `python -m rerun` would start this as a child of its own, which outlives it.
        program = Path(find_spec('rerun_cli').origin).parent / 'rerun'
        command = [str(program), '--serve-web', '--bind', bind]
        command += ['--port', str(data_port), '--web-viewer-port', str(web_port)]
        command += ['--server-memory-limit', SERVER_MEMORY, '--newest-first']
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        deadline = time.monotonic() + START
        while not all(_listens(bind, port) for port in (web_port, data_port)):
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._stop()
                raise ViewerError(f'the server of the page did not start: {" ".join(command)}')
            time.sleep(0.05)

    def show(self, drawings: Iterable[Drawing]) -> None:
        """Show them; may take a while when the viewer cannot follow."""
        rerun, stream = self._rerun, self._recording
        for drawing in drawings:
            seconds, content = drawing.stamp / 1e9, drawing.content
            if seconds < YEAR_2001:
                stream.set_time('ros_time', duration=seconds)
            else:
                stream.set_time('ros_time', timestamp=np.datetime64(drawing.stamp, 'ns'))
            if isinstance(content, np.ndarray):
                shown = rerun.Image(content).compress(jpeg_quality=self._quality)
            elif isinstance(content, Lines):
                self._aim(content)
                colour = COLOURS[drawing.path]
                shown = rerun.LineStrips3D(content.strips, colors=[colour], radii=[0.0015])
            elif isinstance(content, str):
                shown = rerun.TextDocument(content, media_type='text/markdown')
            else:
                shown = rerun.Scalars(content)
            stream.log(drawing.path, shown)

    def _aim(self, lines: Lines) -> None:
        """Look at where the robot is: the viewer's own choice is a plane of metres."""
        if not self._aimed and lines.strips:
            self._aimed = True
            middle = lines.strips[0].mean(0) - (0, 0, BELOW)
            self._recording.send_blueprint(_layout(self._cameras, middle))

    def close(self) -> None:
        """Write what is left and end the page."""
        self._recording.flush()
        self._recording.disconnect()
        self._stop()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(3.0)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()

    def __enter__(self) -> RerunSink:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _listens(bind: str, port: int) -> bool:
    host = '127.0.0.1' if bind == '0.0.0.0' else bind
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def _layout(cameras: tuple[str, ...], middle: np.ndarray | None) -> Any:
    import rerun.blueprint as blueprint

    pictures = [
        blueprint.Horizontal(
            *(blueprint.Spatial2DView(origin=f'{kind}/{name}', name=title.format(name))
              for name in cameras)
        )
        for kind, title in (('kept', '{}: kept patches'), ('cameras', '{}'))
    ]  # fmt: skip
    plots = [
        blueprint.TimeSeriesView(origin='time', name='time (ms)'),
        blueprint.TimeSeriesView(origin='tokens', name='tokens'),
        blueprint.TimeSeriesView(
            origin='gripper', name='gripper', axis_y=blueprint.ScalarAxis(range=(-0.1, 1.1))
        ),
    ]
    text = blueprint.TextDocumentView(origin='text', name='what runs')
    eye = None
    if middle is not None:
        eye = blueprint.EyeControls3D(position=middle + EYE, look_target=middle, eye_up=(0, 0, 1))
    world = blueprint.Spatial3DView(
        origin='world',
        name='path green, plan orange, superseded grey, never played dashed',
        eye_controls=eye,
    )
    return blueprint.Blueprint(
        blueprint.Horizontal(
            blueprint.Vertical(text, *pictures, row_shares=[1, 2, 2]),
            blueprint.Vertical(world, *plots, row_shares=[3, 1, 1, 1]),
        ),
        blueprint.TimePanel(state='collapsed'),
        blueprint.BlueprintPanel(state='hidden'),
        blueprint.SelectionPanel(state='hidden'),
    )
