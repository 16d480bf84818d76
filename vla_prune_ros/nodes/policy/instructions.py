# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an instruction may be."""

from __future__ import annotations

LONGEST_INSTRUCTION = 1000  # characters


def clean_instruction(text: str) -> str:
    """An instruction as the model gets it: one line, single spaces; '' is none.

    Raises:
        ValueError: more than `LONGEST_INSTRUCTION` characters.
    """
    words = ' '.join(text.split())
    if len(words) > LONGEST_INSTRUCTION:
        raise ValueError(
            f'instruction of {len(words)} characters ignored; at most {LONGEST_INSTRUCTION} count'
        )
    return words
