# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Prompt text to token ids, from files in the checkpoint directory only."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BLANK = '\u2581'  # the piece that is 29871 in Llama 2's vocabulary
TEMPLATE = 'In: What action should the robot take to'
_SPECIAL = ('<unk>', '<s>', '</s>', '<pad>')


class PromptTokenizer:
    """Turns an instruction into the ids of OpenVLA's prompt."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        bos_id: int,
        blank_id: int | None,
        vocab_size: int,
    ) -> None:
        """Wrap a text-to-ids function.

        Args:
            encode: text to ids, with or without a leading BOS.
            bos_id: id that starts every prompt.
            blank_id: id of the blank piece that ends every prompt.
            vocab_size: rows of the model's embedding table; larger ids are refused.
        """
        if blank_id is None:
            raise ValueError(f'the tokenizer has no piece {BLANK!r}, which ends every prompt')
        self._encode, self._bos_id, self._blank_id = encode, bos_id, blank_id
        self._vocab_size = vocab_size

    @classmethod
    def from_directory(
        cls, directory: str | Path, bos_id: int, vocab_size: int
    ) -> PromptTokenizer:
        """Load `tokenizer.json`, else `tokenizer.model` (needs the sentencepiece package).

        Raises:
            FileNotFoundError: the directory has neither file.
            ImportError: only `tokenizer.model` is there and sentencepiece is not installed.
            ValueError: the vocabulary lacks the closing blank piece.
        """
        fast, slow = Path(directory) / 'tokenizer.json', Path(directory) / 'tokenizer.model'
        if fast.is_file():
            tokenizer = Tokenizer.from_file(str(fast))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return cls(
                lambda text: tokenizer.encode(text).ids,
                bos_id,
                tokenizer.token_to_id(BLANK),
                vocab_size,
            )
        if not slow.is_file():
            raise FileNotFoundError(f'neither tokenizer.json nor tokenizer.model in {directory}')
        try:
            import sentencepiece
        except ImportError as error:
            raise ImportError(
                f'{slow} needs the sentencepiece package; install it or provide tokenizer.json'
            ) from error
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(slow))
        blank = pieces.piece_to_id(BLANK)
        return cls(pieces.encode, bos_id, None if blank == pieces.unk_id() else blank, vocab_size)

    def prompt_ids(self, instruction: str) -> list[int]:
        """Return the ids of the complete prompt: BOS first, the blank piece last.

        Raises:
            ValueError: the instruction is empty, or the tokenizer is not this checkpoint's.
        """
        if not instruction.strip():
            raise ValueError('the instruction is empty')
        ids = self._ids(f'{TEMPLATE} {instruction.lower()}?\nOut:')
        if ids[-1] != self._blank_id:
            ids = [*ids, self._blank_id]
        if max(ids) >= self._vocab_size:
            raise ValueError(
                f'token id {max(ids)} is outside the vocabulary of {self._vocab_size}: '
                'the tokenizer does not belong to this checkpoint'
            )
        return ids

    def template_length(self, instruction: str) -> int:
        """Count the prompt tokens after BOS that belong to the fixed words in front."""
        template, prompt = self._ids(TEMPLATE), self.prompt_ids(instruction)
        same = 0
        while same < min(len(template), len(prompt)) and template[same] == prompt[same]:
            same += 1
        return same - 1

    def _ids(self, text: str) -> list[int]:
        ids = list(self._encode(text))
        return ids if ids[:1] == [self._bos_id] else [self._bos_id, *ids]


def build_tokenizer(instructions: Iterable[str], directory: str | Path) -> int:
    """Train a small Llama-style tokenizer in which every word of the instructions is one token.

    Special ids are those of Llama 2: unknown 0, BOS 1, EOS 2; padding is 3. Any other printable
    ASCII text is spelled out.

    Args:
        instructions: texts of all tasks.
        directory: receives `tokenizer.json` and `tokenizer_config.json`.

    Returns:
        Number of tokens, the `vocab_size` the model needs.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme='first'),
            pre_tokenizers.Split(Regex(r'[\n?:.,;!]'), 'isolated'),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme='first')
    alphabet = sorted({*string.printable[:95], '\n', BLANK} - {' '})
    trainer = trainers.BpeTrainer(
        vocab_size=32000,
        min_frequency=1,
        special_tokens=list(_SPECIAL),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    texts = sorted({f'{TEMPLATE} {text.lower()}?\nOut:' for text in instructions})
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', 1)]
    )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / 'tokenizer.json'))
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'unk_token': '<unk>',
        'bos_token': '<s>',
        'eos_token': '</s>',
        'pad_token': '<pad>',
        'add_bos_token': True,
        'add_eos_token': False,
        'model_max_length': 2048,
    }
    text = json.dumps(config, indent=2) + '\n'
    (directory / 'tokenizer_config.json').write_text(text, encoding='utf-8')
    return tokenizer.get_vocab_size()
