# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Installation by colcon (`colcon build`) and by pip (`pip install .`) from one tree.

The only command on the PATH is `vla_prune_ros`. Where `ros2 run` looks, in lib/vla_prune_ros,
scripts/ is installed: one name per verb. They are data files, because the console scripts of
`colcon build --symlink-install` are bound to the Python of colcon itself.
"""

import sys
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = 'vla_prune_ros'
HERE = Path(__file__).resolve().parent  # colcon runs a link to this file
BY_PIP = not {'bdist_wheel', 'dist_info', 'editable_wheel'}.isdisjoint(sys.argv)
EXTRAS = {
    'model': 'base',
    'ros': 'ros',
    'sim': 'sim',
    'kernels': 'kernels',
    'view': 'view',
    'training': 'training',
    'test': 'dev',
}


def requirements(file: str) -> list[str]:
    """What a file of requirements/ names."""
    lines = (HERE / 'requirements' / f'{file}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-c'))]


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
        (f'share/{NAME}/config/robots', sorted(glob('config/robots/*.yaml'))),
        (f'lib/{NAME}', sorted(set(glob('scripts/*')) - {f'scripts/{NAME}'})),
        ('bin', [] if BY_PIP else [f'scripts/{NAME}']),
    ],
    entry_points={'console_scripts': [f'{NAME} = {NAME}.__main__:main'] if BY_PIP else []},
    python_requires='>=3.10',
    extras_require={extra: requirements(file) for extra, file in EXTRAS.items()}
    | {'lora': ['peft']},
    zip_safe=False,
)
