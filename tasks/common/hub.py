"""Models of this toolkit on the Hugging Face hub: `push` uploads one with its card; `load` reads it again."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import UserError
from mmattn.tasks.common.cards import about_of
from mmattn.tasks.common.checkpoint import CARD, MODEL_FILES, PROCESSOR, read_config
from mmattn.tasks.common.errors import CheckpointError

# The hub's names of the tasks, by which its pages are searched.
PIPELINES = {
    "asr": "automatic-speech-recognition",
    "captioning": "image-to-text",
    "classification": "image-classification",
    "detection": "object-detection",
    "qa": "question-answering",
    "segmentation": "image-segmentation",
    "summarization": "summarization",
    "text_classification": "text-classification",
    "text_generation": "text-generation",
    "translation": "translation",
    "video": "video-classification",
    "vqa": "visual-question-answering",
}
LICENCES = (  # the hub's identifiers
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0"),
)


def push(
    source: Any, target: str, *, private: bool | None = None, token: str | None = None, message: str | None = None
) -> str:
    """Upload a model with its card to a repository of the hub, which is created if there is none.

    The card states the data, the licence and the measured figures, for readers and for the hub's search.

    Args:
        source: The folder of a run or of its model, a named model such as "asr/fsdd", or a predictor.
        target: The repository, "hf:owner/name".
        private: Whether a new repository is private; None: as the owner's account says.
        token: Token of the hub; None: the one of `hf auth login`, or of the environment variable HF_TOKEN.
        message: Message of the commit.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: There is no model of this toolkit.
        UserError: The target is no repository's name, or the hub refuses it.
    """
    found = re.fullmatch(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)", target, re.ASCII)
    if found is None:
        raise UserError(f"push: expected a target hf:owner/name, found {target!r}.")
    with tempfile.TemporaryDirectory(prefix="mmattn-") as scratch:
        folder = Path(scratch, "model")
        if hasattr(source, "save"):
            source.save(folder)
        else:
            shutil.copytree(_folder_of(source), folder, ignore=lambda _, names: {n for n in names if n.startswith(".")})
        text = folder / CARD
        written = text.read_text(encoding="utf-8") if text.is_file() else ""
        text.write_text(hub_card(read_config(folder), written, target), encoding="utf-8")
        return _upload(folder, found[1], private, token, message or f"Upload a model of {read_config(folder)['task']}")


def _folder_of(source: str | Path) -> Path:
    """The folder of a model of this toolkit.

    Raises:
        CheckpointError: There is none, or a public one.
    """
    from mmattn.tasks.common.sources import find_model

    found = find_model(source)
    if found.family is not None:
        raise CheckpointError(
            f"push: expected a model of mmattn, found one of {found.family}, which is public already."
        )
    return found.folder


def _upload(folder: Path, name: str, private: bool | None, token: str | None, message: str) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message,
            allow_patterns=[*MODEL_FILES, CARD],
            delete_patterns=[f"{PROCESSOR}/*"],  # those of an earlier model
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"push: hf:{name}: the hub refused it, or cannot be reached: {reason}") from None
    return str(done.commit_url)


def hub_card(config: Mapping[str, Any], text: str, target: str) -> str:
    """The card of a model on the hub: its own, which names the repository, after a header for the hub's search.

    Args:
        config: The content of its config.json.
        text: The model's own card.
        target: "hf:owner/name".
    """
    task, about = config["task"], about_of(config)
    given = re.search(r"load\('([^']+)'\)", text)
    if given is not None:
        text = text.replace(f"load('{given[1]}')", f"load('{target}')")
        text = text.replace(f"--checkpoint {given[1]}", f"--checkpoint {target}")
    header: dict[str, Any] = {"library_name": "mmattn", "tags": ["mmattn", task]}
    if task in PIPELINES:
        header["pipeline_tag"] = PIPELINES[task]
    if "licence" in about:
        name = re.sub(r"[\s_]+", "-", about["licence"].strip().lower())
        header |= {"license": name} if name in LICENCES else {"license": "other", "license_name": about["licence"]}
    results = [
        {
            "task": {"type": PIPELINES.get(task, task)},
            "dataset": {"name": f"{about.get('data', 'own data')}, {split}", "type": "own"},
            "metrics": [
                {"type": metric, "value": round(value, 4)}
                for metric, value in figures.items()
                if isinstance(value, float)
            ],
        }
        for split, figures in config.get("metrics", {}).items()
    ]
    if results:
        header["model-index"] = [{"name": target.rpartition("/")[2], "results": results}]
    # YAML has JSON's syntax for values, so that no text of the card can end one.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()]
    return "---\n" + "\n".join(lines) + "\n---\n\n" + _without_header(text)


def _without_header(text: str) -> str:
    """A card without the header of an earlier `push`."""
    return re.sub(r"\A---\n.*?\n---\n\s*", "", text, flags=re.DOTALL)


def main(argv: Sequence[str]) -> None:
    """The command `mmattn push MODEL hf:owner/name`.

    Args:
        argv: Its words.
    """
    options = make_parser().parse_args(argv)
    address = push(options.source, options.target, private=options.private, message=options.message)
    print(f"{options.target}: {address}")


def make_parser() -> argparse.ArgumentParser:
    """The parser of `mmattn push`."""
    parser = argparse.ArgumentParser(prog="mmattn push", description="upload a model with its card to the hub")
    parser.add_argument("source", metavar="MODEL", help="a run or its model, or a named model such as asr/fsdd")
    parser.add_argument("target", metavar="hf:owner/name", help="the repository; it is created if there is none")
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is private")
    parser.add_argument("--message", help="message of the commit")
    return parser
