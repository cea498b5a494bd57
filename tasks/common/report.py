"""`report.html` of a run: one file without links that says what was trained on what, how good it is, and where it errs.

It has a header and a part each for the training, the validation and the test. A command renders its own part anew and
keeps the others. All of it works for every task: what a task knows of its items is asked of its predictor
(`mmattn.tasks.common.review`), its confusion matrix of its metric.
"""

from __future__ import annotations

import datetime
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from mmattn.data.errors import UserError
from mmattn.data.image.processor import load_image
from mmattn.tasks.common import page
from mmattn.tasks.common.chance import Chance
from mmattn.tasks.common.files import atomic_write
from mmattn.tasks.common.outputs import Outputs, save_png
from mmattn.tasks.common.page import Markup, number, table
from mmattn.tasks.common.review import Review, by_kind, review
from mmattn.tasks.common.rundir import METRICS, REPORT, RUN, column, logged, read_json, versions
from mmattn.tasks.common.serving.examples import write_examples
from mmattn.tasks.common.summary import by_frequency, measure
from mmattn.tasks.common.task import tasks

SPLITS = {"validation": "val", "test": "test"}  # by the name of a part
PARTS = ("validation", "test", "training")
OURS = "<!--mmattn report-->"
CLASSES = 30  # in tables and matrices of a report
OPENED = 200  # items of a split whose files are opened for a summary
MISTAKES, EXAMPLES = 12, 4
TEXT = 300  # characters of an item's text
SECONDS = (2.0, 20.0)  # least and most time for predicting items again
SHARE = 0.1  # of the time that training took, within these bounds
BYTES = 1_200_000  # of a part's pictures
WIDTH, ICON = 1100, 128  # pixels of pictures


@dataclass
class Evaluation:
    """What was measured on a split."""

    part: str  # "validation" or "test"
    main: str  # name of the main metric
    figures: Mapping[str, Any]
    confusion: Tensor | None
    labels: Sequence[str]
    items: Sequence[Any]  # samples with their truth; empty: none is predicted again
    data: str  # where they are from
    lower_is_better: bool = False  # of the main metric
    chance: Chance | None = None  # of the main metric


def write(root: Path, trainer: Any, part: str, checkpoint: Any, figures: Mapping[str, Any], confusion: Any) -> None:
    """Write or refresh the report of a run; a failure is a line on stderr, since the results are more than the report.

    Args:
        root: The run directory.
        trainer: The Lightning Trainer, with its module and its data.
        part: "validation", at the end of `fit` and of `validate`, or "test".
        checkpoint: The model that was measured.
        figures: What was measured.
        confusion: The confusion matrix (K, K), if the task has one.
    """
    module, data = trainer.lightning_module, trainer.datamodule
    if not module.training_options.report:
        return
    print(f"Writing the report, {root / REPORT}: predictions of some items and their explanations ...", flush=True)
    try:
        items = [] if data.ablate is not None or not figures else data.dataset(SPLITS[part]).originals()
        chance = module.chance_level if part == "validation" else None
        labels = getattr(data.processor, "labels", None) or []
        main = module.monitor.split("/")[1]
        source = data.fingerprint()[SPLITS[part]]
        where = f"{source['samples']:,} items, {source['path']}; model {checkpoint}"
        found = Evaluation(part, main, figures, confusion, labels, items, where, module.mode == "min", chance)
        device = trainer.strategy.root_device
        predictor = (
            tasks()[module.task]
            .resolve("predictor")
            .load(checkpoint, str(device) if device.type in ("cpu", "cuda") else "cpu")
        )
        metrics = read_json(root / METRICS)
        share = SHARE * float(metrics.get("fit", {}).get("seconds", 60.0))
        shown = Renderer(predictor, min(max(share, SECONDS[0]), SECONDS[1]))
        parts = {part: shown.evaluation(found)}
        fitted = trainer.state.fn == "fit"
        if fitted:
            parts["training"] = training(root, data, module.monitor, metrics.get("fit", {}))
            write_examples(root, predictor, items)
        save(root, module.task, parts, checkpoint, data.fingerprint())
        if "confusion" in shown.pictures and not fitted:
            path = Outputs(()).claim(root / f"confusion_{SPLITS[part]}.png")
            save_png(path, shown.pictures["confusion"].save)
        log_pictures(trainer.loggers, {f"{SPLITS[part]}/{k}": v for k, v in shown.pictures.items()}, module.global_step)
        print(f"The report is {root / REPORT}.")
    except Exception as error:
        reason = short(" ".join(f"{type(error).__name__}: {error}".split()).removesuffix("."))
        sys.stderr.write(f"{root / REPORT} was not written: {reason}. The results are not affected.\n")


