"""`export --format transformers`: a folder that transformers loads, where its classes compute what the model computes.

Supported are models that came from public weights of these families, whatever data they were fine-tuned on: Marian and
BART, Whisper, GPT-2, BERT with a head of sequences, tokens or answers, and ViT with a linear classifier.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmattn.data.errors import UserError
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.files import atomic_folder

Parts = tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes]]  # config.json, state dict, the other files
SUPPORTED = "Marian, BART, Whisper, GPT-2, BERT and ViT"


def export_transformers(predictor: Any, folder: str | Path) -> str:
    """Write a model in the format of transformers, and compare it with the model by reading it again.

    Args:
        predictor: The predictor.
        folder: The folder, which must not exist, or be empty.

    Returns:
        A line for the user.

    Raises:
        UserError: transformers has no class that computes the same, or the folder has other content.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: expected a new or empty folder for a model of transformers, found other content.")
    if predictor.parts is None or predictor.packed:
        raise UserError("export: expected a model as `load` returns it, without packed weights.")
    keywords = predictor.parts.keywords
    state = {name: tensor.detach().cpu().float() for name, tensor in predictor.model.state_dict().items()}
    try:
        config, tensors, files = _builder(predictor)(keywords, state, predictor.processor)
    except (KeyError, ValueError) as error:
        raise UserError(f"export: transformers has no class that computes the same: {error}.") from None
    config |= {"dtype": "float32", "transformers_version": "5.0.0"}

    def fill(place: Path) -> None:
        # Copies, since tensors of a file share no memory.
        save_file({k: v.clone() for k, v in tensors.items()}, place / "model.safetensors", metadata={"format": "pt"})
        for name, content in ({"config.json": _json(config)} | files).items():
            (place / name).write_bytes(content)
        _check(predictor, place)

    if target.is_dir():
        target.rmdir()
    atomic_folder(target, fill)
    return f"{target} written: {config['architectures'][0]} of transformers; its weights, read again, are the model's."


def _builder(predictor: Any) -> Callable[[Mapping[str, Any], dict[str, Tensor], Any], Parts]:
    """The function that converts a model.

    Raises:
        ValueError: There is none.
    """
    keywords, network = predictor.parts.keywords, predictor.parts.network
    if network in ("seq2seq", "whisper"):
        return _stacks if network == "seq2seq" else _whisper
    if network == "causal_lm":
        return _gpt2
    if keywords.get("encoder") == "bert":
        return _bert
    if keywords.get("backbone") == "vit":
        return _vit
    found = network or keywords.get("encoder") or keywords.get("backbone") or "a model of mmattn's own"
    raise ValueError(f"expected a model that began as one of {SUPPORTED}, found {found}")


def _stacks(keywords: Mapping[str, Any], state: dict[str, Tensor], processor: Any) -> Parts:
    from mmattn.pretrained.to_transformers import stacks_back

    return _generating(stacks_back, keywords, state, processor.options, processor.source)


def _gpt2(keywords: Mapping[str, Any], state: dict[str, Tensor], processor: Any) -> Parts:
    from mmattn.pretrained.to_transformers import gpt2_back

    return _generating(gpt2_back, keywords, state, processor.options, processor.tokenizer)


def _generating(
    back: Callable[..., Any],
    keywords: Mapping[str, Any],
    state: dict[str, Tensor],
    options: Mapping[str, Any],
    tokenizer: Any,
) -> Parts:
    """A network that generates text, by the conversion `back`, with its generation_config.json."""
    from mmattn.pretrained.to_transformers import split_prefix

    config, tensors = back(keywords, split_prefix(state, "net."))
    _nothing_left(state)
    generation = dict(options.get("generation") or {})
    config |= {key: value for key, value in generation.items() if key.endswith("_token_id")}
    files = dict(tokenizer.files) | {"generation_config.json": _json(generation)}
    return config, tensors, _with_special(files, generation, tokenizer)


