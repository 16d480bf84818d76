# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What of the LIBERO backend needs no LIBERO: files, conventions, errors, the expert."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from vla_prune_ros.sim import backend_of, make_robot, quaternion_from_matrix
from vla_prune_ros.sim.libero import assets, placeholder, suites
from vla_prune_ros.sim.libero.expert import BowlExpert, Situation, arm_model
from vla_prune_ros.sim.tabletop.controller import rotation_from_axis_angle

HAND_DOWN = np.array([1.0, 0.0, 0.0, 0.0])


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without LIBERO and without settings."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.delenv(assets.VARIABLE, raising=False)
    monkeypatch.setattr(assets.importlib.util, 'find_spec', lambda name: None)
    return tmp_path


@pytest.fixture
def package(bare, monkeypatch):
    """As if LIBERO were installed, without its assets."""
    folder = bare / 'site' / 'libero' / 'libero'
    (folder / 'bddl_files').mkdir(parents=True)
    monkeypatch.setattr(assets, 'find_package', lambda: folder)
    return folder


# -- suites ------------------------------------------------------------------------------------
def test_instructions_are_those_that_libero_takes_from_file_names():
    assert suites.instruction('open_the_middle_drawer_of_the_cabinet') == (
        'open the middle drawer of the cabinet'
    )
    assert suites.instruction('KITCHEN_SCENE1_open_the_top_drawer') == 'open the top drawer'
    assert suites.instruction('KITCHEN_SCENE10_close_the_top_drawer') == 'close the top drawer'


def test_step_limits_are_those_of_the_published_protocol():
    assert suites.STEP_LIMITS == {
        'libero_spatial': 220,
        'libero_object': 280,
        'libero_goal': 300,
        'libero_10': 520,
        'libero_90': 400,
    }


def test_initial_states_are_read_as_torch_wrote_them(tmp_path):
    states = np.random.default_rng(0).normal(size=(5, 7))
    torch.save(states, tmp_path / 'states')
    assert np.array_equal(suites.load_initial_states(tmp_path / 'states'), states)


class Evil:
    def __reduce__(self):
        return os.system, ('touch /tmp/this_must_not_run',)


def test_a_file_of_initial_states_cannot_run_code(tmp_path):
    with zipfile.ZipFile(tmp_path / 'states', 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps(Evil()))
    with pytest.raises(ValueError, match='no place in a file of initial states'):
        suites.load_initial_states(tmp_path / 'states')


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / 'states').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='states does not hold initial states'):
        suites.load_initial_states(tmp_path / 'states')


# -- errors ------------------------------------------------------------------------------------
def test_an_unknown_suite_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match='libero_spatial, libero_object'):
        suites.require_suite('libero_space')
    with pytest.raises(ValueError, match='tabletop, libero_spatial'):
        backend_of('libero_space')
    with pytest.raises(ValueError, match="'tabletop' has 'tabletop'"):
        make_robot('tabletop', suite='libero_spatial')


def test_a_missing_libero_is_answered_with_the_command_that_installs_it(bare):
    with pytest.raises(assets.LiberoMissingError, match=r'LIBERO is not installed.*libero-setup'):
        make_robot('libero', suite='libero_spatial')


def test_missing_assets_are_never_fetched_nor_replaced_silently(package):
    with pytest.raises(assets.LiberoMissingError, match='--download-assets') as error:
        assets.find_assets()
    assert 'LIBERO_ASSETS=placeholder' in str(error.value)


def test_a_directory_that_holds_no_assets_is_refused_with_what_it_lacks(package, tmp_path):
    with pytest.raises(assets.LiberoMissingError, match='lacks the folders articulated_objects'):
        assets.find_assets(tmp_path)


def test_assets_come_from_argument_variable_package_and_download_in_this_order(
    package, monkeypatch, tmp_path
):
    folders = {}
    for name in ('given', 'variable'):
        folders[name] = placeholder.write_assets(tmp_path / name)
    folders['package'] = placeholder.write_assets(package / 'assets')
    folders['download'] = placeholder.write_assets(assets.download_folder())
    monkeypatch.setenv(assets.VARIABLE, str(folders['variable']))
    assert assets.find_assets(folders['given']).path == folders['given']
    assert assets.find_assets().path == folders['variable']
    monkeypatch.delenv(assets.VARIABLE)
    assert assets.find_assets().path == folders['package']
    (package / 'assets').rename(package / 'gone')
    assert assets.find_assets().path == folders['download']


def test_placeholder_assets_are_marked_wherever_they_lie(package, tmp_path):
    assert assets.find_assets('placeholder').notice == placeholder.NOTICE
    copy = placeholder.write_assets(tmp_path / 'looks_like_real_ones')
    assert assets.find_assets(copy).notice == placeholder.NOTICE
    (copy / placeholder.MARK).unlink()
    assert assets.find_assets(copy).notice == ''


