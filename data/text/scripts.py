"""Scripts of texts, by the Unicode names of their letters, and words in any of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

HAN, KANA = "CJK", frozenset({"HIRAGANA", "KATAKANA"})
UNSPACED = frozenset(
    {HAN, *KANA, "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE"}
)  # between words
LATIN = "LATIN"
_ASCII_WORD = re.compile("[a-z0-9]+")


@lru_cache(maxsize=100_000)
def script_of(character: str) -> str:
    """Returns the script of a letter, in capitals; of other characters an empty string.

    >>> [script_of(character) for character in "aжक中ー1"]
    ['LATIN', 'CYRILLIC', 'DEVANAGARI', 'CJK', 'KATAKANA', '']
    """
    if not unicodedata.category(character).startswith("L"):
        return ""
    name = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    return name.replace("-", " ").partition(" ")[0]


def count_scripts(texts: Iterable[str]) -> Counter[str]:
    """Returns the number of words in each script, by their first letter."""
    found = Counter(script_of(word[0]) for text in texts for word in split_words(text))
    del found[""]
    return found


def is_latin(texts: Iterable[str]) -> bool:
    """Whether at least half of the words are Latin; so are texts without words."""
    found = count_scripts(texts)
    return 2 * found[LATIN] >= found.total()


def split_words(text: str) -> list[str]:
    """Returns the lower-cased words of a text in any script.

    Words are letters and digits with their marks. In scripts without spaces between words, each letter is a word.

    >>> split_words("Мы видели 2 भाषाएँ: 中文。")
    ['мы', 'видели', '2', 'भाषाएँ', '中', '文']
    """
    if text.isascii():  # several times as fast, and equal
        return _ASCII_WORD.findall(text.lower())
    return [word for part in text.split() for word in _words(part)]


@lru_cache(maxsize=1 << 16)
def _words(part: str) -> tuple[str, ...]:
    found: list[str] = []
    inside = alone = False  # whether the last character belongs to a word, and whether that word ends with it
    for character in unicodedata.normalize("NFKC", part).lower():
        category = unicodedata.category(character)
        if category == "Cf":  # joiners and soft hyphens, which do not end a word
            continue
        if category[0] == "M" and inside:
            found[-1] += character
        elif category[0] in "LN":
            before, alone = alone, script_of(character) in UNSPACED
            if inside and not before and not alone:
                found[-1] += character
            else:
                found.append(character)
            inside = True
        else:
            inside = alone = False
    return tuple(found)
