"""What a model is loaded, measured or fine-tuned from: a folder of ours, or one as the Hugging Face hub lays them out.

A source is the `model/` folder of a run (or the run's), a folder with a public model's files, or "hf:owner/name", if
wanted with "@revision", a repository of the hub, of which the files that are read are fetched once and kept.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.common.attention_config import check_attention
from tasks.common.checkpoint import CONFIG, PROCESSOR, WEIGHTS, read_config, read_weights
from tasks.common.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMM = "timm"  # in the place of a model_type: timm's config.json has an architecture
# model_type of a public config.json: the tasks that take such models, first the one that `tasks.load` gives them to.
FAMILIES: dict[str, tuple[str, ...]] = {
    "marian": ("translation",),
    "bart": ("summarization", "translation"),
    "t5": ("summarization", "translation"),
    "segformer": ("segmentation",),
    "vit": ("classification",),
    "deit": ("classification",),
    "dinov2": ("classification",),
    "dinov2_with_registers": ("classification",),
    "siglip": ("classification",),
    "siglip_vision_model": ("classification",),
    TIMM: ("classification", "segmentation"),
    "whisper": ("asr",),
    "wav2vec2": ("asr",),
    "hubert": ("asr",),
}
# Who reads a task's public models, by `read_public`; the tasks that are not here write text.
READERS = {task: f"tasks.{task}.pretrained" for task in ("classification", "segmentation", "asr")}
PUBLIC = "public"  # the one key of a model's keywords where a public network stands in the place of the task's own
NETWORK = "network"  # among its keywords: which; where none is named, one that reads a text and writes another
# Where they are, as PublicModel, and `own_names`, which calls their keywords as the task's own model does.
NETWORKS = {
    None: "tasks.common.public_text",
    "whisper": "tasks.asr.public_whisper",
    "wav2vec2": "tasks.asr.public_ctc",
}
FREE = ("dropout", "attention", "decoder_attention", "cross_attention")  # keywords that change no weight


@dataclass(frozen=True)
class Source:
    """A place where a model was found."""

    name: str  # as it was given
    folder: Path  # where its files lie; of a repository of the hub, those that have been fetched
    config: Mapping[str, Any]  # config.json
    hub: str | None = None  # the repository's name
    revision: str | None = None

    @property
    def family(self) -> str | None:
        """A public model's family; None: one of ours."""
        return None if "format" in self.config else self.config.get("model_type", TIMM)

    @property
    def place(self) -> dict[str, Any]:
        """Where it is, as `mmattn.pretrained` wants to be told."""
        return {"source": self.hub or self.folder, "download": self.hub is not None, "revision": self.revision}

    def fetch(self, name: str) -> Path | None:
        """A file by name; None where there is none."""
        from mmattn.pretrained.files import open_source

        return open_source(**self.place)(name)


@dataclass(frozen=True)
class Parts:
    """A model in its parts, not yet built."""

    where: str | Path  # for messages and records
    keywords: dict[str, Any]  # of the task's model; or PUBLIC and those of a public network
    state: Mapping[str, Tensor]
    processor: Any
    own_data: bool = True  # trained on data that the built-in ones are no measure of
    headless: bool = False  # without the task's own last layers: something to go on from, and no finished model
    free: tuple[str, ...] = FREE  # keywords that a configuration may change

    @property
    def known(self) -> dict[str, Any]:
        """The keywords as a task's own model would have them."""
        if PUBLIC not in self.keywords:
            return self.keywords
        module, keywords = public_network(self.keywords)
        found: dict[str, Any] = module.own_names(keywords)
        return found

    def changed(self, keywords: Mapping[str, Any]) -> Parts:
        """The same weights with other keywords, of those that are free.

        Raises:
            CheckpointError: one that decides the weights; named.
            ConfigError: a kind of attention that is not known.
        """
        for key, value in keywords.items():
            if key not in self.free or key not in self.keywords.get(PUBLIC, self.free):
                found = repr(self.known[key]) if key in self.known else "no such keyword"
                raise CheckpointError(
                    f"model.{key}: {self.where} has {found}, the configuration says {value!r}; the model goes on as "
                    "it was trained: leave the keyword out."
                )
        checked = {k: check_attention(v, f"model.{k}") if k.endswith("attention") else v for k, v in keywords.items()}
        whole = {PUBLIC: self.keywords[PUBLIC] | checked} if PUBLIC in self.keywords else self.keywords | checked
        return replace(self, keywords=whole)

    def finished(self) -> Parts:
        """Itself, where it can be asked or measured.

        Raises:
            CheckpointError: it is headless.
        """
        if self.headless:
            raise CheckpointError(
                f"{self.where}: expected a finished model, found a backbone without the last layers of the task; "
                f"train them: fit --model.init_from {self.where}."
            )
        return self