def _whisper(keywords: Mapping[str, Any], state: dict[str, Tensor], processor: Any) -> Parts:
    from mmattn.pretrained.to_transformers import split_prefix, whisper_back

    config, tensors = whisper_back(keywords, split_prefix(state, "net."))
    _nothing_left(state)
    generation, front = dict(processor.generation), processor.front
    config |= {key: value for key, value in generation.items() if key.endswith("_token_id")}
    settings = {"feature_extractor_type": front.KIND, "processor_class": "WhisperProcessor"}
    settings |= {key: getattr(front, name) for key, name in front.KEYS.items()}
    settings["n_samples"] = front.seconds * front.sample_rate
    settings["nb_max_frames"] = settings["n_samples"] // front.hop
    files = dict(processor.tokenizer.files)
    files |= {"preprocessor_config.json": _json(settings), "generation_config.json": _json(generation)}
    about = {"tokenizer_class": "WhisperTokenizer", "unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    about |= {"bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    files.setdefault("tokenizer_config.json", _json(about))
    return config, tensors, files


def _bert(keywords: Mapping[str, Any], state: dict[str, Tensor], processor: Any) -> Parts:
    from mmattn.pretrained.to_transformers import bert_back, split_prefix

    options = dict(keywords["text_options"]) | {"vocab_size": keywords["vocab_size"]}
    options |= {"attention": keywords.get("attention") or options.get("attention")}
    config, tensors = bert_back(options, split_prefix(state, "encoder."))
    config["pad_token_id"] = processor.tokenizer.pad_id
    if "head.span.weight" in state:
        config["architectures"] = ["BertForQuestionAnswering"]
        tensors |= {f"qa_outputs.{part}": state.pop(f"head.span.{part}") for part in ("weight", "bias")}
    else:
        config |= _labeled(keywords, state, tensors, processor)
    _nothing_left(state)
    files = dict(processor.tokenizer.files)
    about = {"tokenizer_class": "BertTokenizer", "model_max_length": keywords.get("max_len", 512)}
    files.setdefault("tokenizer_config.json", _json(about))
    return config, tensors, files


def _labeled(
    keywords: Mapping[str, Any], state: dict[str, Tensor], tensors: dict[str, Tensor], processor: Any
) -> dict[str, Any]:
    """The head of a text classifier, moved from `state` to `tensors`; returns its part of config.json."""
    options = keywords.get("head_options") or {}
    hidden = options.get("hidden", keywords.get("hidden"))
    labels = list(processor.tasks.values()) if hasattr(processor, "tasks") else []
    if len(labels) != 1:
        raise ValueError(f"heads: expected one, found {len(labels)}")
    kind, names = labels[0].kind, labels[0].names or ["score"]
    found: dict[str, Any] = {"id2label": {str(n): name for n, name in enumerate(names)}}
    found["label2id"] = {name: n for n, name in enumerate(names)}
    tensors |= {f"classifier.{part}": state.pop(f"head.0.out.{part}") for part in ("weight", "bias")}
    if kind == "tagging":
        if hidden is not None:
            raise ValueError(f"hidden: expected none for labels of words, found {hidden}")
        return found | {"architectures": ["BertForTokenClassification"]}
    if keywords.get("pooling") != "first" or hidden != "tanh" or options.get("norm"):
        raise ValueError(
            "pooling and hidden: expected first and tanh, as BertForSequenceClassification pools; found "
            f"{keywords.get('pooling')} and {hidden}"
        )
    tensors |= {f"bert.pooler.dense.{part}": state.pop(f"head.0.dense.{part}") for part in ("weight", "bias")}
    problem = kind if kind == "regression" else f"{kind}_classification"
    return found | {"architectures": ["BertForSequenceClassification"], "problem_type": problem}


def _vit(keywords: Mapping[str, Any], state: dict[str, Tensor], processor: Any) -> Parts:
    from mmattn.data.image.processor import RESAMPLE
    from mmattn.pretrained.to_transformers import split_prefix, vit_back

    options = dict(keywords.get("backbone_options") or {})
    if options.pop("pooling", "token") != "token" or keywords.get("hidden_dim", 64):
        raise ValueError("pooling and hidden_dim: expected the class token and a linear classifier")
    own = ("embed_dim", "num_layers", "num_heads", "ffn_dim", "patch_size", "dropout", "attention")
    options |= {key: keywords[key] for key in own if key in keywords}
    config, tensors = vit_back(options, split_prefix(state, "backbone."))
    tensors |= {f"classifier.{part}": state.pop(f"head.out.{part}") for part in ("weight", "bias")}
    _nothing_left(state)
    labels, image = processor.labels, processor.image
    if image.resize != "squash":
        raise ValueError(f"resize: expected squash, found {image.resize}")
    config |= {"architectures": ["ViTForImageClassification"]}
    config |= {"id2label": {str(n): name for n, name in enumerate(labels)}}
    config |= {"label2id": {name: n for n, name in enumerate(labels)}}
    if processor.multi_label:
        config["problem_type"] = "multi_label_classification"
    size = {"height": image.size[0], "width": image.size[1]}
    settings = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size}
    settings |= {"resample": RESAMPLE.index(image.resample), "do_rescale": True, "rescale_factor": 1 / 255}
    settings |= {"do_normalize": True, "image_mean": list(image.mean), "image_std": list(image.std)}
    return config, tensors, {"preprocessor_config.json": _json(settings)}


def _with_special(files: dict[str, bytes], generation: Mapping[str, Any], tokenizer: Any) -> dict[str, bytes]:
    """A tokenizer_config.json with the names of the special tokens, for a tokenizer.json that has none beside it."""
    if "tokenizer.json" in files and "tokenizer_config.json" not in files:
        from tokenizers import Tokenizer

        pieces = Tokenizer.from_str(files["tokenizer.json"].decode())
        names = {"eos": "eos_token", "pad": "pad_token", "bos": "bos_token"}
        about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokenizer.max_len}
        for key, name in names.items():
            index = generation.get(f"{key}_token_id")
            if isinstance(index, int):
                about[name] = pieces.id_to_token(index)
        files = files | {"tokenizer_config.json": _json(about)}
    return files


def _nothing_left(state: Mapping[str, Tensor]) -> None:
    if state:
        raise ValueError(f"expected no other weights, found {', '.join(list(state)[:3])}")


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _check(predictor: Any, folder: Path) -> None:
    """Compare the folder, as this toolkit reads it, with the model.

    Raises:
        UserError: They differ, which would be an error of this module.
    """
    import torch

    found, own = read_parts(predictor.task, folder).state, predictor.model.state_dict()
    wrong = [name for name, value in found.items() if not torch.equal(value.float(), own[name].cpu().float())]
    heads = tuple(name for name in own if name.startswith("head."))  # an image encoder is read without its classifier
    missing = own.keys() - found.keys() - set(heads)
    if wrong or missing:
        raise UserError(f"export: expected the model's weights in {folder}, found others: {[*wrong, *missing][:3]}.")
