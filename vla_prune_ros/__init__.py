# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Vision-language-action inference with visual-token pruning, as ROS 2 nodes."""
