# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Installation by colcon (`colcon build`) and by pip (`pip install .`) from one tree."""

import runpy
import sys
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = 'vla_prune_ros'
HERE = Path(__file__).parent


def verbs() -> dict[str, str]:
    """Command -> module, for the commands whose modules are part of this tree."""
    registry = runpy.run_path(str(HERE / NAME / '__main__.py'), run_name='registry')['VERBS']
    return {
        verb: module
        for verb, (module, _) in registry.items()
        if (HERE / f'{module.replace(".", "/")}.py').exists()
    }


def wrappers() -> list[str]:
    """Shell scripts for lib/<package>, where `ros2 run` looks and a wheel installs nothing.

    Only for wheels: colcon puts the console scripts there by itself (setup.cfg).
    """
    if 'bdist_wheel' not in sys.argv:
        return []
    folder = Path('build/wrappers')
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for verb in verbs():
        path = folder / verb
        path.write_text(f'#!/bin/sh\nexec "$(dirname "$0")/../../bin/{verb}" "$@"\n')
        path.chmod(0o755)
        paths.append(str(path))
    return paths


setup(
    name=NAME,
    version='0.1.0',
    description='OpenVLA-OFT inference with switchable visual-token pruning as ROS 2 nodes',
    maintainer='The vla_prune_ros authors',
    maintainer_email='vla-prune-ros@example.org',
    license='Apache-2.0',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={f'{NAME}.weights': ['**/*'], f'{NAME}.sim': ['**/*.xml']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        (f'share/{NAME}/launch', sorted(glob('launch/*.launch.*'))),
        (f'share/{NAME}/config', sorted(glob('config/*.*'))),
        (f'lib/{NAME}', wrappers()),
    ],
    entry_points={'console_scripts': [f'{verb} = {NAME}.__main__:console' for verb in verbs()]},
    python_requires='>=3.10',
    install_requires=['setuptools'],
    extras_require={
        'model': ['torch', 'transformers', 'tokenizers', 'safetensors', 'numpy', 'pillow'],
        'ros': [
            'ros-rclpy[fastrtps]',
            'ros-diagnostic-msgs',
            'ros-geometry-msgs',
            'ros-sensor-msgs',
            'ros-std-srvs',
            'ros-trajectory-msgs',
        ],
        'sim': ['mujoco', 'numpy'],
        'quantization': ['torchao'],
        'bags': ['rosbags'],
        'view': ['rerun-sdk'],
        'lora': ['peft'],
        'test': ['pytest', 'pytest-timeout', 'hypothesis', 'ruff'],
    },
    zip_safe=False,
)
