# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Demonstrations to train on: one interface, one reader per format."""

from vla_prune_ros.datasets.base import DataError, DataSet, Episode, Labels, ReadOptions
from vla_prune_ros.datasets.opening import FORMATS, open_dataset
from vla_prune_ros.datasets.store import Samples, Store
from vla_prune_ros.datasets.storing import make_store

__all__ = [
    'FORMATS',
    'DataError',
    'DataSet',
    'Episode',
    'Labels',
    'ReadOptions',
    'Samples',
    'Store',
    'make_store',
    'open_dataset',
]