def save(root: Path, task: str, parts: Mapping[str, str], checkpoint: Any, data: Mapping[str, Any]) -> None:
    """Write the report, with new parts in place of those of the same name.

    Raises:
        UserError: The file exists and is not a report.
    """
    path = root / REPORT
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else OURS
    if OURS not in text:
        raise UserError(f"{path}: exists, and was not written by mmattn; rename it.")
    found = dict(re.findall(r"<!--part (\w+)-->\n(.*?)\n<!--/part-->", text, re.DOTALL)) | dict(parts)
    body = [OURS, header(root, task, checkpoint, data)]
    body += [f"<!--part {name}-->\n{found[name]}\n<!--/part-->" for name in PARTS if name in found]
    text = page.page(f"{task}: {root.resolve().name}", "\n".join(body))
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "replace"))  # names of files may be no Unicode


def header(root: Path, task: str, checkpoint: Any, data: Mapping[str, Any]) -> str:
    """Title, and a table of what was run on what; of the run, if `root` is one's directory."""
    run = read_json(root / RUN)
    metrics = read_json(root / METRICS)
    fit, now = metrics.get("fit", {}), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = [("task", task), ("model", str(checkpoint) if not run else str(root / "model"))]
    for split, one in ({**data, **run.get("data", {})}).items():
        rows.append((f"data, {split}", f"{one['path']}: {one['samples']:,} items, SHA-256 {one['sha256'][:16]}..."))
    rows += [("parameters", f"{fit['parameters']:,}")] if "parameters" in fit else []
    if "steps" in fit:
        rows.append(("trained", f"{fit['epochs']} epochs, {fit['steps']:,} steps, {fit['seconds']:,.0f} s"))
    rows += [("machine", run["machine"])] if "machine" in run else []
    rows += [("seed", str(run["seed"]))] if "seed" in run else []
    rows += [("begun", run["started"])] if "started" in run else []
    rows += [("this report", now)]
    rows.append(("versions", ", ".join(f"{name} {v}" for name, v in run.get("versions", versions()).items())))
    command = f"<pre>{escape(run['command'])}</pre>" if run.get("command") else ""
    title = f"<h1>{escape(tasks()[task].title.split(':')[0])}</h1><p class='note'>{escape(str(root))}</p>"
    return f"{title}\n{table(rows)}\n{command}"


# Training -------------------------------------------------------------------------------------------------------------


def training(root: Path, data: Any, monitor: str, fit: Mapping[str, Any]) -> str:
    """Curves, a summary of the data, and what `metrics.json` says of the training."""
    parts = ["<h2>Training</h2>"]
    rows = logged(root)
    curves = {name: column(rows, name) for name in dict.fromkeys(key for row in rows for key in row)}
    losses = {name: points for name, points in curves.items() if name in ("train/loss", "val/loss") and points}
    others = [name for name in curves if name.startswith("val/") and name not in (monitor, "val/loss")]
    parts += [page.chart({monitor: curves.get(monitor, [])}, monitor), page.chart(losses, "loss")]
    parts.append(page.chart({"lr": curves.get("lr", [])}, "learning rate"))
    if others:
        more = "".join(page.chart({name: curves[name]}, name) for name in others[:CLASSES])
        parts.append(f"<details><summary>Other curves</summary>{more}</details>")
    if not rows:
        parts.append('<p class="note">No curves: the run logged to no CSV file.</p>')
    parts += ["<h2>Data</h2>", summary(data), "<h3>All figures of the training</h3>", table(fit.items())]
    return "\n".join(filter(None, parts))


def summary(data: Any) -> str:
    """For each split the number of items, the range of what can be measured, and how often each name occurs."""
    splits = [split for split in ("train", "val", "test") if split in data.contents()]
    sets = [data.dataset(split) for split in splits]
    samples = [dataset.originals() for dataset in sets]
    found, opened = zip(*(measure(one, some, OPENED) for one, some in zip(sets, samples, strict=True)), strict=True)
    extra = ", ".join(dict.fromkeys(key for keys in opened for key in keys))
    note = f'<p class="note">{escape(extra)}: of at most {OPENED} items.</p>' if extra else ""
    rows: list[tuple[Any, ...]] = [("items", *map(len, samples)), ("left out", *(len(one.skipped) for one in sets))]
    for key in dict.fromkeys(key for one in found for key in one.numbers):
        rows.append((f"{key}: min / median / max", *(one.spread(key) for one in found)))
    parts = [table(rows, ("", *splits)), note]
    for key in dict.fromkeys(key for one in found for key in one.names):
        counters = [one.names.get(key, Counter()) for one in found]
        names = by_frequency(counters)
        shown = [(name, *(counter[name] for counter in counters)) for name in names[:CLASSES]]
        parts += [f"<h3>{escape(key.capitalize())}</h3>", table(shown, ("", *splits))]
        if len(names) > CLASSES:
            parts.append(f'<p class="note">The {CLASSES} most frequent of {len(names):,}.</p>')
    return "\n".join(filter(None, parts))


