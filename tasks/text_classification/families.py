"""The heads of public text encoders: names of their weights, and how they compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.deberta import DebertaEncoder
from mmattn.backbones.modernbert import ModernBertEncoder
from mmattn.pretrained.keymap import DROPPED, activation, read

ROBERTA = ("roberta", "xlm-roberta")
ENCODERS: dict[str, tuple[str, type[Any]]] = {  # by family: name of the encoder in our model, and its class
    "modernbert": ("modernbert", ModernBertEncoder),
    "deberta-v2": ("deberta", DebertaEncoder),
}
BERT = ("bert", BertEncoder)  # of all others


class Head(NamedTuple):
    """A head of a public model."""

    names: dict[str, str]  # the public model's names, and ours
    options: dict[str, Any]  # keywords of `TextHead`; of a masked language model those of `LanguageHead`
    pooling: str = "first"


def sequence_head(family: str, config: Mapping[str, Any]) -> Head:
    """The head of ...ForSequenceClassification."""
    if family in ROBERTA or family == "electra":
        names = {"classifier.dense.*": "head.0.dense.*", "classifier.out_proj.*": "head.0.out.*"}
        return Head(names, {"hidden": "gelu" if family == "electra" else "tanh"})
    if family == "modernbert":
        pooling = "mean" if read(config, "classifier_pooling", "cls") == "mean" else "first"
        return _modern(config, pooling)
    dense = {"distilbert": "pre_classifier.*", "albert": "pooler.*"}.get(family, "pooler.dense.*")
    hidden = {"distilbert": "relu", "deberta-v2": activation(read(config, "pooler_hidden_act", "gelu"))}
    names = {dense: "head.0.dense.*", "classifier.*": "head.0.out.*"}
    return Head(names, {"hidden": hidden.get(family, "tanh")})


def token_head(family: str, config: Mapping[str, Any]) -> Head:
    """The head of ...ForTokenClassification."""
    return _modern(config) if family == "modernbert" else Head({"classifier.*": "head.0.out.*"}, {})


def _modern(config: Mapping[str, Any], pooling: str = "first") -> Head:
    names = {"head.dense.*": "head.0.dense.*", "head.norm.*": "head.0.norm.*", "classifier.*": "head.0.out.*"}
    options = {"hidden": activation(read(config, "classifier_activation", "gelu")), "norm": True}
    options |= {"bias": read(config, "classifier_bias", False), "norm_eps": read(config, "norm_eps", 1e-5)}
    return Head(names, options, pooling)


def language_head(family: str, config: Mapping[str, Any]) -> Head:
    """The head of ...ForMaskedLM; its map to tokens is the embedding table, which files may have twice."""
    act = activation(read(config, "hidden_act", "gelu_new" if family == "albert" else "gelu"))
    options: dict[str, Any] = {"activation": act, "norm_eps": read(config, "layer_norm_eps", 1e-12)}
    dense, norm, bias, decoder = {
        "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
        "electra": (
            "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias",
            "generator_lm_head",
        ),
        "albert": ("predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder"),
        "modernbert": ("head.dense", "head.norm", "decoder.bias", "decoder"),
        **dict.fromkeys(ROBERTA, ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder")),
    }.get(family, (
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias",
        "cls.predictions.decoder",
    ))  # fmt: skip
    names = {f"{dense}.*": "language.dense.*", f"{norm}.*": "language.norm.*", bias: "language.tokens.bias"}
    names |= {f"{decoder}.weight": f"{DROPPED}weight"}
    if f"{decoder}.bias" != bias:
        names |= {f"{decoder}.bias": f"{DROPPED}bias"}
    if family == "bert":  # files of BertForMaskedLM often have the head of the next sentence, too
        names |= {"cls.seq_relationship.*": f"{DROPPED}next.*", "pooler.dense.*": f"{DROPPED}pooler.*"}
    if family == "distilbert":
        options = {"activation": activation(read(config, "activation", "gelu")), "norm_eps": 1e-12}
    if family in ("electra", "albert"):
        options["hidden_dim"] = read(config, "embedding_size", 128)
    if family == "electra":
        options["activation"] = "gelu"
    if family == "modernbert":
        options = {"activation": activation(read(config, "classifier_activation", "gelu"))}
        options |= {"bias": read(config, "classifier_bias", False), "norm_eps": read(config, "norm_eps", 1e-5)}
    return Head(names, options)