def test_a_mujoco_that_gives_other_scores_is_told():
    assert assets.reportable({'mujoco': '3.3.7'})
    assert not assets.reportable({'mujoco': '3.4.0'})
    assert not assets.reportable({'mujoco': '3.10.1'})


# -- placeholder assets ------------------------------------------------------------------------
def test_placeholder_assets_are_small_well_formed_and_licensed():
    files = placeholder.asset_files()
    assert sum(map(len, files.values())) < 400_000
    for path, data in files.items():
        if path.endswith('.xml'):
            ElementTree.fromstring(data)
    note = files[placeholder.MARK].decode()
    assert placeholder.NOTICE in note
    assert 'Lifelong Robot Learning' in note
    assert 'NONINFRINGEMENT' in note


def test_every_placeholder_object_has_what_libero_asks_for():
    for path, data in placeholder.asset_files().items():
        if path.endswith('.xml') and not path.startswith('scenes/'):
            root = ElementTree.fromstring(data)
            sites = {site.get('name') for site in root.iter('site')}
            assert {'bottom_site', 'top_site', 'horizontal_radius_site'} <= sites, path
            assert root.find('./worldbody/body/body').get('name') == 'object', path


def test_writing_placeholder_assets_twice_changes_nothing(tmp_path):
    first = placeholder.write_assets(tmp_path / 'assets')
    seen = {path: path.stat().st_mtime_ns for path in first.rglob('*')}
    placeholder.write_assets(tmp_path / 'assets')
    assert seen == {path: path.stat().st_mtime_ns for path in first.rglob('*')}
    assert [p.name for p in tmp_path.iterdir()] == ['assets']


def test_the_file_whose_absence_libero_asks_about_is_written(package):
    import yaml

    folder = assets.write_config(package, Path('/some/assets'))
    content = yaml.safe_load((folder / 'config.yaml').read_text())
    assert content['assets'] == '/some/assets'
    assert content['bddl_files'] == str(package / 'bddl_files')
    assert {'benchmark_root', 'init_states', 'datasets'} <= content.keys()


def test_the_verb_says_what_is_missing_and_fails():
    done = subprocess.run(
        [sys.executable, '-m', 'vla_prune_ros', 'libero_setup', '--assets', '/nowhere'],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'libero_setup: ' in done.stderr
    assert 'Traceback' not in done.stderr


# -- the expert --------------------------------------------------------------------------------
def test_the_expert_moves_bowl_to_plate_on_its_own_model_of_the_arm():
    hand, velocity = np.array([-0.2, 0.0, 1.17]), np.zeros(3)
    bowl, plate = np.array([-0.06, 0.2, 0.92]), np.array([0.05, 0.2, 0.906])
    expert, closed = BowlExpert(), False
    for _ in range(25):
        for action in expert.chunk(Situation(hand, HAND_DOWN, bowl, plate)):
            assert np.abs(action[:6]).max() <= 1.0
            before = hand
            hand, velocity = arm_model(hand, velocity, action[:3])
            closed = action[6] == 0.0
            if closed and np.linalg.norm(before - bowl) < 0.03:
                bowl = bowl + hand - before
        if not closed and expert.phase == 'open':
            break
    assert np.linalg.norm(bowl[:2] - plate[:2]) < 0.02
    assert bowl[2] - plate[2] < 0.04


def test_the_expert_goes_back_for_a_bowl_that_was_lost():
    expert = BowlExpert()
    expert.phase = 'carry'
    hand = np.array([0.0, 0.0, 1.05])
    expert.chunk(Situation(hand, HAND_DOWN, np.array([0, 0.1, 0.92]), np.array([0, 0.2, 0.906])))
    assert expert.phase == 'approach'


def test_the_expert_turns_a_tilted_hand_back():
    tilted = quaternion_from_matrix(
        rotation_from_axis_angle(np.array([0.1, 0.0, 0.2])) @ np.diag([1.0, -1.0, -1.0])
    )
    bowl, plate = np.array([0.1, 0.1, 0.92]), np.array([0.1, 0.2, 0.906])
    action = BowlExpert().chunk(Situation(np.array([0, 0, 1.1]), tilted, bowl, plate))[0]
    assert action[3] < -0.05
    assert action[5] < -0.1


@pytest.mark.parametrize('seed', range(5))
def test_quaternions_from_matrices_turn_as_the_matrices_do(seed):
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=3) * (np.pi if seed else 0.0)  # the identity too
    matrix = rotation_from_axis_angle(vector)
    x, y, z, w = quaternion_from_matrix(matrix)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    again = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    assert np.allclose(again, matrix, atol=1e-12)
    assert w >= 0