def find_model(name: str | Path) -> Source:
    """Where a model lies, and its config.json.

    Args:
        name: a source, see above.

    Raises:
        CheckpointError: there is none, or of a kind that nothing here reads.
    """
    source = _on_hub(str(name)) if str(name).startswith("hf:") else _in_folder(name)
    if source.family is not None and source.family not in FAMILIES:
        raise CheckpointError(
            f"{name}: expected a model of mmattn, or a public one of {', '.join(FAMILIES)}; found one of "
            f"{source.family!r}."
        )
    return source


def _in_folder(name: str | Path) -> Source:
    folder = Path(name)
    if not (folder / CONFIG).exists() and (folder / "model" / CONFIG).exists():  # a run's
        folder = folder / "model"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None  # read_config says what is wrong
    if not _is_public(config):
        config = read_config(folder)
    return Source(str(name), folder, config)


def _on_hub(name: str) -> Source:
    found = re.fullmatch(r"hf:(\w[\w.-]*(?:/\w[\w.-]*)?)(?:@([\w./-]+))?", name)
    if found is None:
        raise CheckpointError(f"{name}: expected hf:owner/name, or hf:owner/name@revision.")
    from mmattn.pretrained.files import open_source, read_config

    try:
        find = open_source(found[1], download=True, revision=found[2])
        config = read_config(find, name)
        path = find(CONFIG)
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{name}: {error}; pip install huggingface_hub.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {str(error).splitlines()[0]}") from None
    assert path is not None
    if not _is_public(config):
        raise CheckpointError(f"{name}: expected a public model of {', '.join(FAMILIES)}; download others as a folder.")
    return Source(name, path.parent, config, found[1], found[2])


def _is_public(config: Any) -> bool:
    """Whether a config.json is one of transformers' or timm's."""
    if not isinstance(config, dict) or "format" in config:
        return False
    return isinstance(config.get("model_type", config.get("architecture")), str)


def task_of(name: str | Path) -> str:
    """The task that `tasks.load` gives a source to."""
    source = find_model(name)
    return source.config["task"] if source.family is None else FAMILIES[source.family][0]


def read_parts(task: str, name: str | Path, processor_class: Any, **options: Any) -> Parts:
    """A task's model and processor from a source.

    Args:
        task: that the model must be of, or fit.
        name: the source.
        processor_class: has `load`.
        options: what `tasks.common.public_text.read_public` takes; of a model of ours they may all be None.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another task.
    """
    source = find_model(name)
    if source.family is not None:
        if task not in FAMILIES[source.family]:
            tasks = " and ".join(FAMILIES[source.family])
            raise CheckpointError(f"{name}: expected a model for {task}, found one of {source.family}, for {tasks}.")
        reader = importlib.import_module(READERS.get(task, "tasks.common.public_text"))
        return reader.read_public(source, task, processor_class, **options)
    config = source.config
    if config["task"] != task:
        raise CheckpointError(f"{source.folder}: expected a model of {task}, found one of {config['task']}.")
    if options.get("prefix") is not None:
        raise CheckpointError(f"prefix: {source.folder} says itself what stands before a text; leave it out.")
    processor = processor_class.load(source.folder / PROCESSOR)
    state = read_weights(source.folder / WEIGHTS)
    return Parts(source.folder, config["model"], state, processor, bool(config.get("own_data")))


def build_model(model_class: type[nn.Module], keywords: Mapping[str, Any]) -> nn.Module:
    """The task's model from its keywords; or a public network in its place."""
    if PUBLIC not in keywords:
        return model_class(**keywords)
    module, public = public_network(keywords)
    found: nn.Module = module.PublicModel(**public)
    return found


def public_network(keywords: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The module of `NETWORKS` that has a public network, and the network's keywords.

    Raises:
        ValueError: one that this version has not.
    """
    public = dict(keywords[PUBLIC])
    name = public.pop(NETWORK, None)
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; there are: {', '.join(filter(None, NETWORKS))}")
    return importlib.import_module(NETWORKS[name]), public
