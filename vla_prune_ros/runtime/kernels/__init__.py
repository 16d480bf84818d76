# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What happens between matrix products, as Triton kernels; each is one file.

Nothing here is imported before a GPU asks for it: Triton brings a compiler with it.
`vla.operations` has the same in torch; `runtime.fast.operations_for` chooses.
"""
