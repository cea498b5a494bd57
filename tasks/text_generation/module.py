"""Training and evaluation of language models: cross-entropy of the next token."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.data.batching import BatchPlan, Item
from mmattn.data.errors import nearest
from mmattn.data.text.language import KINDS, LanguageTokens
from mmattn.positions import LearnedPositions
from mmattn.tasks.common.chance import Chance
from mmattn.tasks.common.datamodule import Split, TaskDataModule
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import LossOptions, check_range
from mmattn.tasks.text_generation.adapters import read_tokenizer
from mmattn.tasks.text_generation.corpus import Blocks, Corpus
from mmattn.tasks.text_generation.data import TextBatch, TextDataset
from mmattn.tasks.text_generation.metrics import LanguageMetric
from mmattn.tasks.text_generation.model import carries, token_loss, token_losses
from mmattn.tasks.text_generation.processor import TextGenerationProcessor
from mmattn.tasks.text_generation.tokens import FileTokens

BLOCK = 256  # tokens
SOME = 1_000_000  # tokens of the training data by whose frequencies chance is computed


class StreamBatchSampler(BatchPlan):
    """Batches that read a corpus in order: the rows of each continue those of the one before.

    Args:
        total: Number of blocks of all rows.
        rows: Rows of a batch on one rank.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, total: int, rows: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(rank, world_size)
        self.total, self.rows = total, rows

    def __len__(self) -> int:
        return self.total // (self.rows * self.world_size)

    def batches(self, epoch: int) -> list[list[int]]:
        """See the base class."""
        return [list(range(first, first + self.rows)) for first in range(0, self.total, self.rows)]


