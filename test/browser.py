# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that looks at a page, through its debugging pipe. Not installed by ./run."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or ''


class Browser:
    """Use as a context manager; `folder` holds its profile."""

    def __init__(self, folder: Path, width: int = 1500, height: int = 950) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = ['--headless=new', '--no-sandbox', '--remote-debugging-pipe', '--no-first-run']
        flags += ['--use-angle=swiftshader', '--enable-unsafe-swiftshader']
        flags += [f'--user-data-dir={folder}', f'--window-size={width},{height}', 'about:blank']

        def pipes() -> None:  # Chromium reads file 3 and writes file 4
            os.dup2(os.dup(to_browser), 3)
            os.dup2(os.dup(from_browser), 4)

        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [CHROMIUM, *flags], preexec_fn=pipes, close_fds=False, stdout=quiet, stderr=quiet
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers, self._rest = itertools.count(1), b''

    def open(self, url: str) -> None:
        """Load a page."""
        target = self._call('Target.createTarget', url=url)['targetId']
        call = self._call('Target.attachToTarget', targetId=target, flatten=True)
        self._session = call['sessionId']

    def screenshot(self) -> bytes:
        """What is to be seen now, as PNG."""
        return base64.b64decode(self._call('Page.captureScreenshot', self._session)['data'])

    def _call(self, method: str, session: str = '', **parameters: object) -> dict:
        number = next(self._numbers)
        request = {'id': number, 'method': method, 'params': parameters}
        request |= {'sessionId': session} if session else {}
        os.write(self._out, json.dumps(request).encode() + b'\0')
        while True:
            while b'\0' not in self._rest:
                more = os.read(self._in, 1 << 20)
                assert more, 'the browser ended'
                self._rest += more
            text, _, self._rest = self._rest.partition(b'\0')
            answer = json.loads(text)
            if answer.get('id') == number:
                assert 'result' in answer, answer
                return answer['result']

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
