# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where LIBERO is, where its assets are, and an import of it that asks no questions.

On its first import LIBERO asks on standard input where data sets should go, and when an
environment is built without assets it downloads them. Neither happens here: the file whose absence
triggers the question is written beforehand, and assets are looked for, never fetched.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_prune_ros.sim.libero import placeholder

VARIABLE = 'LIBERO_ASSETS'  # environment variable: a directory, or 'placeholder'
PLACEHOLDER = 'placeholder'
REPOSITORY = 'lerobot/libero-assets'  # data set on the Hugging Face hub
FOLDERS = ('articulated_objects', 'scenes', 'stable_scanned_objects', 'textures')
MUJOCO_LIMIT = (3, 4)  # from here on the bowl of libero_spatial task 5 slides off its ramekin


class LiberoMissingError(RuntimeError):
    """LIBERO or its assets are not installed; the text says what to do."""


@dataclass(frozen=True)
class Assets:
    """A folder of assets; `notice` is what every result made with them must say."""

    path: Path
    notice: str = ''


def find_package() -> Path:
    """Directory of `libero.libero`, without importing it.

    Raises:
        LiberoMissingError: it is not installed, or parts of it are not.
    """
    spec = importlib.util.find_spec('libero')
    roots = [] if spec is None else list(spec.submodule_search_locations or ())
    folders = [Path(root) / 'libero' for root in roots]
    found = [folder for folder in folders if (folder / 'bddl_files').is_dir()]
    lacking = [name for name in ('robosuite', 'bddl') if importlib.util.find_spec(name) is None]
    if not found or lacking:
        what = 'LIBERO' if not found else ' and '.join(lacking)
        raise LiberoMissingError(
            f'{what} is not installed; run  ./run libero-setup  (on a full ROS 2: pip install'
            ' --no-deps --no-build-isolation -r requirements/libero.txt)'
        )
    return found[0]


def find_assets(given: str | Path | None = None) -> Assets:
    """The assets to use.

    The first of: `given`, the environment variable `LIBERO_ASSETS`, a folder `assets` inside the
    LIBERO package, the folder that `libero-setup --download-assets` and LIBERO itself download to.
    'placeholder' stands for the shapes that come with this package; nothing chooses them silently.

    Raises:
        LiberoMissingError: there are none, or what is given is not a folder of assets.
    """
    for source, choice in (('', given), (f'{VARIABLE}: ', os.environ.get(VARIABLE))):
        if choice:
            return _chosen(str(choice), source)
    for path in (find_package() / 'assets', download_folder()):
        if not missing_folders(path):
            return Assets(path, placeholder.NOTICE if placeholder.is_placeholder(path) else '')
    raise LiberoMissingError(
        'LIBERO has no assets (meshes, textures, scenes). Name a directory that has them with'
        f' {VARIABLE}=DIR, allow the download with  ./run libero-setup --download-assets,  or try'
        f' the code with {VARIABLE}={PLACEHOLDER} ({placeholder.NOTICE})'
    )


def _chosen(choice: str, source: str) -> Assets:
    if choice == PLACEHOLDER:
        return Assets(placeholder_folder(), placeholder.NOTICE)
    path = Path(choice).expanduser().resolve()
    if lacking := missing_folders(path):
        raise LiberoMissingError(
            f'{source}{path} lacks the folders {", ".join(lacking)} of LIBERO'
        )
    return Assets(path, placeholder.NOTICE if placeholder.is_placeholder(path) else '')


def missing_folders(path: Path) -> list[str]:
    """Which of the folders of LIBERO's assets a directory lacks."""
    return [name for name in FOLDERS if not (path / name).is_dir()]


def cache_folder() -> Path:
    """Where this package keeps what it can make again; settable by XDG_CACHE_HOME."""
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(root) / 'vla_prune_ros'


def download_folder() -> Path:
    """Where LIBERO's own code downloads to, so that either finds what the other fetched."""
    return Path.home() / '.cache' / 'libero' / 'assets'


def placeholder_folder() -> Path:
    """The placeholder assets, written when they are not there as this version writes them."""
    files = placeholder.asset_files()
    folder = cache_folder() / f'libero-placeholder-{placeholder.digest(files)}'
    if not placeholder.is_placeholder(folder):
        placeholder.write_assets(folder, files)
    return folder


def import_libero(assets: Assets) -> Any:
    """Import LIBERO's environments with these assets; returns the module `libero.libero.envs`.

    Raises:
        LiberoMissingError: not installed.
    """
    package = find_package()
    if 'MUJOCO_GL' not in os.environ:  # must be set before mujoco is imported
        os.environ['MUJOCO_GL'] = 'egl' if ctypes.util.find_library('EGL') else 'osmesa'
    _check_egl_device()
    os.environ['LIBERO_CONFIG_PATH'] = str(write_config(package, assets.path))
    _quiet_robosuite()
    import libero.libero

    libero.libero._assets_path_cache = str(assets.path)
    import libero.libero.envs

    return libero.libero.envs


def write_config(package: Path, assets: Path) -> Path:
    """Write LIBERO's `config.yaml`, whose absence it would ask about; returns its folder."""
    folder = cache_folder() / 'libero-config'
    paths = {
        'benchmark_root': package,
        'bddl_files': package / 'bddl_files',
        'init_states': package / 'init_files',
        'datasets': folder / 'datasets',
        'assets': assets,
    }
    text = ''.join(f'{key}: "{path}"\n' for key, path in paths.items())
    file = folder / 'config.yaml'
    if not file.is_file() or file.read_text(encoding='utf-8') != text:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile('w', dir=folder, delete=False, encoding='utf-8') as new:
            new.write(text)
        os.replace(new.name, file)  # other processes see the old or the new file
    return folder


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    names = ('hf-libero', 'robosuite', 'bddl', 'mujoco', 'numpy')
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 'missing'
    return found


def reportable(installed: dict[str, str]) -> bool:
    """Whether the MuJoCo version is one that gives the published scores."""
    numbers = installed['mujoco'].split('.')[:2]
    return all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) < MUJOCO_LIMIT


def _check_egl_device() -> None:
    """Say clearly what robosuite would only assert."""
    device = os.environ.get('MUJOCO_EGL_DEVICE_ID')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if device and visible and device not in visible.split(','):
        raise LiberoMissingError(
            f'MUJOCO_EGL_DEVICE_ID={device} is not in CUDA_VISIBLE_DEVICES={visible}; unset it'
        )


def _quiet_robosuite() -> None:
    """No log file in /tmp, which belongs to whoever came first, and no advice on macros.

    robosuite reads these settings when it is imported, so its module of settings comes first.
    """
    name = 'robosuite.macros'
    if 'robosuite' in sys.modules:
        return
    package: Any = importlib.util.find_spec('robosuite')
    root = package.submodule_search_locations[0]
    spec: Any = importlib.util.spec_from_file_location(name, Path(root) / 'macros.py')
    macros: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL, macros.CONSOLE_LOGGING_LEVEL = None, 'ERROR'
    sys.modules[name] = macros
    import robosuite

    robosuite.macros = macros
