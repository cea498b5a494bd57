"""Sentence embeddings by public encoders of the BERT families, such as MiniLM."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.pooling import sentence_embedding
from mmattn.building import build_for
from mmattn.data.errors import DataError, shorten
from mmattn.data.readers import read_settings
from mmattn.data.text.pretrained import LAYOUTS, PublicText, read_public
from mmattn.data.text.tokenizer import pad_rows
from mmattn.tasks.common.checkpoint import load_weights
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import read_network
from mmattn.tasks.common.sources import Source, find_model

MAX_TOKENS = 256  # sentence-transformers' for MiniLM, unless the model's files say otherwise
BATCH = 32  # texts
SETTINGS, POOLING = "sentence_bert_config.json", "1_Pooling/config.json"  # of sentence-transformers
TOKENIZER = tuple(dict.fromkeys(name for names in LAYOUTS.values() for name in names))


class SentenceEncoder:
    """Embeds texts: the mean of the last layer's states over all tokens, special ones included, of length 1.

    Reimers & Gurevych 2019, section 3, as in sentence-transformers. Texts are encoded in the order of their lengths, so
    that a batch has little padding.

    Args:
        model: The encoder.
        tokenizer: Its tokenizer.
        max_tokens: Maximum number of tokens of a text, special ones included; the rest is cut off.
        device: Device of the model.
    """

    def __init__(
        self, model: BertEncoder, tokenizer: PublicText, max_tokens: int = MAX_TOKENS, device: str = "cpu"
    ) -> None:
        self.model, self.tokenizer, self.max_tokens = model.eval().to(device), tokenizer, max_tokens
        digest = hashlib.sha256(f"mean {max_tokens} {tokenizer.to_json()}".encode())
        for name, value in model.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.float().cpu().contiguous().numpy())
        self.fingerprint = digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of texts (N, E) in single precision."""
        rows = [self._encode(text) for text in texts]
        found = torch.zeros(len(rows), self.model.embed_dim)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        device = self.model.embedding.weight.device
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            ids, key_mask = pad_rows([rows[number] for number in batch], self.tokenizer.pad_id)
            ids, key_mask = ids.to(device), key_mask.to(device)  # (B, L), (B, L)
            found[batch] = sentence_embedding(self.model(ids, key_mask).states, key_mask).float().cpu()
        return found.numpy()

    def _encode(self, text: str) -> list[int]:
        # Not by `encode_batch`, whose cache of all texts would grow with the corpus.
        first, last = self.tokenizer.prefix_ids, self.tokenizer.eos_id
        room = self.max_tokens - len(first) - 1
        return [*first, *self.tokenizer.encode(text)[:room], last]


def read_encoder(name: str = "minilm", device: str = "cpu") -> SentenceEncoder:
    """Reads a public encoder for sentence embeddings.

    Args:
        name: A source of BERT, RoBERTa, DistilBERT or ELECTRA, see `mmattn.tasks.common.sources`.
        device: Device of the model.

    Raises:
        CheckpointError: There is no such model, its files are damaged, or it does not take the mean of the states.
    """
    source = find_model(name)
    if source.family is None:
        raise CheckpointError(f"{name}: expected a public encoder such as minilm, found a model of mmattn.")
    try:
        max_tokens = _check_settings(source)
        for file in TOKENIZER:
            source.fetch(file)  # from the hub
        tokenizer, _ = read_public(source.folder)
    except DataError as error:
        raise CheckpointError(f"{error}.") from None
    converted = read_network(source, BertEncoder, "BERT, RoBERTa, DistilBERT or ELECTRA")
    try:
        model = build_for(converted.state, lambda keywords: BertEncoder(**keywords), converted.keywords)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}.") from None
    load_weights(model, converted.state, source.where)
    if tokenizer.rows > model.embedding.num_embeddings:
        found = f"{tokenizer.rows:,} tokens for {model.embedding.num_embeddings:,} embeddings"
        raise CheckpointError(f"{name}: expected a tokenizer that fits the model, found {found}.")
    longest = model.positions.max_len - (0 if model.pad_id is None else model.pad_id + 1)
    return SentenceEncoder(model, tokenizer, min(max_tokens, longest), device)


def _check_settings(source: Source) -> int:
    """Returns the maximum number of tokens.

    Raises:
        CheckpointError: The model's vectors are not the mean of the states.
        DataError: A file is damaged.
    """
    pooling, settings = _settings(source, POOLING), _settings(source, SETTINGS)
    others = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    if others not in ([], ["pooling_mode_mean_tokens"]):
        found = ", ".join(others)
        raise CheckpointError(f"{source.name}: expected the mean of the tokens' states as embedding, found {found}.")
    limit = settings.get("max_seq_length")
    return limit if type(limit) is int and limit > 2 else MAX_TOKENS


def _settings(source: Source, name: str) -> dict[str, Any]:
    path = source.fetch(name)
    found = {} if path is None else read_settings(path)
    if not isinstance(found, dict):
        raise DataError(str(path), "a JSON object", shorten(found))
    return found
