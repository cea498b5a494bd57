"""The built-in VQA data: frozen, balanced, unambiguous, with new scenes and new wordings in the test split."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmattn.data.image.shapes import COLORS, SHAPES, SIZES
from mmattn.tasks.vqa import demo as vqa
from tests.data.demos import DemoTests


@pytest.fixture(scope="module")
def parts():
    return {split: vqa.make(split, size=200) for split in ("train", "val", "test")}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


class TestFrozen(DemoTests):
    demo, first = vqa, 90  # of 5 scenes
    digests = (
        "b20d1b756e4c77c7ba6871213139039c6a52402dfbb05817e6291f99c1d286c2",
        "cf6530799b24ca0b31b172254a6ec7179364e2c27332bb3861ffb02b1ebaa3c6",
        "952b2eaecd44d540ff370f9efd4ee43a3def9035c40edb5ae251132f1a240a50",
    )

    def content(self, s):
        record = (s.id, s.image_id, s.question, s.answers, s.question_type, s.answer_type, s.regions, s.objects)
        return s.image.tobytes() + repr(record).encode()


def test_images_and_boxes(parts):
    for samples in parts.values():
        for sample in samples[::18]:
            assert sample.image.shape == (64, 64, 3)
            assert sample.image.dtype == np.uint8
            assert 3 <= len(sample.objects) <= 5
            for box, (shape, colour, size) in sample.objects:
                assert 0 <= box[0] < box[2] <= 1
                assert 0 <= box[1] < box[3] <= 1
                assert shape in SHAPES
                assert colour in COLORS
                assert size in SIZES
        for sample in samples:
            boxes = [box for box, _ in sample.objects]
            assert all(region in boxes for region in sample.regions)


def test_boxes_contain_their_color(parts):
    """Images and labels match: a large box contains its color, and red differs from blue."""
    means = defaultdict(list)
    for sample in parts["train"][::18]:
        for box, (shape, colour, size) in sample.objects:
            if size == "large" and shape == "square":
                x, y = round(32 * (box[0] + box[2])), round(32 * (box[1] + box[3]))
                means[colour].append(sample.image[y - 2 : y + 2, x - 2 : x + 2].mean((0, 1)))
    red, blue, white = (np.mean(means[colour], 0) for colour in ("red", "blue", "white"))
    assert red[0] > 150 > red[2]
    assert blue[2] > 150 > blue[0]
    assert white.min() > 200


def test_families_and_answers_are_balanced(parts):
    samples = parts["train"]
    assert Counter(s.question_type for s in samples) == dict.fromkeys(vqa.FAMILIES, 400)
    assert len(vqa.FAMILIES) == 9
    assert len(vqa.ANSWERS) >= 20
    answers = defaultdict(Counter)
    for sample in samples:
        assert len(sample.answers) == 1
        answers[sample.question_type][sample.answers[0]] += 1
    assert set().union(*answers.values()) == set(vqa.ANSWERS)
    often = {family: max(counts.values()) / 400 for family, counts in answers.items()}
    limits = {"colour": 0.25, "shape": 0.25, "count": 0.35, "relation_query": 0.2, "half": 0.35}
    for family, share in often.items():
        assert share <= limits.get(family, 0.6), (family, share)
    assert sum(often.values()) / 9 <= 0.42  # the most frequent answer of each family


def test_new_scenes_and_new_wordings(parts):
    images = {split: {s.image.tobytes() for s in samples} for split, samples in parts.items()}
    assert not images["train"] & images["test"]
    assert not images["train"] & images["val"]
    for known, others, unseen in vqa.TEMPLATES.values():
        assert len(known) >= 6
        assert len(unseen) >= 4
        assert len({*known, *others, *unseen}) == len(known) + len(others) + len(unseen)
    train = {word for s in vqa.make("train", size=400) for word in words(s.question)}
    for split in ("val", "test"):
        assert {word for s in parts[split] for word in words(s.question)} <= train
    sentences = {split: {s.question for s in samples} for split, samples in parts.items()}
    assert not sentences["train"] & sentences["test"]


def _fits(thing: tuple[str, ...], description: str) -> bool:
    """Whether "large red star" or "little things" describes an object with these labels."""
    terms = description.replace("little", "small").replace("big", "large").split()
    noun = terms[-1].removesuffix("es") if terms[-1] == "crosses" else terms[-1].removesuffix("s")
    noun = "cross" if noun.startswith("cros") else noun
    return all(word in thing for word in terms[:-1]) and (noun in ("thing", "object") or noun in thing)


def test_answers_follow_from_the_objects():
    """Recomputes the answers of every family from the objects and the words of one of its templates."""
    seen = Counter()
    for s in vqa.make("train", size=300):
        labels = [set(label) for _, label in s.objects]
        centers = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b, _ in s.objects]

        def matching(text, labels=labels):
            return [i for i, label in enumerate(labels) if _fits(tuple(label), text)]

        answer, question = s.answers[0], s.question
        about = [i for i, (box, _) in enumerate(s.objects) if box in s.regions]
        if m := re.fullmatch(r"(?:what|which) (colou?r|shape|size) (?:is|does) the ([a-z ]+?)(?: have)?\?", question):
            if s.question_type == "relation_query":
                continue
            assert matching(m[2]) == about
            assert len(about) == 1
            assert answer in labels[about[0]]
        elif m := re.fullmatch(r"(?:is there|do you see) an? ([a-z ]+)\?", question):
            assert (answer == "yes") == bool(matching(m[1]))
            assert matching(m[1]) == about
        elif m := re.fullmatch(r"how many ([a-z ]+?) (?:are there|do you see)\?", question):
            assert answer == str(len(matching(m[1])))
            assert matching(m[1]) == about
        elif m := re.fullmatch(r"are there (more|fewer|as many) ([a-z ]+) (?:than|as) ([a-z ]+)\?", question):
            first, second = len(matching(m[2])), len(matching(m[3]))
            truth = {"more": first > second, "fewer": first < second, "as many": first == second}[m[1]]
            assert truth == (answer == "yes")
            assert first or second
        elif m := re.fullmatch(
            r"(?:is it true that )?the ([a-z ]+) (?:is|lies) (?:to the |on the )?"
            r"(left of|right of|above|over|higher than|below|under|lower than) the ([a-z ]+)(?:: [a-z ]+)?\?",
            question,
        ):
            (a,), (b,) = matching(m[1]), matching(m[3])
            dx, dy = centers[a][0] - centers[b][0], centers[a][1] - centers[b][1]
            gap = {"left": -dx, "right": dx, "above": -dy, "over": -dy, "higher": -dy}.get(m[2].split()[0], dy)
            assert (gap > 0) == (answer == "yes")
            assert abs(gap) * 64 > 8.9
        elif m := re.fullmatch(r"where is the ([a-z ]+), (\w+) or (\w+)\?", question):
            (a,) = matching(m[1])
            off = centers[a][0] - 0.5 if "left" in question else centers[a][1] - 0.5
            assert answer == (("left", "right") if "left" in question else ("top", "bottom"))[off > 0]
            assert abs(off) * 64 > 3.9
        else:
            continue
        seen[s.question_type] += 1
    assert set(seen) == set(vqa.FAMILIES) - {"relation_query"}


def test_relation_query_has_one_answer():
    sides = r"left of|right of|above|over|higher than|below|under|lower than"
    pattern = rf"what (colou?r|shape) is the (?:thing|object) (?:to the |on the )?({sides}) the ([a-z ]+)\?"
    checked = 0
    for s in vqa.make("train", size=300):
        if s.question_type == "relation_query" and (m := re.fullmatch(pattern, s.question)):
            (reference,) = [i for i, (_, label) in enumerate(s.objects) if _fits(label, m[3])]
            side = m[2].split()[0]
            axis = 0 if side in ("left", "right") else 1
            sign = -1 if side in ("left", "above", "over", "higher") else 1
            place = [(box[axis] + box[axis + 2]) / 2 for box, _ in s.objects]
            there = [i for i, p in enumerate(place) if sign * (p - place[reference]) > -0.9 / 64 and i != reference]
            assert len(there) == 1
            assert s.answers[0] in s.objects[there[0]][1]
            assert s.regions == [s.objects[reference][0], s.objects[there[0]][0]]
            checked += 1
    assert checked > 20


def test_generation_is_fast():
    start = time.process_time()
    vqa.make("val")
    assert time.process_time() - start < 3  # 0.3 s on an idle core
