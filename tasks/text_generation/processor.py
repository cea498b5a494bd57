"""Processor of text generation: documents and prompts to ids, and ids to text."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from mmattn.data.processor import Processor
from mmattn.data.text.language import PREFIX, LanguageTokens, is_byte_level, token_bytes
from mmattn.data.text.pretrained import load_tokenizer
from mmattn.data.text.tokenizer import TokenIds
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.seq2seq.processor import check_kept
from mmattn.tasks.text_generation.corpus import Block, Corpus, make_corpus
from mmattn.tasks.text_generation.data import TextBatch, TextDataset, TextSample
from mmattn.tasks.text_generation.tokens import FileTokens

SMALLEST = 2  # tokens of a block


class TextGenerationProcessor(Processor[Any, TextBatch]):
    """Texts to ids and ids to texts; saved with the model.

    Args:
        tokenizer: The tokenizer.
        max_len: Most tokens that the model reads at once.
        options: Additional JSON values, of public models: `generation`, `chat_template` with its `special_tokens`, and
            `prefix_ids`, with which each text begins; `eval_context`, see :meth:`fit`.
    """

    KEYS = frozenset({"text", "max_len", "options"})
    cross_documents = False  # whether attention in training and evaluation crosses the ends of documents

    def __init__(self, tokenizer: TokenIds, max_len: int = 256, options: Mapping[str, Any] | None = None) -> None:
        if not isinstance(max_len, int) or max_len < SMALLEST:
            raise ValueError(f"max_len: expected at least {SMALLEST}, found {max_len!r}")
        context = (options or {}).get("eval_context", 0)
        if not isinstance(context, int) or context < 0:
            raise ValueError(f"eval_context: expected a number of tokens, found {context!r}")
        self.tokenizer, self.max_len, self.options = tokenizer, max_len, dict(options or {})
        self.cut = 0  # prompts that were truncated

    @classmethod
    def fit(
        cls,
        dataset: TextDataset,
        tokenizer: str = "character",
        vocab_size: int = 8000,
        min_count: int = 1,
        block_size: int = 256,
        eval_context: int = 0,
    ) -> Self:
        """Make a processor from the training texts, and only from them.

        Args:
            dataset: The training data.
            tokenizer: ``character``, ``byte``, ``bpe`` (byte-level) or ``word`` (split at spaces).
            vocab_size: Maximum number of ids of ``bpe`` and ``word``.
            min_count: Minimum number of occurrences of a character or word.
            block_size: Tokens that the model reads at once.
            eval_context: Tokens before those of each block on which the model is measured.

        Raises:
            DataError: The training data are token ids, whose tokenizer is not known.
        """
        for sample in dataset.samples:
            if isinstance(sample.text, FileTokens):
                raise sample.text.without_tokenizer()

        def texts() -> Any:
            for sample in dataset.samples:
                yield from sample.pieces()
                yield from [sample.prompt] if sample.prompt else []

        return cls(
            LanguageTokens.fit(texts, tokenizer, vocab_size, min_count), block_size, {"eval_context": eval_context}
        )

    def retarget(self, train: TextDataset, given: Mapping[str, Any]) -> Self:
        """A processor for other data: the same tokenizer, with the given block size.

        Raises:
            ConfigError: An option would change the tokenizer.
        """
        kind = self.tokenizer.kind.removeprefix(PREFIX)
        check_kept({"tokenizer": kind, "vocab_size": self.tokenizer.vocab_size}, given)
        other = copy.copy(self)
        other.max_len = given.get("block_size") or self.max_len
        if given.get("eval_context") is not None:
            other.options = {**self.options, "eval_context": given["eval_context"]}
        return other

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size, "max_len": self.max_len}

    def settings(self) -> dict[str, Any]:
        return {"text": self.tokenizer.config(), "max_len": self.max_len, "options": self.options}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        about = config["text"]
        is_own = str(about.get("kind", "")).startswith(PREFIX)
        tokenizer = LanguageTokens.load(folder, about) if is_own else load_tokenizer(folder, about)
        GenerationConfig(**config["options"].get("generation") or {})  # raises a ValueError for what it cannot use
        return cls(tokenizer, config["max_len"], config["options"])

    def save_parts(self, folder: Path) -> None:
        self.tokenizer.save(folder)

    def parts_text(self) -> str:
        return self.tokenizer.to_json()

    # Batches ----------------------------------------------------------------------------------------------------------

    @property
    def start_ids(self) -> list[int]:
        """What each text begins with: the end of another text; of public tokenizers their prefix, if any."""
        found = self.options.get("prefix_ids", [self.tokenizer.start_id])
        return list(found)

    @property
    def _lead(self) -> int:
        return int("prefix_ids" not in self.options)  # as `start_ids` has it

    def encode_corpus(self, dataset: TextDataset) -> Corpus:
        """The documents of a data set as one array of ids.

        Raises:
            DataError: A file of token ids has one that the tokenizer has not.
        """
        if len(dataset) == 1 and isinstance(tokens := dataset.samples[0].text, FileTokens):
            tokens.check(self.tokenizer.vocab_size)
            own = getattr(self.tokenizer, "_pieces", None) or self.tokenizer.tokenizer  # type: ignore[attr-defined]
            size = tokens.bytes({i: len(b) for i, b in token_bytes(own).items()}) if is_byte_level(own) else 0
            return Corpus(tokens.ids, tokens.starts(self.tokenizer.eos_id), size, lead=self._lead)
        ends = (list(self.options.get("prefix_ids", [])), self.tokenizer.eos_id)
        key = json.dumps([self.tokenizer.config(), self.parts_text(), dataset.fingerprint(), ends])
        corpus = make_corpus(dataset.samples, self.tokenizer.encode, ends, self.tokenizer.vocab_size, key)
        corpus.lead = self._lead
        return corpus

    def collate(
        self,
        samples: Sequence[Any],
        *,
        augment: Any = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> TextBatch:
        """Makes a batch of blocks, of instructions, or of prompts to continue; see `Processor.collate`.

        Args:
            samples: `Block`s; or `TextSample`s.
            augment: True: blocks begin at random places.
            seeds: One integer per sample, for ``augment``.
            is_repeat: See `Processor.collate`.
        """
        if not isinstance(samples[0], Block):
            return self._instructions(samples, is_repeat)
        shifts = [0] * len(samples)
        if augment:
            if seeds is None:
                raise ValueError("collate: augment needs seeds")
            shifts = [seed % (block.room + 1) for seed, block in zip(seeds, samples, strict=True)]
        longest = max(block.size for block in samples)
        ids = np.full((len(samples), longest + 1), self.tokenizer.pad_id, np.int64)
        counts = np.zeros((len(samples), longest), bool)
        documents = np.full((len(samples), longest), -1, np.int64)
        for row, (block, shift) in enumerate(zip(samples, shifts, strict=True)):
            ids[row, : block.size + 1] = block.ids(shift)
            counts[row, block.context : block.size] = True
            if not self.cross_documents:
                first = block.start + shift
                documents[row, : block.size] = block.corpus.documents(first, first + block.size)
        several = not self.cross_documents and bool((documents != documents[:, :1]).any())
        padded = any(block.size < longest for block in samples)
        key_mask = torch.arange(longest) < torch.tensor([[block.size] for block in samples])
        return TextBatch(
            input_ids=torch.from_numpy(ids[:, :-1].copy()),
            labels=torch.from_numpy(ids[:, 1:].copy()),
            label_mask=torch.from_numpy(counts),
            key_mask=key_mask if padded else None,
            documents=torch.from_numpy(documents) if several else None,
            ids=[block.id for block in samples],
            is_repeat=is_repeat,
        )

    def _instructions(self, samples: Sequence[TextSample], is_repeat: bool) -> TextBatch:
        """Prompts with their responses, padded at the right; the end token after each response is learned, too."""
        rows, firsts = [], []
        for sample in samples:
            prompt, text = self.prompt_ids(sample.prompt), self.tokenizer.encode(sample.whole)
            text = [*text, self.tokenizer.eos_id] if text else text
            room = self.max_len + 1 - min(len(text), self.max_len // 2)
            self.cut += len(prompt) > room
            prompt = prompt[-room:]
            rows.append([*prompt, *text][: self.max_len + 1])
            firsts.append(len(prompt) - 1)
        longest = max(2, *map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_id)
        counts = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
        for number, (row, first) in enumerate(zip(rows, firsts, strict=True)):
            ids[number, : len(row)] = torch.tensor(row)
            counts[number, first : len(row) - 1] = True
        key_mask = torch.arange(longest - 1) < torch.tensor([[max(len(row) - 1, 1)] for row in rows])
        return TextBatch(
            input_ids=ids[:, :-1].contiguous(),
            labels=ids[:, 1:].contiguous(),
            label_mask=counts,
            key_mask=None if bool(key_mask.all()) else key_mask,
            ids=[sample.id for sample in samples],
            is_repeat=is_repeat,
        )

    def prompt_ids(self, prompt: str, *, is_whole: bool = False) -> list[int]:
        """The ids of a prompt; an empty one is the start token alone.

        Args:
            prompt: The prompt.
            is_whole: Whether the prompt has all its special tokens; otherwise those that each text begins with come
                before it.
        """
        start = [] if is_whole else self.start_ids
        return [*start, *self.tokenizer.encode(prompt)] or [self.tokenizer.start_id]

    def ablate(self, batch: TextBatch, what: str, seeds: Sequence[int] | None = None) -> TextBatch:
        """Ablate the "context": all ids that are read become the end token, which leaves their frequencies."""
        if what != "context":
            return super().ablate(batch, what, seeds)  # type: ignore[return-value]
        batch.input_ids = torch.full_like(batch.input_ids, self.tokenizer.eos_id)
        return batch
