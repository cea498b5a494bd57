"""What a model knows: its data, licence and figures, in its README and in one line for users. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmattn.tasks.common.task import tasks

BUILT_IN = {"data": "the built-in data", "licence": "Apache-2.0"}  # of models whose config.json has no `about`


def about_of(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Data and licence of a model; empty if its user trained it and stated neither."""
    given: Mapping[str, str] = config.get("about") or ({} if config.get("own_data") else BUILT_IN)
    return given


def summary(config: Mapping[str, Any]) -> str:
    """What a shipped model knows, for the end of a sentence: "knows the built-in data alone (accuracy 0.971, ...)"."""
    about, metric = about_of(config), tasks()[config["task"]].metric
    measured = config.get("metrics", {}).items()
    facts = [f"{metric} {values[metric]:.3f}, {split}" for split, values in measured if metric in values][:1]
    if about is BUILT_IN:
        known = "knows the built-in data alone"
    else:
        known, facts = f"was trained on {about['data']}", [about["licence"], *facts]
    return f"{known} ({'; '.join(facts)})" if facts else known


def card(
    config: Mapping[str, Any], parameters: int, *, name: str = "FOLDER", command: str = "", half: bool = False
) -> str:
    """The README of a model.

    Args:
        config: The content of its config.json.
        parameters: Number of parameters.
        name: How users load it.
        command: The training command.
        half: Whether the weights are stored in float16.
    """
    task, about = config["task"], about_of(config)
    rows = [
        f"| {split} | {metric} | {value:.4f} |"
        for split, figures in config["metrics"].items()
        for metric, value in figures.items()
        if isinstance(value, float)
    ]
    table = "\n".join(["| split | metric | value |", "|---|---|---|", *rows]) if rows else "Not measured yet."
    data = f" Trained on {about['data']}{' alone' if about is BUILT_IN else ''}." if about else ""
    if config.get("refit"):
        table += (
            f"\n\nThe figures are those of a model that had not seen the samples of the validation. This one "
            f"was trained afterwards, on all {config['refit']['samples']:,} samples."
        )
    precision = "float16 on disk, float32 in memory" if half else "float32"
    base = config["base"]["name"] if config.get("base") else None
    precision += f"; this folder has their difference from the public weights {base}" if base else ""
    return (
        f"# {task}\n\nA model of the task `{task}`, {parameters:,} parameters ({precision}).{data}\n\n{table}\n\n"
        + (f"Made by:\n\n    {command}\n\n" if command else "")
        + f"Use it:\n\n    from mmattn import load\n    predictor = load('{name}')\n\n"
        f"or `mmattn {task} predict --checkpoint {name}`." + (f" Licence: {about['licence']}." if about else "") + "\n"
    )
