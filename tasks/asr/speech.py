"""What turns sound into features, texts into ids and ids into text, for every recogniser: ours and public ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from mmattn.data.processor import SETTINGS, Saved
from mmattn.data.readers import read_json
from mmattn.data.text.ngram import Counted, Mixture, NGram, load_lm

if TYPE_CHECKING:
    from mmattn.data.text.tokenizer import TokenIds
    from mmattn.tasks.asr.data import ASRSample

LM = "ngrams.safetensors"  # the language model's file, where there is one
NO_LIMIT = 1 << 30  # of tokens: a text is never cut, as the sound is not


class SpeechProcessor(Saved):
    """The interface; ``ASRProcessor`` of our own models, ``CTCProcessor`` and ``WhisperProcessor`` of public ones.

    ``SpeechProcessor.load`` reads any of them.
    """

    tokenizer: TokenIds
    search: dict[str, Any]  # how the model was measured, for whoever loads it (beams and the like)
    max_seconds: float  # the longest clip it is meant for; what is longer is heard in windows
    languages: Mapping[str, Any] | None = None  # those that can be asked for; None: there is nothing to ask for
    lm: Counted | None = None  # how likely texts are to be written, for beams over CTC
    delay: float = 0.0  # seconds by which CTC says things later than they are heard; word times are earlier by it

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        if cls is not SpeechProcessor:
            return super().load(directory)
        from mmattn.tasks.asr.processor import ASRProcessor
        from mmattn.tasks.asr.public_processors import KINDS

        config = read_json(Path(directory, SETTINGS))
        kind: Any = KINDS.get(config.get("kind"), ASRProcessor) if isinstance(config, Mapping) else ASRProcessor
        return kind.load(directory)  # type: ignore[no-any-return]

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        raise NotImplementedError

    @property
    def frame_seconds(self) -> float:
        """From one step of the features to the next one."""
        raise NotImplementedError

    @property
    def length_seconds(self) -> float:
        """Of one of what ``lengths`` counts."""
        return self.frame_seconds

    @property
    def pad_id(self) -> int:
        """Of padding: CTC's blank."""
        return self.tokenizer.pad_id

    @property
    def unk_id(self) -> int:
        """Of what no training text has."""
        return self.tokenizer.unk_id

    @property
    def start_id(self) -> int:
        """What a decoder reads first."""
        return self.tokenizer.start_id

    @property
    def eos_id(self) -> int:
        """What a decoder says last."""
        return self.tokenizer.eos_id

    def sizes(self) -> dict[str, int]:
        """The model's keywords that the data decide."""
        return {"vocab_size": self.tokenizer.vocab_size}

    def num_frames(self, num_samples: int) -> int:
        """How much of a batch's room so many samples take, padding that is always there included."""
        raise NotImplementedError

    def lengths(self, samples: Sequence[ASRSample]) -> list[tuple[int, int]]:
        """Frames, and tokens with their end, of each sample: for batches of like lengths."""
        return [
            (
                self.num_frames(round(sample.seconds() * self.sample_rate)),
                self.tokenizer.length(self.learnt(sample.text)) + 1,
            )
            for sample in samples
        ]

    def features(self, wave: Tensor) -> Tensor:
        """Samples (n,) at ``sample_rate``, n at least 1 -> (T, ...)."""
        return self.features_batch([wave])[0][0]

    def features_batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Samples (n,) each -> features (B, T, ...) and mask (B, T), True = of the recording."""
        raise NotImplementedError

    def picture(self, wave: Tensor) -> tuple[Tensor, float]:
        """Samples (n,) to a spectrogram (T, M) for people, and the seconds of one of its frames."""
        return self.features(wave), self.frame_seconds

    def learnt(self, text: str) -> str:
        """A text of the data as the model learns it."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The ids of a text; neither start nor end among them."""
        return self.tokenizer.encode(self.learnt(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text from ids, what is special left out."""
        return self.tokenizer.decode(ids)

    def said(self, ids: Sequence[int]) -> str:
        """What ids of the model say, as a user sees it."""
        return self.decode(ids)

    def targets(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What training compares with.

        Returns:
            target_ids: (B, L) long, what a decoder reads, the start token first.
            labels: (B, L) long, what it should say at each place, the end last.
            label_mask: (B, L) bool, True = counts.
        """
        labels, label_mask = self.tokenizer.encode_batch([self.learnt(text) for text in texts], NO_LIMIT, eos=True)
        start = torch.full_like(labels[:, :1], self.start_id)
        return torch.cat([start, labels[:, :-1]], dim=1), labels, label_mask

    @property
    def lm_order(self) -> int:
        """Of the language model; 0: there is none."""
        return 0 if self.lm is None else self.lm.order

    def with_lm(self, folder: Path, order: int) -> Self:
        """Itself with the language model that lies in a folder; as it is where the order is 0."""
        if order:
            self.lm = load_lm(folder / LM, self.tokenizer.vocab_size, self.start_id, self.eos_id)
        return self

    def count(self, texts: Iterable[str], order: int, further: Iterable[str] = ()) -> int:
        """Makes the language model; texts with signs that have no id are left out.

        Args:
            texts: The task's own, as people write them.
            order: Ids of the longest n-grams.
            further: Texts from elsewhere, which a model of their own counts; how much each weighs is found.

        Returns:
            How many texts are left out.

        Raises:
            ValueError: No text is left, or no ids stand for a text's beginning and end.
        """
        if len({self.pad_id, self.start_id, self.eos_id}) < 3:
            raise ValueError("expected a tokenizer with ids for where a text begins and ends, found none")
        (own, left_out), (others, others_left_out) = map(self._spelt, (texts, further))
        sizes = (self.tokenizer.vocab_size, order, self.start_id, self.eos_id)
        if not own or (others_left_out and not others):
            raise ValueError(
                f"expected texts of signs that have an id, found none among {others_left_out if own else left_out}"
            )
        self.lm = Mixture.fit(own, others, *sizes) if others else NGram.fit(own, *sizes)
        return left_out + others_left_out

    def _spelt(self, texts: Iterable[str]) -> tuple[list[list[int]], int]:
        """The ids of each text that can be spelt, and how many cannot."""
        found = [self.tokenizer.encode(self.learnt(text)) for text in texts]
        known = [ids for ids in found if ids and self.unk_id not in ids]
        return known, len(found) - len(known)

    def save_parts(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        if self.lm is None:
            (folder / LM).unlink(missing_ok=True)  # another's, that was written here before
        else:
            self.lm.save(folder / LM)

    def parts_text(self) -> str:
        return self.tokenizer.to_json() + ("" if self.lm is None else self.lm.fingerprint())
