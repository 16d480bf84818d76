# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a policy sees, keeps, plans and does, in a browser: from a live system or from a bag."""