class InOrder(BatchPlan):
    """Evaluation of blocks one by one, each with the state of the one before: by the first process alone.

    The others get repeated samples, which do not count.

    Args:
        total: Number of blocks.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, total: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(rank, world_size)
        self.total = total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[Item]]:
        for index in range(self.total):
            yield [Item(index, self.epoch, self.rank > 0)]


class TextGenerationDataModule(TaskDataModule[TextDataset, TextGenerationProcessor]):
    """Documents, or instructions.

    Args:
        document: What a document of a text file is: file, line or paragraph.
        tokenizer: Tokenizer of the texts: character, byte, bpe (byte-level) or word (split at spaces), or that of a
            model, such as hf:owner/name; none: character, or that of `init_from`.
        vocab_size: Maximum number of ids of bpe and word; none: 8,000.
        min_count: Minimum number of occurrences of a character or word; none: 1.
        block_size: Number of tokens that the model reads at once; none: 256, or that of `init_from`.
        eval_context: Number of tokens before those of each block on which it is measured; evaluation then takes
            block_size / (block_size - eval_context) times as long, and the loss is that of long contexts; none: 0, or
            that with which the model was trained. Models that read in order (memory_len, lstm) carry their state from
            block to block instead.
        cross_documents: Whether attention crosses the ends of the documents that are packed into a block.
        ablate: Train and evaluate without the tokens before ("context"): a baseline, the tokens' frequencies.
    """

    task = "text_generation"
    sizes = ("vocab_size", "max_len")
    least_steps = 1000

    def __init__(
        self,
        document: Literal["file", "line", "paragraph"] = "file",
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        min_count: int | None = None,
        block_size: int | None = None,
        eval_context: int | None = None,
        cross_documents: bool = False,
        ablate: Literal["context"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_range("data.block_size", block_size, 2)
        check_range("data.eval_context", eval_context, 0)
        if tokenizer is not None and tokenizer not in KINDS and not re.search(r"[/:]", tokenizer):
            kinds = f"expected {', '.join(KINDS)}, or a model as hf:owner/name or ./folder"
            raise ConfigError(f"data.tokenizer: {kinds}, found {tokenizer!r}{nearest(tokenizer, KINDS)}.")
        self.document, self.eval_context, self.ablate = document, eval_context, ablate
        self.cross_documents = cross_documents
        self.in_order = False  # whether training continues one block with the next, see `TextGenerationModule.connect`
        self.processor_options = {
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "min_count": min_count,
            "block_size": block_size,
            "eval_context": eval_context,
        }
        self.augment = True

    def make_dataset(self, source: Any, split: Split) -> TextDataset:
        return TextDataset(source, self.document, on_error=self.on_error)

    def make_processor(self, train: TextDataset) -> TextGenerationProcessor:
        given = self.processor_options
        if given["tokenizer"] in (None, *KINDS):
            return super().make_processor(train)
        other = read_tokenizer(given["tokenizer"], given["block_size"] or BLOCK)
        return other.retarget(train, given | {"tokenizer": None})

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.processor.cross_documents = self.cross_documents or self.in_order

    def prepare_dataset(self, dataset: TextDataset, split: Split) -> TextDataset:
        """The data set of the blocks of its documents; instructions stay as they are."""
        if dataset.is_instruction or isinstance(dataset.samples, Blocks):
            if dataset.is_instruction and self.in_order:
                raise ConfigError("data.train: expected documents for a model that reads them in order, found prompts.")
            return dataset
        size, streams, context = self.processor.max_len, None, 0
        if self.in_order and self.eval_context:
            raise ConfigError(
                f"data.eval_context: expected none for a model that carries its state from block to block, found "
                f"{self.eval_context}."
            )
        if split == "train":
            streams = self.batch_size * self._ranks()["world_size"] if self.in_order else None
        elif self.in_order:
            streams = 1  # one text from beginning to end, as the perplexity of the Penn Treebank is published
        else:
            kept = self.processor.options.get("eval_context", 0)
            context = kept if self.eval_context is None else self.eval_context
            if context >= size:
                raise ConfigError(f"data.eval_context: expected fewer than the block's {size} tokens, found {context}.")
        corpus = self.processor.encode_corpus(dataset)
        if split == "train" and streams is not None and len(corpus) <= streams:
            raise ConfigError(
                f"data.batch_size: expected at most {len(corpus) - 1}, the tokens of the training data, each row of "
                f"which continues the one before; found {streams}."
            )
        if split != "train":
            self._report_unknown(corpus, split)
        digest, other = dataset.fingerprint(), copy.copy(dataset)
        other.samples = Blocks(corpus, size, context, streams)  # type: ignore[assignment]
        other.places = []
        other._digest = digest
        return other

    def _report_unknown(self, corpus: Corpus, split: Split) -> None:
        """Warns of tokens that count as right when they are predicted to be unknown."""
        tokenizer = self.processor.tokenizer
        if not corpus.words:
            left = "word_perplexity" if corpus.bytes else "word_perplexity and bits_per_byte"
            sys.stderr.write(f"{split}: {left} left out, since only ids are known of the text.\n")
        if not isinstance(tokenizer, LanguageTokens):  # public ones have parts for every text
            return
        if count := int(np.count_nonzero(corpus.ids == tokenizer.unk_id)):
            kind = tokenizer.kind
            remedy = "--data.tokenizer byte knows all" if kind == "character" else "--data.vocab_size, --data.min_count"
            sys.stderr.write(
                f"{split}: {count:,} of {len(corpus):,} tokens are unknown and read as [UNK], which is easier to "
                f"predict than {kind}s: the perplexity is too low ({remedy}).\n"
            )

    @property
    def division(self) -> str:
        if len(self.whole) > 1:
            return super().division
        return "The last tenth of the text is held out for validation; --data.val PATH gives your own."

    def train_plan(self, dataset: TextDataset) -> BatchPlan:
        if not self.in_order:
            return super().train_plan(dataset)
        return StreamBatchSampler(len(dataset), self.batch_size, **self._ranks())

    def eval_plan(self, dataset: TextDataset) -> BatchPlan:
        return InOrder(len(dataset), **self._ranks()) if self.in_order else super().eval_plan(dataset)

    def num_samples(self, dataset: TextDataset) -> int:
        """Number of blocks, estimated, or of instructions."""
        if isinstance(dataset.samples, Blocks) or dataset.is_instruction:
            return len(dataset)
        size = self.processor_options["block_size"] or BLOCK
        if isinstance(tokens := dataset.samples[0].text, FileTokens):
            return -(-len(tokens) // size)
        characters = sum(len(piece) for sample in dataset.samples for piece in sample.pieces())
        per_token = {"character": 1, "byte": 1, None: 1}.get(self.processor_options["tokenizer"], 4)
        return -(-characters // (per_token * size))


@dataclass
class TextGenerationLossOptions(LossOptions):
    """The loss of language models."""


class TextGenerationModule(TaskModule[TextGenerationDataModule]):
    """Cross-entropy of the next token."""

    task = "text_generation"
    mode = "min"
    Loss = TextGenerationLossOptions
    model: Any

    def connect(self, data: TextGenerationDataModule) -> None:
        keywords = self.keywords
        data.in_order = keywords.get("decoder") == "lstm" or bool(keywords.get("memory_len"))
        self._carried: list[Tensor] | None = None  # in training
        self._read: list[Tensor] | None = None  # in evaluation

    def check_processor(self, processor: TextGenerationProcessor) -> None:
        positions = getattr(self.model.net, "positions", None)
        if isinstance(positions, LearnedPositions) and processor.max_len > positions.max_len:
            raise ConfigError(
                f"data.block_size: expected at most {positions.max_len}, for which the model has positions, found "
                f"{processor.max_len}."
            )

    def training_loss(self, batch: TextBatch) -> tuple[Tensor, dict[str, Tensor]]:
        states, self._carried = self._states(batch, self._carried)
        return token_loss(self.model.net, states, batch.labels, batch.label_mask, self.loss.label_smoothing), {}

    def _states(self, batch: TextBatch, before: list[Tensor] | None) -> tuple[Tensor, list[Tensor] | None]:
        """The states (B, L, E) of a batch, and what a model that carries it has for the next one."""
        net = self.model.net
        if self.data.in_order and carries(self.model):
            if before is not None:
                before = [part.to(batch.input_ids.device) for part in before]  # a checkpoint's are on the CPU
            found: tuple[Tensor, list[Tensor]] = net.segment(batch.input_ids, before)
            return found
        try:
            return net.states(batch.input_ids, batch.key_mask, batch.documents), None
        except ValueError as error:
            if batch.documents is None:
                raise
            cross = "--data.cross_documents true lets attention cross the ends of documents"
            raise ConfigError(f"{error}; {cross}.") from None

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()  # an epoch begins with the corpus, unless it is resumed within
        if self.data._resume["batches"] == 0 or self.data._resume["epoch"] != self.current_epoch:
            self._carried = None

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._read = None

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._read = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._carried is None:
            return
        every: list[Any] = [[part.cpu() for part in self._carried]]
        if self.trainer.world_size > 1:  # each process has rows of its own; all of them save
            mine, every = every[0], [None] * self.trainer.world_size
            torch.distributed.all_gather_object(every, mine)
        checkpoint["mmattn_carried"] = every

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        every, processes = checkpoint.get("mmattn_carried"), self.trainer.world_size
        if every is not None and len(every) != processes:
            raise ConfigError(
                f"trainer.devices: expected {len(every)} processes, whose carried states the checkpoint has, found "
                f"{processes}; a resumed run that reads in order has as many."
            )
        self._carried = None if every is None else every[self.global_rank]

    def make_metric(self) -> nn.Module:
        return LanguageMetric()

    def _log_metrics(self, split: str) -> None:
        blocks = self.data.dataset(split).samples  # type: ignore[arg-type]
        if isinstance(blocks, Blocks):
            metric: Any = self.metrics[split]
            corpus = blocks.corpus
            metric.tokens, metric.words, metric.size = blocks.targets, corpus.words, corpus.bytes
            metric.optimal = corpus.log_p
        super()._log_metrics(split)

    def update_metric(self, metric: Any, batch: TextBatch) -> None:
        states, self._read = self._states(batch, self._read)
        metric.update(*token_losses(self.model.net, states, batch.labels, batch.label_mask))

    def chance(self) -> Chance | None:
        train, val = (self.data.dataset(split).samples for split in ("train", "val"))  # type: ignore[arg-type]
        if not isinstance(train, Blocks) or not isinstance(val, Blocks):
            return None
        size = self.data.processor.tokenizer.vocab_size
        counts = np.bincount(np.asarray(train.corpus.ids[:SOME]), minlength=size) + 1.0
        own = np.bincount(np.asarray(val.corpus.ids[1:SOME]), minlength=size)
        value = float(-(own * np.log(counts / counts.sum())).sum() / max(own.sum(), 1))
        return Chance(value, "the frequencies of tokens", value)
