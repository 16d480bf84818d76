# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA-OFT in plain torch."""

from vla_prune_ros.vla.config import LlamaConfig, OpenVLAConfig, TowerConfig
from vla_prune_ros.vla.model import OFTOutput
from vla_prune_ros.vla.openvla_oft import OpenVLAOFT

__all__ = ['LlamaConfig', 'OFTOutput', 'OpenVLAConfig', 'OpenVLAOFT', 'TowerConfig']
