"""Public image-to-text networks, with their image processor, tokenizer and generation options."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from mmattn.backbones.image_text import ImageToText
from mmattn.data.image.processor import ImageProcessor
from mmattn.data.image.public import PREPROCESSING, WHOLE, read_image_processor
from mmattn.data.text.pretrained import LAYOUTS, PublicText, read_public
from mmattn.data.text.public_files import OPTIONAL
from mmattn.pretrained.generation import load_generation_config
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.finetune import init_missing, read_network
from mmattn.tasks.common.seq2seq.adapters import as_json
from mmattn.tasks.common.sources import Source

FILES = (*(name for kind in ("tokenizer.json", "bert", "bpe") for name in LAYOUTS[kind]), *OPTIONAL)
POSITIONS = "net.image.positions"  # of a task's model whose network is `net`


class PublicImageText(NamedTuple):
    """A public network that writes text about images."""

    keywords: dict[str, Any]  # of `ImageToText`
    state: dict[str, Tensor]  # of a model whose `ImageToText` is `net`
    image: ImageProcessor
    reader: PublicText  # tokenizer of the questions that it reads
    writer: PublicText  # tokenizer of the texts that it writes
    generation: dict[str, Any]  # fields of `GenerationConfig`


def read_inputs(source: Source) -> ImageProcessor:
    """Read the image processor of a public model, after its tokenizer's files are fetched.

    Raises:
        CheckpointError: There is none.
    """
    for name in FILES:
        source.fetch(name)
    if source.fetch(PREPROCESSING) is None and source.fetch(WHOLE) is None:
        raise CheckpointError(
            f"{source.name}: expected {PREPROCESSING}, which states the size and normalization of the images; found "
            "no such file."
        )
    return read_image_processor(source.folder)


def read_image_text(source: Source, names: str) -> PublicImageText:
    """Read a network of the class `ImageToText`.

    Args:
        source: The location of the checkpoint.
        names: Names of the expected public models, for error messages.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete, or of another network.
    """
    image = read_inputs(source)
    converted = read_network(source, ImageToText, names)
    channels = converted.keywords["image"].get("in_channels", 3)
    if channels != 3:
        raise CheckpointError(f"{source.name}: expected a model of color images, found {channels} channels.")
    try:
        generation = load_generation_config(**source.place)
        generation.check_ids(converted.keywords["vocab_size"])
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source.name}: {error}.") from None
    longest = int(converted.keywords.get("max_len", 512))
    special = {"pad_id": generation.pad, "start_id": generation.start}
    special |= {"eos_id": generation.eos[0]} if generation.eos else {}
    reader, _ = read_public(source.folder, max_len=longest)
    # BLIP's texts begin with a token of their own, in place of the one that its tokenizer puts before questions.
    replaced = generation.start not in reader.prefix_ids
    writer, _ = read_public(source.folder, max_len=longest, special=special, bare=replaced)
    rows = converted.keywords["vocab_size"]
    if writer.rows > rows:
        raise CheckpointError(f"{source.name}: expected a tokenizer of at most {rows} tokens, found {writer.rows}.")
    state = {f"net.{name}": tensor for name, tensor in converted.state.items()}
    return PublicImageText(dict(converted.keywords), state, image, reader, writer, as_json(generation))


def with_image_size(parts: CheckpointParts, size: tuple[int, int]) -> CheckpointParts:
    """The parts for images of another size, to which the learned positions are interpolated.

    Args:
        parts: The parts of a model whose `ImageToText` is `net`.
        size: Height and width.

    Raises:
        ConfigError: The images are smaller than a patch.
    """
    image = dict(parts.keywords["image"])
    patch = image.get("patch_size", 16)
    if min(size) < patch:
        raise ConfigError(f"data.image_size: expected at least {patch}, the side of a patch; found {min(size)}.")
    return init_missing(parts, {"image": image | {"image_size": tuple(size)}}, 0, (), (POSITIONS,))  # no layer is new
