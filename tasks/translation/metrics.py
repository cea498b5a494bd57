"""BLEU and chrF by sacreBLEU, on plain text, tokenized by language."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from mmattn.data.text.scripts import HAN, KANA, UNSPACED, count_scripts

USUAL = "13a"  # sacreBLEU's default: words between spaces, with English punctuation apart
# sacreBLEU's tokenizers of languages without spaces between words, and of Korean, by the start of a language code.
TOKENIZERS = (
    dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh"), "zh")
    | dict.fromkeys(("ja", "jp", "jpn"), "ja-mecab")
    | dict.fromkeys(("ko", "kor"), "ko-mecab")
    | dict.fromkeys(("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "bo", "bod", "dz", "dzo"), "char")
)
WITHOUT_MECAB = {"ja-mecab": "char", "ko-mecab": USUAL}  # Korean has spaces
LOOK_AT = 1000  # texts whose script decides where the language does not


def tokenizer_of(language: str, texts: Sequence[str]) -> str:
    """The name of sacreBLEU's tokenizer for a target language, or for the script of its texts.

    Args:
        language: Code of the target language; other names, such as a column's, leave it to the script.
        texts: References.

    >>> tokenizer_of("zh-CN", []), tokenizer_of("target", ["猫坐在垫子上"]), tokenizer_of("de", ["die Katze"])
    ('zh', 'zh', '13a')
    """
    found = TOKENIZERS.get(re.split("[-_.]", language.lower())[0])
    if found is None:
        counts = count_scripts(islice(texts, LOOK_AT))
        script = counts.most_common(1)[0][0] if counts else ""
        found = {HAN: "zh", "HANGUL": "ko-mecab"}.get(script, "char" if script in UNSPACED else USUAL)
        if script in {HAN, *KANA} and 20 * sum(counts[kana] for kana in KANA) > counts.total():
            found = "ja-mecab"
    if found not in WITHOUT_MECAB:
        return found
    try:
        _metrics(found)
    except (ImportError, RuntimeError):  # MeCab and its dictionary are packages of their own
        return WITHOUT_MECAB[found]
    return found


def _metrics(tokenizer: str) -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    return {"bleu": BLEU(tokenize=tokenizer), "chrf": CHRF()}


def score(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str | None = None
) -> dict[str, float]:
    """Corpus BLEU (Papineni et al. 2002) and chrF2 (Popović 2015), 0..100, cased, on untokenized text (Post 2018).

    Args:
        hypotheses: One text per sample.
        references: One or more references per sample.
        tokenizer: BLEU's tokenizer, see `tokenizer_of`; None: that of the references' script.

    >>> score(["the cat sat on the mat"], [["the cat sat on the mat"]])
    {'bleu': 100.00000000000004, 'chrf': 100.0}
    """
    most = max((len(given) for given in references), default=1)
    # One stream per reference; samples with fewer references have None, which sacreBLEU ignores.
    streams = [[given[n] if n < len(given) else None for given in references] for n in range(most)]
    metrics = _metrics(tokenizer or tokenizer_of("", [text for given in references for text in given]))
    return {name: metric.corpus_score(list(hypotheses), streams).score for name, metric in metrics.items()}


def signatures(tokenizer: str = USUAL) -> dict[str, str]:
    """sacreBLEU signatures for comparison: tokenizer, case, smoothing, version."""
    found = {}
    for name, metric in _metrics(tokenizer).items():
        metric.corpus_score(["a"], [["a"]])  # the signature includes the number of references
        found[f"{name}_signature"] = str(metric.get_signature())
    return found
