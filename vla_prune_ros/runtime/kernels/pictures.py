# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The steps of `runtime.images` as kernels."""

from vla_prune_ros.runtime.kernels.jpeg import jpeg_round_trip
from vla_prune_ros.runtime.kernels.resize import crop, resize

__all__ = ['crop', 'jpeg_round_trip', 'resize']
