"""Option names of version 0.1, so that the error for an old key gives its new name."""

from __future__ import annotations

_MOVED = {  # from model.* to other sections, under the same name
    "optim": "lr weight_decay betas schedule warmup_steps ema_decay layer_decay",
    "loss": "label_smoothing word_dropout object_supervision class_weights ctc_weight consistency salience",
    "decode": "num_beams val_beams length_penalty lm_weight lm_bonus tile flip",
    "trainer": "early_stopping compile gradient_checkpointing save_every_n_steps",
}
OPTIONS = {
    **{f"model.{name}": f"{section}.{name}" for section, names in _MOVED.items() for name in names.split()},
    **{f"data.{name}": "data.demo_size" for name in ("scenes", "pictures", "pairs", "documents", "clips")},
    "data.hide": "data.ablate",
    "model.auxiliary_weight": "loss.aux_weight",
    "model.consensus": "decode.mbr",
    "model.guidance": "loss.attention_supervision",
    "model.init_from": "init_from",
    "model.loss": "loss.objective",
    "model.memory": "model.pooling",
    "model.monitor_rate": "trainer.monitor",
    "model.pool": "model.pooling",
    "model.search_ctc_weight": "decode.ctc_weight",
}


def renamed(key: str) -> str | None:
    """The current name of a key of version 0.1, or of a key nested in one; None for any other key."""
    for old, new in OPTIONS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None
