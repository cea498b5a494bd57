"""Average precision against pycocotools, and thresholds against all cuts."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.tasks.detection.boxes import Detections, Truth, box_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from mmattn.tasks.detection.matching import best_thresholds, match
from mmattn.tasks.detection.metrics import DetectionMetric

pytest.importorskip("faster_coco_eval")
KINDS = ("all", "no crowds", "few images", "nothing predicted", "small", "ties")
Images = tuple[list[Detections], list[Truth]]


def truth(boxes: Any, labels: Any, crowd: Any = None) -> Truth:
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd, bool)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Truth(boxes, np.array(labels, np.int64), crowd, area)


def found(boxes: Any, scores: Any, labels: Any) -> Detections:
    return Detections(torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(labels).long())


def random_boxes(rs: np.random.RandomState, number: int, most: float) -> np.ndarray:
    corner, size = 200 * rs.random_sample((number, 2)), 2 + most * rs.random_sample((number, 2)) ** 2
    return np.concatenate([corner, corner + size], 1)


def case(seed: int, num_classes: int = 4) -> Images:
    """Images with and without boxes, with crowds, boxes near true ones and far, more than 100 of them in one."""
    rs, kind = np.random.RandomState(seed), KINDS[seed % len(KINDS)]
    detections, truths = [], []
    for n in range(2 if kind == "few images" else 12):
        number = rs.randint(0, 9) if n else 0
        boxes = random_boxes(rs, number, 30 if kind == "small" else 180)
        labels = rs.randint(0, num_classes - 1, number)  # the last class has no true boxes
        crowd = rs.random_sample(number) < (0 if kind == "no crowds" else 0.2)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1) * (0.5 + 0.5 * rs.random_sample(number))  # of a segment
        truths.append(Truth(boxes, labels, crowd, area))
        near = np.repeat(boxes, 2, 0) + 4 * rs.random_sample((2 * number, 1)) * rs.standard_normal((2 * number, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        far = random_boxes(rs, 120 if n == 1 else rs.randint(0, 6), 150)
        both = np.concatenate([near, far])
        own = np.where(rs.random_sample(2 * number) < 0.8, np.repeat(labels, 2), rs.randint(0, num_classes, 2 * number))
        guessed = np.concatenate([own, rs.randint(0, num_classes, len(far))])
        scores = rs.random_sample(len(both))
        scores = scores.round(1) if kind == "ties" else scores
        keep = slice(0, 0) if kind == "nothing predicted" else slice(None)
        detections.append(
            Detections(torch.tensor(both[keep]), torch.tensor(scores[keep]), torch.tensor(guessed[keep]).long())
        )
    return detections, truths


def figures(metric: DetectionMetric) -> dict[str, float]:
    """What the metric computes, without the thresholds."""
    return {name: float(value) for name, value in metric.compute().items() if not name.startswith("threshold/")}


def official(detections: list[Detections], truths: list[Truth], num_classes: int = 4) -> dict[str, float]:
    """The figures of pycocotools."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    listed: list[dict[str, Any]] = []
    for n, one in enumerate(truths):
        for box, label, crowd, area in zip(one.boxes_xyxy.tolist(), one.labels, one.crowd, one.area, strict=True):
            row = {"id": len(listed) + 1, "image_id": n, "category_id": int(label), "iscrowd": int(crowd)}
            listed.append(row | {"bbox": [*box[:2], box[2] - box[0], box[3] - box[1]], "area": float(area)})
    results = [
        {"image_id": n, "category_id": k, "score": score, "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]]}
        for n, one in enumerate(detections)
        for box, score, k in zip(one.boxes_xyxy.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO()
        categories = [{"id": k, "name": str(k)} for k in range(num_classes)]
        images = [{"id": n} for n in range(len(truths))]
        data.dataset = {"info": {}, "images": images, "annotations": listed, "categories": categories}
        data.createIndex()
        if not results:
            return dict.fromkeys(("map", "map50", "map75", "mar100"), 0.0)
        run = evaluation.COCOeval(data, data.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "", "", "mar100")
    values = {name: value for name, value in zip(names, run.stats.tolist(), strict=False) if name and value >= 0}
    for k in range(num_classes):
        for name, part in (("map", slice(None)), ("map50", slice(0, 1))):
            precision = run.eval["precision"][part, :, k, 0, 2]
            if (precision > -1).any():
                values[f"{name}/c{k}"] = float(precision[precision > -1].mean())
    return values


@pytest.mark.parametrize("seed", range(24))
def test_equals_pycocotools(seed: int) -> None:
    detections, truths = case(seed)
    metric = DetectionMetric([f"c{k}" for k in range(4)])
    for n in range(0, len(truths), 5):
        part = slice(n, n + 5)
        metric.update(detections[part], truths[part], [f"{k}" for k in range(len(truths))][part])
    values = figures(metric)
    expected = official(detections, truths)
    if KINDS[seed % len(KINDS)] == "nothing predicted":
        assert set(values.values()) == {0.0}
        return
    assert values == pytest.approx(expected, abs=1e-12)
    assert values.keys() == expected.keys()


def test_perfect_and_empty() -> None:
    boxes = [[0, 0, 10, 10], [20, 20, 60, 70]]
    right = found(np.array(boxes, float), [0.9, 0.8], [0, 1])
    none = found(np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    metric = DetectionMetric(["a", "b", "c"])
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert set(figures(metric).values()) == {0.0}
    metric.reset()
    metric.update([right, none], [truth(boxes, [0, 1]), truth([], [])], ["x", "y"])
    values = figures(metric)
    assert set(values.values()) == {1.0}
    assert {"map/a", "map50/b", "map_small", "map_medium"} <= set(values)
    assert not {"map/c", "map_large"} & set(values), "neither true boxes of the class nor large ones"
    metric.update([none], [truth(boxes, [0, 1], [True, True])], ["z"])
    assert float(metric.compute()["map"]) == 1.0, "crowds need not be found"
    only = DetectionMetric(["a", "b"])
    only.update([right], [truth(boxes, [0, 0], [True, True])], ["z"])
    assert float(only.compute()["map"]) == 0.0, "nothing but crowds"


@pytest.mark.parametrize("seed", [0, 5])
def test_processes_and_order_do_not_matter(seed: int) -> None:
    """The rows of two processes, gathered, give the figures of one, ties included."""
    detections, truths = case(seed)
    ids = [f"image {n}" for n in range(len(truths))]
    whole, other = (DetectionMetric([f"c{k}" for k in range(4)]) for _ in range(2))
    whole.update(detections, truths, ids)
    parts = []
    for order in (range(1, len(ids), 2), range(0, len(ids), 2)):
        rank = DetectionMetric(whole.names)
        rank.update(*([given[n] for n in order] for given in (detections, truths, ids)))
        parts.append(torch.cat(rank.rows))
    other.rows = torch.cat([torch.tensor([], dtype=torch.float64), *parts])  # type: ignore[assignment]
    other._update_count = 1
    assert {k: float(v) for k, v in whole.compute().items()} == {k: float(v) for k, v in other.compute().items()}


def _gathered(rank: int, store: str, results: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    detections, truths = case(0)
    metric = DetectionMetric([f"c{k}" for k in range(4)]).to("cpu")
    if rank == 0:
        metric.update(detections, truths, [str(n) for n in range(len(truths))])
    results[rank] = figures(metric)
    dist.destroy_process_group()


@pytest.mark.slow
def test_process_without_images(tmp_path: Path) -> None:
    multiprocessing = torch.multiprocessing.get_context("spawn")
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_gathered, (str(tmp_path / "store"), results), nprocs=2)
        assert results[0] == results[1] == pytest.approx(official(*case(0)), abs=1e-12)


def test_half_precision_of_the_model() -> None:
    detections, truths = case(0)
    metric = DetectionMetric([f"c{k}" for k in range(4)]).half()
    half = [Detections(one.boxes_xyxy.half(), one.scores.half(), one.labels) for one in detections]
    metric.update(half, truths, [str(n) for n in range(len(truths))])
    assert metric.rows[0].dtype == torch.float64
    assert float(metric.compute()["map"]) == pytest.approx(official(detections, truths)["map"], abs=0.05)


def test_match() -> None:
    true = truth([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 100, 100]], [0, 0, 1], [False, False, True])
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [60, 60, 70, 70], [60, 60, 70, 70], [0, 0, 10, 10]]
    one = found(np.array(boxes, float), [0.5, 0.9, 0.1, 0.2, 0.8], [0, 0, 1, 0, 1])
    matched, ignored = match(one, true)
    assert matched.tolist() == [1, 0, -1, -1, -1], "the best score takes the best box"
    assert ignored.tolist() == [False, False, True, False, False], "within a crowd of its class"
    assert match(one, truth([], []))[0].tolist() == [-1] * 5


def f1_of(cut: float, k: int, detections: list[Detections], truths: list[Truth]) -> float:
    hits = kept = number = 0
    for one, true in zip(detections, truths, strict=True):
        own = (one.labels == k) & (one.scores >= cut)
        part = Detections(one.boxes_xyxy[own], one.scores[own], one.labels[own])
        matched, ignored = match(part, true)
        hits, kept = hits + int((matched >= 0).sum()), kept + int((~ignored).sum())
        number += int(((true.labels == k) & ~true.crowd).sum())
    return 2 * hits / max(kept + number, 1)


@pytest.mark.parametrize("seed", [0, 4, 5])
def test_thresholds_are_the_best(seed: int) -> None:
    detections, truths = case(seed)
    chosen = best_thresholds(detections, truths, 4, few=0)
    cuts = sorted({score for one in detections for score in one.scores.tolist()})
    for k in range(3):
        best = max(f1_of(cut, k, detections, truths) for cut in cuts)
        assert f1_of(chosen[k], k, detections, truths) == pytest.approx(best, abs=1e-12)
    assert chosen[3] == 0.5, "a class without true boxes"
    none = found(np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    assert best_thresholds([none], [truth([[0, 0, 1, 1]], [0])], 2, few=0) == [0.5, 0.5]
    right = found(np.array([[0.0, 0, 10, 10]]), [0.3], [0])
    assert best_thresholds([right], [truth([[0, 0, 10, 10]], [0])], 1, few=0) == pytest.approx([0.15]), (
        "halfway to zero"
    )


def test_classes_of_few_boxes_share_a_threshold() -> None:
    detections, truths = case(0)
    counts = [sum(int(((t.labels == k) & ~t.crowd).sum()) for t in truths) for k in range(4)]
    few = sorted(counts)[2]  # two classes have fewer, the one without any boxes among them
    apart, joint = (best_thresholds(detections, truths, 4, few=n) for n in (0, few))
    assert len({joint[k] for k in range(4) if counts[k] < few}) == 1
    assert [joint[k] for k in range(4) if counts[k] >= few] == [apart[k] for k in range(4) if counts[k] >= few]
    assert joint[3] != apart[3] == 0.5


def test_boxes_are_converted_back_and_overlap() -> None:
    boxes = torch.tensor(random_boxes(np.random.RandomState(0), 20, 50))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    torchvision = pytest.importorskip("torchvision")
    torch.testing.assert_close(box_iou(boxes, boxes[:7]), torchvision.ops.box_iou(boxes, boxes[:7]))
    assert float(box_iou(boxes[:1] * 0, boxes[:1] * 0)) == 0