# Evaluation -----------------------------------------------------------------------------------------------------------


class Renderer:
    """Renders a part of the report about an evaluation; `pictures` then has its pictures, by name.

    Args:
        predictor: The model that was measured.
        seconds: Time for predicting items again, and for explaining them.
    """

    def __init__(self, predictor: Any, seconds: float) -> None:
        self.predictor, self.seconds = predictor, seconds
        self.pictures: dict[str, Any] = {}

    def evaluation(self, found: Evaluation) -> str:
        """The part, as HTML."""
        rows = review(self.predictor, found.items, self.seconds) if found.items else []
        parts = [f"<h2>{escape(found.part.capitalize())}</h2>", headline(found)]
        if found.confusion is not None and len(found.labels) == len(found.confusion):
            parts += [self.confusion(found), per_class(found)]
        else:
            parts.append(groups(found))
        parts += [self.kinds(rows), self.mistakes(rows, len(found.items)), self.examples(rows, found.items)]
        plain = {name: value for name, value in found.figures.items() if not isinstance(value, Mapping)}
        parts.append(f"<details><summary>All figures</summary>{table(plain.items())}</details>")
        return "\n".join(filter(None, parts))

    def confusion(self, found: Evaluation) -> str:
        """The confusion matrix, or of many classes the pairs that are confused most."""
        from mmattn.plot import heat_map

        assert found.confusion is not None
        matrix, labels, few = found.confusion, found.labels, len(found.labels) <= CLASSES
        if few:
            with tempfile.TemporaryDirectory() as folder:
                shares = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
                cells = matrix if int(matrix.max()) < 10_000 else (100 * shares).round().long()
                names = ("true class", "predicted", "share of the true class")
                path = Path(folder, "confusion.png")
                heat_map(
                    shares,
                    labels,
                    labels,
                    path,
                    row_name=names[0],
                    col_name=names[1],
                    value_name=names[2],
                    numbers=cells,
                )
                self.pictures["confusion"] = opened(path)
            return f"<h3>Confusion</h3>{page.matrix(matrix.tolist(), labels)}"
        wrong = matrix.clone().fill_diagonal_(0)
        values, places = wrong.flatten().topk(CLASSES // 2)
        pairs = zip(values.tolist(), places.tolist(), strict=True)
        size = len(labels)
        rows = [(labels[place // size], labels[place % size], value) for value, place in pairs if value]
        return f"<h3>Most frequent confusions</h3>{table(rows, ('true', 'predicted', 'items'))}"

    def kinds(self, rows: Sequence[Review]) -> str:
        """The mean grade of each kind of item."""
        found = list(by_kind(rows))
        if not found:
            return ""
        note = f'<p class="note">Of the {len(rows)} items that were predicted again.</p>'
        return f"<h3>By kind</h3>{table(found, ('kind', 'items', self.predictor.graded_by))}{note}"

    def mistakes(self, rows: Sequence[Review], total: int) -> str:
        """The items with the lowest grades."""
        if not rows:
            return ""
        wrong = [row for row in rows if row.grade < 1.0]
        which = f"Of {len(rows)} of the {total:,} items" if len(rows) < total else f"Of the {total:,} items"
        text = f"{which}, {len(wrong):,} were not entirely right{'; the worst come first' if wrong else ''}."
        shown = [self.described(row) for row in wrong[:MISTAKES]]
        kept = [name for name in shown[0] if any(cells[name] not in ("", None) for cells in shown)] if shown else []
        cells = table([[cells[name] for name in kept] for cells in shown], kept) if shown else ""
        return f'<h3>Worst mistakes</h3><p class="note">{text}</p>{cells}'

    def described(self, row: Review) -> dict[str, Any]:
        """The cells of a row of the worst mistakes, by the column's name; empty: not known."""
        text = escape(short(self.predictor.text(row.item)))
        name = Markup(f"{escape(str(row.item.id))}{f'<br><small>{text}</small>' if text else ''}")
        cells: dict[str, Any] = {
            "": icon(row.item),
            "item": name,
            "true": short(row.true),
            "predicted": short(row.predicted),
        }
        cells |= {self.predictor.graded_by: row.grade if row.grade else "", "log-probability": "", "confidence": ""}
        if row.score is not None:
            cells["confidence" if 0 <= row.score <= 1 else "log-probability"] = float(row.score)
        return cells

    def examples(self, rows: Sequence[Review], items: Sequence[Any]) -> str:
        """Explanations of the worst and the best items."""
        best = [row.item for row in rows[::-1]]
        chosen = [row.item for row in rows[: EXAMPLES // 2]] + best[: EXAMPLES - EXAMPLES // 2] if rows else items
        named = {item.id: item for item in chosen[:EXAMPLES]}
        parts: list[str] = []
        problem, end = "", time.monotonic() + self.seconds
        with tempfile.TemporaryDirectory() as folder:
            for place, (name, item) in enumerate(named.items()):
                path = Path(folder, f"{place}.png")
                try:
                    self.predictor.explain(item).save(path)
                except Exception as error:  # such as of a model without attention; the other parts are shown anyway
                    problem = f'<p class="note">Not all were explained: {escape(str(error))}</p>'
                    continue
                self.pictures[f"example_{place}"] = opened(path)
                shown = page.picture(self.pictures[f"example_{place}"], WIDTH, f"explanation of {name}")
                if sum(map(len, parts)) + len(shown) < BYTES:
                    parts.append(f"<figure>{shown}</figure>")
                if place and time.monotonic() > end:
                    break
        if not parts and not problem:
            return ""
        return f"<h3>Examples with explanations</h3>{problem}{''.join(parts)}"


def headline(found: Evaluation) -> str:
    """The main figure, and what it would be by chance."""
    value = found.figures.get(found.main)
    if value is None:
        return "<p>Nothing was measured.</p>"
    name = escape(found.main) + (" (lower is better)" if found.lower_is_better else "")
    text = f'<p><span class="big">{escape(number(value))}</span> {name}</p><p class="note">{escape(found.data)}</p>'
    if found.chance is not None:
        by, level = escape(found.chance.by), escape(number(found.chance.value))
        text += f'<p class="note">By chance, by {by}, it would be {level}.</p>'
    return text


def groups(found: Evaluation) -> str:
    """Figures of groups of items, "accuracy/color"."""
    rows = [(*name.split("/", 1), value) for name, value in found.figures.items() if "/" in name]
    return f"<h3>By group</h3>{table([(b, a, v) for a, b, v in rows], ('group', 'metric', 'value'))}" if rows else ""


def per_class(found: Evaluation) -> str:
    """Counts, precision, recall and F1 or IoU of each class."""
    assert found.confusion is not None
    matrix = found.confusion.double()
    hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    overlap = any(name.startswith("iou/") for name in found.figures)
    values = [hits / predicted.clamp_min(1), hits / true.clamp_min(1)]
    values.append(
        hits / (true + predicted - hits).clamp_min(1) if overlap else 2 * hits / (true + predicted).clamp_min(1)
    )
    rows = zip(found.labels, true.long().tolist(), *(value.tolist() for value in values), strict=True)
    ranked = sorted(rows, key=lambda row: row[-1])
    more = f'<p class="note">The {CLASSES} lowest of {len(ranked)}.</p>' if len(ranked) > CLASSES else ""
    head = ("class", "pixels" if overlap else "items", "precision", "recall", "IoU" if overlap else "F1")
    return f"<h3>Classes</h3>{table(ranked[:CLASSES], head)}{more}"


def icon(item: Any) -> Markup | str:
    """A small picture of an item's image, if it has one."""
    image = getattr(item, "image", None)
    if image is None:
        return ""
    with suppress(UserError):
        small = load_image(image)
        small.thumbnail((ICON, ICON))
        return page.picture(small, ICON, str(item.id), "item")
    return ""


def short(text: str) -> str:
    """A text of at most `TEXT` characters."""
    return text if len(text) <= TEXT else f"{text[: TEXT - 3]}..."


def opened(path: Path) -> Any:
    """A PIL image that needs its file no longer."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def log_pictures(loggers: Sequence[Any], pictures: Mapping[str, Any], step: int) -> None:
    """Log pictures (PIL images) to the loggers that take any: TensorBoard, Weights & Biases, MLflow."""
    import numpy as np

    for logger in loggers:
        kind = type(logger).__name__
        for name, image in pictures.items():
            if kind == "TensorBoardLogger":
                logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
            elif kind == "WandbLogger":
                logger.log_image(name, [image], step)
            elif kind == "MLFlowLogger":
                logger.experiment.log_image(logger.run_id, image, f"{name}.png")
        if kind == "TensorBoardLogger":
            logger.experiment.flush()
