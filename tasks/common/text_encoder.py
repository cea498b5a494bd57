"""Public text encoders, of the BERT family, as the encoder of a task's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmattn.data.text.pretrained import PublicText, read_public
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import read_network
from mmattn.tasks.common.sources import Source

EMBEDDING = "embedding.weight"


class PublicEncoder(NamedTuple):
    """A public text encoder without its pooler."""

    options: dict[str, Any]  # keywords of `BertEncoder` but vocab_size
    state: dict[str, Tensor]  # weights of `BertEncoder`, and of the head
    tokenizer: PublicText

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.tokenizer.vocab_size

    @property
    def max_len(self) -> int:
        """Maximum number of tokens of a text."""
        return longest(self.options)


def longest(options: Mapping[str, Any]) -> int:
    """Maximum number of tokens of a `BertEncoder` with these keywords."""
    return int(options.get("max_len", 512) - (0 if options.get("pad_id") is None else options["pad_id"] + 1))


def read_text_encoder(
    source: Source, head: Mapping[str, str] | None = None, wanted: type[nn.Module] | None = None
) -> PublicEncoder:
    """Read BERT, RoBERTa, DistilBERT or ELECTRA, or another encoder of their interface.

    Args:
        source: The location of the checkpoint.
        head: Names of the head's weights, see `mmattn.pretrained.read_pretrained`; None: the head is dropped.
        wanted: The expected class; None: `BertEncoder`.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete, or of another network.
    """
    from mmattn.backbones.bert import BertEncoder

    names = "BERT, RoBERTa, DistilBERT or ELECTRA" if wanted is None else wanted.__name__
    converted = read_network(source, wanted or BertEncoder, names, head=head)
    options = {key: value for key, value in converted.keywords.items() if key != "vocab_size"}
    options |= {"pooler": False} if "pooler" in options else {}
    tokenizer, _ = read_public(source.folder, max_len=longest(options))
    state = {key: value for key, value in converted.state.items() if not key.startswith("pooler.")}
    rows, size = state[EMBEDDING].shape[0], tokenizer.vocab_size
    if rows < size:
        raise CheckpointError(f"{source.name}: expected a tokenizer of at most {rows} tokens, found {size}.")
    state[EMBEDDING] = state[EMBEDDING][:size].clone()  # rows beyond the tokenizer's only round their number up
    return PublicEncoder(options, state, tokenizer)
