"""VQA accuracy as the VQA v2 evaluation defines it: answer normalization and agreement with the annotators.

Antol et al. 2015 (section 4), Goyal et al. 2017, and the evaluation rules of visualqa.org.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Signs that the rules take out. The apostrophe, colon, dollar, percent and ampersand stay; the period has its own rule.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")  # every period that no digit follows: "5." and "a.b" lose it, "2.5" and ".5" keep it
_PLUS = re.compile(r"(?<=[^\W\d_])\++(?!\w)")  # part of a name, as in "C++" and "A+"
_DIGIT_COMMA = re.compile(r"\d,\d")
_KEPT = "\0"  # stands for a plus sign that stays
_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}

# Contractions whose single apostrophe is restored if missing. Contractions that are another word without it (we're,
# she'll, he'll, it's, we'd, we'll, ...) are not in the rules; nor are "I'm", "I've", "I'd've", which the official table
# spells with a capital and looks up in lower-cased text.
_ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Contractions with two apostrophes, restored if one of them is missing.
_TWO_APOSTROPHES = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""


def _contraction_table() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _TWO_APOSTROPHES.split():
        first, second = (place for place, character in enumerate(word) if character == "'")
        table[word[:first] + word[first + 1 :]] = word
        table[word[:second] + word[second + 1 :]] = word
    table |= {"somebody'd": "somebodyd"}  # reversed in the official table
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    return table


_CONTRACTIONS = _contraction_table()


def normalize_answer(answer: str) -> str:
    """Normalize an answer as the VQA v2 evaluation does.

    Lower case; numbers up to ten as digits; no articles; missing apostrophes restored; punctuation removed by the
    official rules, quirks included: a character is deleted if it is adjacent to a space anywhere in the answer (or if
    the answer has a comma between two digits), and replaced by a space otherwise. ``"book, lamp"`` is thus
    ``"book lamp"``, ``"t-shirt"`` is ``"t shirt"``, and ``"1,000-piece"`` is ``"1000piece"``.

    Unlike the official script, a step that would leave nothing is left out, so that ``"A"``, ``"the"``, ``"+"`` and
    ``"-"`` are answers, and a plus sign behind a letter is part of a name, so that ``"C++"`` differs from ``"C"``.

    >>> normalize_answer("The two red T-shirts.")
    '2 red t shirts'
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    stripped = text = _PLUS.sub(lambda signs: signs[0].replace("+", _KEPT), text)
    digit_comma = _DIGIT_COMMA.search(text) is not None
    for character in _PUNCTUATION:
        if character in text:
            delete = digit_comma or character + " " in text or " " + character in text
            stripped = stripped.replace(character, "" if delete else " ")
    stripped = _PERIOD.sub("", stripped, count=32)  # the official script passes a flag where the count belongs
    stripped = (stripped if stripped.strip() else text).replace(_KEPT, "+").lower()
    words = [_NUMBER_WORDS.get(word, word) for word in stripped.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES) or " ".join(words)


def _agreement(matches: int, total: int) -> float:
    """Accuracy of an answer given by ``matches`` of ``total`` annotators: mean over the leave-one-out subsets."""
    if total == 1:
        return float(matches)
    needed = min(3, total - 1)
    left_in = matches * min(1.0, (matches - 1) / needed) if matches else 0.0  # one of the matching ones left out
    left_out = (total - matches) * min(1.0, matches / needed)
    return (left_in + left_out) / total


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    r"""VQA accuracy of one prediction.

    \(\frac1n \sum_i \min(1, m_{-i} / 3)\), with \(m_{-i}\) the number of the other \(n - 1\) annotators who gave the
    predicted answer. With ten answers this is the official figure (0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 and more
    matches). With fewer than three others, all of them must match instead of three: up to four answers give the share
    of annotators who agree, and a single answer gives exact match.

    Prediction and answers are normalized first. The official script does not normalize them if all annotators gave the
    same string; the result differs only if normalization makes the prediction equal to it.

    Args:
        prediction: The model's answer.
        answers: The annotators' answers, at least one.

    Returns:
        Accuracy in 0..1.

    Raises:
        ValueError: There are no answers.

    >>> vqa_accuracy("Two", ["2"] * 2 + ["3"] * 8)
    0.6
    """
    if not answers:
        raise ValueError("vqa_accuracy: expected at least one annotator's answer, found none")
    wanted = normalize_answer(prediction)
    return round(_agreement(sum(normalize_answer(answer) == wanted for answer in answers), len(answers)), 12)


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """The accuracy of each of the annotators' answers: the soft targets of VQA v2 training.

    Args:
        answers: The annotators' answers; an empty list gives an empty dict.

    Returns:
        Normalized answer to score in 0..1, in the order of first appearance.

    >>> soft_scores(["yes"] * 9 + ["no"])
    {'yes': 1.0, 'no': 0.3}
    """
    counts: dict[str, int] = {}
    for answer in answers:
        normalized = normalize_answer(answer)
        counts[normalized] = counts.get(normalized, 0) + 1
    return {answer: round(_agreement(count, len(answers)), 12) for answer, count in counts.items()}
