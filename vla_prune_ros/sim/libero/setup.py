# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verb `libero_setup`: say whether LIBERO can run here, and fetch its assets if that is allowed.

`./run libero-setup` installs the packages first and then calls this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_prune_ros.sim.libero.assets import (
    PLACEHOLDER,
    REPOSITORY,
    VARIABLE,
    Assets,
    LiberoMissingError,
    download_folder,
    find_assets,
    find_package,
    missing_folders,
    reportable,
    versions,
)

DESCRIPTION = """\
Check that LIBERO is installed and where its assets (meshes, textures, scenes) are. Nothing is
downloaded without --download-assets. Exit code 0: LIBERO's code runs; where no assets are found
and none were asked for, that is tried with the placeholder assets."""
ASSETS_MB = 210  # 584 files; the hub says the exact size before anything is fetched


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog='libero_setup',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        '--assets', metavar='DIR',
        help="use this directory; 'placeholder' for simple shapes that are no benchmark",
    )  # fmt: skip
    where.add_argument(
        '--download-assets', action='store_true',
        help=f'fetch {REPOSITORY} (about {ASSETS_MB} MB) from the Hugging Face hub',
    )  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    args = parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        package = find_package()
        installed = versions()
        print(f'LIBERO: {package}')
        print('  ' + ', '.join(f'{name} {version}' for name, version in installed.items()))
        if not reportable(installed):
            print(f'  MuJoCo {installed["mujoco"]} is no version to report scores with: below 3.4')
        if args.download_assets:
            download()
        assets = chosen_assets(args)
    except (LiberoMissingError, OSError) as error:
        print(f'libero_setup: {error}', file=sys.stderr)
        return 1
    print(f'assets: {assets.path}')
    if assets.notice:
        print(assets.notice)
    if args.assets:
        print(f'to use them: export {VARIABLE}={args.assets}, or the option or parameter assets')
    return 0 if draws(assets) else 1


def chosen_assets(args: argparse.Namespace) -> Assets:
    """The assets to try; the placeholder ones if nothing was asked for and nothing is there.

    Raises:
        LiberoMissingError: what was asked for is not there.
    """
    try:
        return find_assets(args.assets)
    except LiberoMissingError as error:
        if args.assets or args.download_assets:
            raise
        print(f'{error}. The download has about {ASSETS_MB} MB.')
        return find_assets(PLACEHOLDER)


def download() -> None:
    """Fetch the assets to where LIBERO itself would put them.

    Raises:
        LiberoMissingError: it did not work, or what came is incomplete.
    """
    folder = download_folder()
    if not missing_folders(folder):
        print(f'the assets are in {folder} already')
        return
    try:
        from huggingface_hub import HfApi, snapshot_download

        files = HfApi().dataset_info(REPOSITORY, files_metadata=True).siblings or []
        size = sum(file.size or 0 for file in files)
        free = shutil.disk_usage(_existing(folder)).free
        print(f'{REPOSITORY}: {len(files)} files, {size / 1e6:.0f} MB to {folder}', flush=True)
        if size > free:
            raise LiberoMissingError(f'only {free / 1e6:.0f} MB are free there')
        snapshot_download(REPOSITORY, repo_type='dataset', local_dir=folder)
    except LiberoMissingError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise LiberoMissingError(
            f'{REPOSITORY} cannot be fetched: {type(error).__name__}: {error}'
        ) from error
    if lacking := missing_folders(folder):
        raise LiberoMissingError(f'{folder} still lacks {", ".join(lacking)}')


def draws(assets: Assets) -> bool:
    """Build one task, take a step and draw; the proof that LIBERO runs here."""
    from vla_prune_ros.sim import SimulationError
    from vla_prune_ros.sim.libero.robot import HOLD_STILL, LiberoRobot

    robot = LiberoRobot('libero_spatial', assets=str(assets.path))
    try:
        robot.reset(0, 0)
        images = robot.step(HOLD_STILL).images
    except SimulationError as error:
        print(f'libero_setup: {error}', file=sys.stderr)
        return False
    finally:
        robot.close()
    seen = all(image.std() > 1 for image in images.values())
    how = os.environ.get('MUJOCO_GL', '')
    print(f'one task was built and drawn with {how}' if seen else f'{how} draws empty images')
    return seen


def _existing(path: Path) -> Path:
    """The path, or the nearest parent that is there."""
    return path if path.exists() else _existing(path.parent)
