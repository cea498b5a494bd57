"""Predictor of text generation: continuations at once or as they come, and what each word was read from."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, is_broken, shorten
from mmattn.data.seeds import seed_of
from mmattn.data.text.language import LanguageTokens
from mmattn.generate import GenerationConfig
from mmattn.generate.constraints import Context
from mmattn.generate.speculative import can_rewind, draft, lookup, speculate
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.items import mapping_of, name_of
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.text_generation.chat import render
from mmattn.tasks.text_generation.constrain import Limits, Pattern, cut_at, overlap
from mmattn.tasks.text_generation.continuation import Continuation
from mmattn.tasks.text_generation.corpus import Block
from mmattn.tasks.text_generation.data import TextBatch, TextDataset, TextSample
from mmattn.tasks.text_generation.explain import TextGenerationExplanation, explained
from mmattn.tasks.text_generation.options import CUT, Wanted

Item = Any  # a prompt, or a mapping with prompt, or with messages
SHOWN = 10  # unknown characters or words that are named
BEFORE = 8  # tokens of the prompt with which a continuation is decoded, for the spaces between words


@dataclass
class TextGenerationPrediction:
    """The continuation of one prompt."""

    id: str
    prompt: str
    text: str  # the continuation
    score: float | None  # mean log-probability of its tokens and end; None by speculative decoding or streaming
    tokens: int  # number of generated tokens
    tokens_cut: int = 0  # tokens at the beginning of the prompt that were not read
    unknown: list[str] = field(default_factory=list)  # characters or words of the prompt that were read as [UNK]


class TextGenerationPredictor(Predictor[Item, TextGenerationPrediction]):
    """Predictor of a language model.

    Items are prompts; or mappings with `prompt`, or `messages` of a conversation ("role" and "content" of each, for
    models with a chat template), and optionally `id`. What is sampled depends on the seed and the place of the item in
    the call, which `place` replaces, not on other items.
    """

    task = "text_generation"
    answer, graded_by = "text", "words in place"
    lookahead, live = 4, True
    draft_model: Any = None  # for speculative decoding
    cut = 0  # prompts that were not read in full
    with_unknown = 0  # prompts with what the tokenizer does not know
    unknown: tuple[str, ...] = ()  # the first of it

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        device: str = "auto",
        precision: str | None = None,
        draft: str | Path | None = None,
        **options: Any,
    ) -> TextGenerationPredictor:
        """Load a model; see `Predictor.load`.

        Args:
            source: See `mmattn.load`.
            device: "auto", "cpu", "cuda" or "cuda:N".
            precision: See `mmattn.load`.
            draft: A smaller model with the same tokenizer, for speculative decoding.
            options: Additional options of the task's adapters.

        Raises:
            ConfigError: The draft model has another tokenizer.
        """
        found = super().load(source, device, precision, **options)
        if draft is not None:
            parts = read_parts(cls.task, draft).finished()
            if parts.processor.parts_text() != found.processor.parts_text():
                raise ConfigError(f"--draft: expected a model with the same tokenizer, found {draft} with another.")
            found.draft_model = parts.build(parts.keywords).to(found.device).eval()
        return found

    # Items ------------------------------------------------------------------------------------------------------------

    def to_sample(self, item: Item, number: int) -> TextSample:
        if isinstance(item, Block):
            ids = item.ids().tolist()
            half = max(1, len(ids) // 2)
            return TextSample(item.id, self._restore(ids[half:], ids[:half]), self._restore(ids[:half]), place=number)
        if isinstance(item, TextSample):
            if item.prompt or not item.text:
                return replace(item, place=number)
            text = item.whole
            cut = text.rfind(" ", 0, max(len(text) // 2, 1)) + 1
            return TextSample(item.id, text[cut:], text[:cut], place=number)
        place = int(item.get("place", number)) if isinstance(item, Mapping) else number
        if isinstance(item, Mapping) and "messages" in item:
            prompt = self.chat(item["messages"])
            return TextSample(str(item.get("id", number)), "", prompt, place=place, is_whole=True)
        given = mapping_of(item, "prompt")
        name = name_of(given, number, ("prompt",))
        name = name if isinstance(item, Mapping) and "id" in item else str(number)
        prompt = given["prompt"]
        if not isinstance(prompt, str) or is_broken(prompt):
            raise DataError(f"item {name}", "a prompt of valid Unicode", shorten(prompt))
        return TextSample(name, "", prompt, place=place)

    def chat(self, messages: Sequence[Mapping[str, Any]] | str) -> str:
        """Returns the prompt of a conversation by the model's chat template.

        Args:
            messages: "role" and "content" of each message; or the text of the user's only one.

        Raises:
            DataError: The model has no chat template, or it does not take the messages.
        """
        template = self.processor.options.get("chat_template")
        if template is None:
            raise DataError("chat", "a model with a chat template", "none")
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return render(template, messages, self.processor.options.get("special_tokens", {}))

    def length(self, sample: TextSample) -> int:
        return len(sample.prompt)

    def truth(self, item: Item) -> str | None:
        if isinstance(item, Block):
            item = self.to_sample(item, 0)
        return (item.whole or None) if isinstance(item, TextSample) and item.text else None

    def grade(self, item: Any, truth: str, prediction: TextGenerationPrediction) -> float:
        found, right = prediction.text.split(), truth.split()
        return sum(a == b for a, b in zip(found, right, strict=False)) / max(len(right), 1)

    def text(self, item: Item) -> str:
        if isinstance(item, Block):
            item = self.to_sample(item, 0)
        return item.prompt if isinstance(item, TextSample) else str(item)

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[TextSample]:
        """Read the prompts of a JSONL, CSV or TSV file with `prompt`, or one a line of any other file."""
        if not Path(path).exists():
            raise DataError(path, "a JSONL, CSV, TSV or text file of prompts", "no such file")
        found = TextDataset(path, "line", on_error=on_error, require_labels=False).samples
        return [TextSample(s.id, "", s.whole) if s.text and not s.prompt else s for s in found]

    def demo_samples(self) -> Sequence[TextSample]:
        """The beginnings of the first documents of the built-in test split, up to the last token that follows."""
        from mmattn.tasks.text_generation.demo import beginning, make

        return [beginning(sample) for sample in make("test", 6)]

    # Generation -------------------------------------------------------------------------------------------------------

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        Wanted.of({name: value for name, value in options.items() if name != "words"})
        if options.get("words", 1) < 1:
            raise ConfigError(f"--words: expected 1 or more, found {options['words']}.")
        return dict(options)

    def refused_options(self) -> set[str]:
        found = {"lookup": can_rewind(self.model.net.start(1)), "chat": "chat_template" in self.processor.options}
        return {name for name, can in found.items() if not can}

    def predict_batch(
        self, samples: Sequence[TextSample], batch: TextBatch, **options: Any
    ) -> list[TextGenerationPrediction]:
        """Continue each prompt.

        Args:
            samples: The prompts; where a text is known, its number of tokens is the default of max_new_tokens.
            batch: Not used.
            options: Fields of `mmattn.tasks.text_generation.options.Wanted`: max_new_tokens, temperature, top_p, stop
                and others.
        """
        wanted = Wanted.of(options)
        if self.draft_model is not None:
            wanted = Wanted.of(options | {"speculative": True})
        rows = [self._begun(sample, wanted) for sample in samples]
        if wanted.max_new_tokens is None and all(sample.text for sample in samples):
            longest = max(len(self.processor.tokenizer.encode(sample.whole)) for sample in samples)
            wanted = wanted.limited(max(1, longest))
        if wanted.is_speculative:
            for row in rows:
                self._speculate(row, wanted)
        else:
            self._write(rows, wanted)
        found = []
        for sample, row in zip(samples, rows, strict=True):
            text = cut_at(self._restore(row.ids, row.prompt), wanted.stops)
            score = None if row.log_p is None else row.log_p / max(row.count, 1)
            about = (len(row.ids), row.cut, row.unknown)
            found.append(TextGenerationPrediction(sample.id, sample.prompt, text, score, *about))
        return found

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        wanted = Wanted.of(options)
        return not wanted.is_speculative and self.draft_model is None and (wanted.num_beams or 1) == 1

    def stream_text(self, item: Item, **options: Any) -> Generator[str, None, TextGenerationPrediction]:
        """Yields the continuation of one prompt in parts, as soon as they are generated; returns the prediction.

        Args:
            item: See `predict`.
            options: Those of `predict_batch`, without beams.
        """
        from mmattn.generate import stream

        wanted = Wanted.of(self.check_options(options))
        sample = self.to_sample(item, 0)
        row = self._begun(sample, wanted)
        shown = 0
        for config, given, keywords in self._rounds([row], wanted):
            ids, mask = self._padded(given)
            state = self.model.net.start(1, None if bool(mask.all()) else mask)
            for step in stream(self.model.net.step, state, ids, config, **keywords):
                row.ids += [token for _, token in step if token not in config.eos]
                row.is_done |= any(token in config.eos for _, token in step)
                whole = self._restore(row.ids, row.prompt)
                text = cut_at(whole, wanted.stops)
                if text != whole:
                    row.is_done = True
                held = 0 if row.is_done else max([0, *(overlap(text, stop) for stop in wanted.stops)])
                end = len(text) - held
                if end > shown and not text.endswith("\ufffd"):  # a character may have several tokens
                    yield text[shown:end]
                    shown = end
        text = cut_at(self._restore(row.ids, row.prompt), wanted.stops)
        if len(text) > shown:
            yield text[shown:]
        return TextGenerationPrediction(sample.id, sample.prompt, text, None, len(row.ids), row.cut, row.unknown)

    def remark(self) -> str:
        said = []
        if self.cut:
            said.append(
                f"{self.cut} of the prompts are longer than the {self.processor.max_len} tokens that the model reads, "
                f"and their beginnings were left out (--on_long refuse makes that an error)."
            )
        if self.with_unknown:
            parts = "words" if self.processor.tokenizer.kind == "word" else "characters"
            names = ", ".join(map(repr, self.unknown[:SHOWN])) + (", ..." if len(self.unknown) > SHOWN else "")
            has = "has" if self.with_unknown == 1 else "have"
            said.append(
                f"{self.with_unknown} of the prompts {has} {parts} that the model does not know and reads as [UNK]: "
                f"{names}."
            )
        return "\n".join(said)

    @cached_property
    def _limits(self) -> Limits:
        return Limits(self.processor.tokenizer)

    def _restore(self, ids: Sequence[int], before: Sequence[int] = ()) -> str:
        """The text of ids that follow others."""
        tail, restore = list(before[-BEFORE:]), self.processor.tokenizer.restore
        start = restore(tail)
        text: str = restore([*tail, *ids])
        return text[len(start) :]

    def _read(self, sample: TextSample, wanted: Wanted) -> tuple[str, bool]:
        """The prompt as it is read, and whether it has all its special tokens: that of a chat template has."""
        is_chat = wanted.chat and not sample.is_whole
        return self.chat(sample.prompt) if is_chat else sample.prompt, is_chat or sample.is_whole

    def _begun(self, sample: TextSample, wanted: Wanted) -> Continuation:
        """A continuation without tokens; the prompt is cut if it is too long, or refused.

        Raises:
            DataError: The prompt is too long, and not to be cut.
        """
        prompt, is_whole = self._read(sample, wanted)
        ids = self.processor.prompt_ids(prompt, is_whole=is_whole)
        most, unknown = self.processor.max_len, self._unknown(prompt)
        generator = torch.Generator().manual_seed(seed_of(wanted.seed, 0, sample.place))
        if len(ids) <= most:
            return Continuation(ids, unknown=unknown, generator=generator)
        if wanted.on_long != CUT:
            raise DataError(f"item {sample.id}", f"a prompt of at most {most} tokens", f"one of {len(ids)}")
        kept = max(1, most - min(wanted.new_tokens, most // 2))
        self.cut += 1
        return Continuation(ids[-kept:], cut=len(ids) - kept, unknown=unknown, generator=generator)

    def _unknown(self, prompt: str) -> list[str]:
        """The characters or words of a prompt without a token of their own, which are counted for `remark`."""
        tokenizer = self.processor.tokenizer
        if not isinstance(tokenizer, LanguageTokens) or tokenizer.kind not in ("character", "word"):
            return []  # bytes and byte-level pieces know every text; public tokenizers have their own ways
        found = tokenizer.unknown_words(prompt)
        self.with_unknown += bool(found)
        self.unknown = tuple(dict.fromkeys((*self.unknown, *found)))[: SHOWN + 1]
        return found

    def _rounds(
        self, rows: Sequence[Continuation], wanted: Wanted
    ) -> Iterator[tuple[GenerationConfig, list[list[int]], dict[str, Any]]]:
        """Yields options, prompts and keywords of `generate` for the rows that are not done.

        There are several rounds if a text grows longer than what the model reads at once; each then begins with the
        last half of it.
        """
        most, left = self.processor.max_len, wanted.new_tokens
        while left > 0:
            live = [row for row in rows if not row.is_done]
            if not live:
                return
            given = [row.window(most) for row in live]
            room = min(left, max(1, most + 1 - max(map(len, given))))
            config = wanted.config(self.processor, room)
            keywords: dict[str, Any] = {"generator": [row.generator for row in live]}
            ids, mask = self._padded([[*row.prompt, *row.ids] for row in live])
            context = Context(ids.masked_fill(~mask, -1), len(live[0].ids))  # all have as many new ones
            keywords["context"] = context
            if wanted.stops:
                keywords["should_stop"] = self._limits.stopping(wanted.stops)
            if wanted.pattern is not None:
                index = self._limits.automaton(wanted.pattern, config.eos[0])
                keywords["constraints"] = [Pattern(index, config.eos[0], ids.shape[1] - context.new)]
            yield config, given, keywords
            left -= room

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids (B, P) and mask (B, P) of prompts, padded at the left."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.processor.tokenizer.pad_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, longest - len(row) :] = torch.tensor(row)
            mask[number, longest - len(row) :] = True
        return ids.to(self.device), mask.to(self.device)

    def _write(self, rows: Sequence[Continuation], wanted: Wanted) -> None:
        """Continue rows, in place."""
        if len(rows) > 1 and not self.model.net.pads_left:
            for row in rows:
                self._write([row], wanted)
            return
        for config, given, keywords in self._rounds(rows, wanted):
            found = self.model.generate(*self._padded(given), config, **keywords)
            live = [row for row in rows if not row.is_done]
            log_p = (found.scores * found.lengths**config.length_penalty)[:, 0].tolist()
            for row, before, (ids, *_), value in zip(live, given, found.tokens(), log_p, strict=True):
                row.add(before, ids, config, keywords.get("should_stop"))
                row.log_p = (row.log_p or 0.0) + value

    def _speculate(self, row: Continuation, wanted: Wanted) -> None:
        """Continue one row by speculative decoding, in place.

        Raises:
            ConfigError: The attention of the model, or of the draft model, cannot take tokens back.
        """
        models = [self.model] if self.draft_model is None else [self.model, self.draft_model]
        if not all(can_rewind(model.net.start(1)) for model in models):
            raise ConfigError("--lookup and --draft need transformers whose attention caches all keys and values.")
        guess = lookup if self.draft_model is None else draft(self.draft_model.net)
        for config, (ids,), keywords in self._rounds([row], wanted):
            stops = keywords.get("should_stop")
            found = speculate(self.model.net, self._padded([ids])[0], config, guess, stops, keywords["context"])
            row.add(ids, found.ids, config, stops)
        row.log_p = None

    # Explanation and export -------------------------------------------------------------------------------------------

    def explain_batch(
        self, samples: Sequence[TextSample], batch: TextBatch, *, words: int = 4, **options: Any
    ) -> list[TextGenerationExplanation]:
        """Explain the first words of each continuation by the relevance of what was read before them.

        Args:
            samples: The prompts.
            batch: Not used.
            words: Number of words that are explained.
            options: Those of `predict_batch`.
        """
        with torch.inference_mode():
            written = self.predict_batch(samples, batch, **options)
        read = [self._read(sample, Wanted.of(options)) for sample in samples]
        return [explained(self, one, *prompt, words) for one, prompt in zip(written, read, strict=True)]

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export one program of prompts and steps alike, with the cache as flat tensors."""
        from mmattn.tasks.text_generation.export import export_language_model

        return export_language_model(self.model.net, self.task, folder, formats)


load = TextGenerationPredictor.load
