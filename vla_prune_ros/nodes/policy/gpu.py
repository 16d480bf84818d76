# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The GPU after a failure; nothing here imports torch by itself."""

from __future__ import annotations

import gc
import sys


def is_lasting(error: BaseException) -> bool:
    """Whether CUDA will fail from now on whatever it is asked: only a new process helps."""
    if not isinstance(error, RuntimeError) or 'CUDA error' not in str(error):
        return False
    try:
        sys.modules['torch'].cuda.synchronize()  # an error that stays comes again
    except Exception:
        return True
    return False


def release_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
