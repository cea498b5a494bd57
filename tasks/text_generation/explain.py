"""What each generated word was read from: the relevance of the words before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.text.tokenizer import words_of
from mmattn.explain import relevance
from mmattn.tasks.common.shading import WIDTH, Words, join_tokens, shaded_html, shaded_picture

LONG = 256  # tokens up to which one after another is replaced
OTHERS = 4  # other tokens in place of each, fewer in texts of more than LONG / OTHERS tokens
ROWS = 32  # texts at a time


@dataclass
class TextGenerationExplanation:
    """The relevance of the words before each of the first words of a continuation."""

    prediction: Any  # a TextGenerationPrediction
    words: list[Words]  # for each explained word, which is marked: the text before it, shaded, and itself
    names: list[str]  # the explained words
    truth: str | None = None  # the true continuation, if it is known

    def save(self, path: str | Path) -> None:
        """Write a PNG: the text up to the first explained word, its words shaded."""
        from mmattn.plot import caption

        title = caption(
            self.prediction.id, f"{self.names[0]!r}, of {self.prediction.text.strip()!r}", self.truth, WIDTH
        )
        shaded_picture(self.words[0], path, title)

    def html(self) -> str:
        """All explained words as a part of an HTML page."""
        true = "" if self.truth is None else f"; true: {self.truth.strip()}"
        parts = [f"<h3>{escape(self.prediction.text.strip() + true)}</h3>"]
        parts += [
            f"<h4>{escape(name)}</h4>{shaded_html(words)}" for name, words in zip(self.names, self.words, strict=True)
        ]
        return f"<section>{''.join(parts)}</section>"


def explained(predictor: Any, written: Any, prompt: str, is_whole: bool, most: int) -> TextGenerationExplanation:
    """Explains the first words of a continuation.

    Args:
        predictor: A `TextGenerationPredictor`.
        written: One of its predictions.
        prompt: The prompt as it was read, of a conversation by the chat template.
        is_whole: Whether it has all its special tokens.
        most: Number of words.
    """
    text = prompt + written.text
    tokenizer = predictor.processor.tokenizer
    spans = tokenizer.spans(text)
    words, owners = words_of(text, spans)
    end = len(prompt.rstrip())
    new = [n for n, (start, _) in enumerate(words) if start >= end or words[n][1] > end + 1][:most]
    found, names = [], []
    before = [] if is_whole else predictor.processor.start_ids
    ids = [*before, *tokenizer.encode(text)]
    for number in new:
        own = [place for place, owner in enumerate(owners) if owner == number]  # white space before it, too
        tokens = [place for place in own if spans[place][1] > max(spans[place][0], end)]  # a prompt may end in the word
        if not tokens or number == 0:
            continue
        places = [place + len(before) for place in tokens]
        weights = token_relevance(predictor.model.net, ids[-predictor.processor.max_len :], places, len(ids))
        shown = join_tokens(words[:number], owners[: own[0]], weights[len(before) : len(before) + own[0]])
        start, stop = words[number]
        found.append(Words(text[:stop], words[: number + 1], torch.cat([shown, torch.zeros(1)]), [(start, stop)]))
        names.append(text[start:stop])
    if not found:
        found, names = [_first_token(predictor, prompt, written.text, before)], ["the first token"]
    return TextGenerationExplanation(written, found, names)


def _first_token(predictor: Any, prompt: str, text: str, before: Sequence[int]) -> Words:
    """The relevance of the prompt's words for the first token of a continuation without words, such as the end."""
    tokenizer = predictor.processor.tokenizer
    ids = [*before, *tokenizer.encode(prompt), *(tokenizer.encode(text)[:1] or [tokenizer.eos_id])]
    weights = token_relevance(predictor.model.net, ids[-predictor.processor.max_len :], [len(ids) - 1], len(ids))
    words, owners = words_of(prompt, tokenizer.spans(prompt)) if prompt.strip() else ([], [])
    own = join_tokens(words, owners, weights[len(before) : len(before) + len(owners)])
    return Words(prompt, words, own)


def token_relevance(net: Any, ids: Sequence[int], places: Sequence[int], total: int) -> Tensor:
    """The relevance of each token for the tokens at some places, which were predicted from those before them.

    It is by how much their log-probability falls, where it falls, if it is not known which token is there, but only
    how probable each is after those before it (Kim et al. 2020, "Interpretation of NLP Models through Input
    Marginalization"): a token that had to come tells nothing. For texts of more than LONG tokens it is the
    gradient-weighted attention of Chefer et al. 2021, which takes one pass.

    Args:
        net: A `CausalLM` or `RecurrentLM`.
        ids: The last tokens of a text.
        places: Indices of the tokens, in the whole text.
        total: Number of tokens of the whole text.

    Returns:
        (total,), zero for tokens that were not read; sums to one if anything is relevant.
    """
    left = total - len(ids)
    own = [place - left for place in places if place - left > 0]
    weights = torch.zeros(total)
    if own:
        read = torch.tensor([ids[: max(own)]], device=net.embedding.weight.device)
        rows = (_marginalization if read.shape[1] <= LONG else _attention)(net, read, ids, own)  # (L,)
        weights[left : left + len(rows)] = rows / rows.sum().clamp_min(1e-9)
    return weights


def _log_p(net: Any, read: Tensor, ids: Sequence[int], places: Sequence[int]) -> Tensor:
    """The sum of the log-probabilities of the tokens at some places, of each row of read (B, L): (B,)."""
    logits = net.output(net.states(read)[:, [place - 1 for place in places]]).float()  # (B, k, V)
    wanted = torch.tensor([ids[place] for place in places], device=read.device)
    return logits.log_softmax(-1).gather(2, wanted.expand(len(read), -1)[..., None]).sum((1, 2))


def _marginalization(net: Any, read: Tensor, ids: Sequence[int], places: Sequence[int]) -> Tensor:
    length, others = read.shape[1], max(1, min(OTHERS, LONG // read.shape[1]))
    with torch.no_grad():
        p = net(read)[0].float().softmax(-1)  # (L, V)
        p = torch.cat([p.mean(0, keepdim=True), p[:-1]])  # of each token of the text; nothing comes before the first
        own = read[0][:, None]
        kept = p.gather(1, own)  # (L, 1)
        shares, tokens = p.scatter(1, own, 0.0).topk(min(others, p.shape[1] - 1))  # (L, K)
        texts = read.expand(tokens.numel(), -1).clone()
        numbers = torch.arange(len(texts), device=read.device)
        texts[numbers, numbers // tokens.shape[1]] = tokens.flatten()
        log_p = torch.cat([_log_p(net, rows, ids, places) for rows in texts.split(ROWS)]).view(length, -1)
        whole = _log_p(net, read, ids, places)[:, None]  # (1, 1)
    shares = (1 - kept) * shares / shares.sum(1, keepdim=True).clamp_min(1e-30)
    expected = torch.cat([kept.log() + whole, shares.log() + log_p], dim=1).logsumexp(1)  # (L,)
    return (whole[0] - expected).clamp_min(0).cpu()


def _attention(net: Any, read: Tensor, ids: Sequence[int], places: Sequence[int]) -> Tensor:
    found = relevance(net, lambda: _log_p(net, read, ids, places))
    R = max(found.values(), key=lambda one: one.shape[-1])[0]  # (L, L)
    own = R - torch.eye(len(R), device=R.device)  # without a token's own
    return own[[place - 1 for place in places]].mean(0).clamp_min(0).float().cpu()
