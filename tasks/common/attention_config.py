"""Validation of attention configurations such as `{kind: sliding_window, window: 64}`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mmattn.data.errors import nearest
from mmattn.tasks.common.errors import ConfigError

ATTENTIONS = ("attention", "decoder_attention", "cross_attention")  # the keywords of a model that choose a kernel


def check_attention(config: Mapping[str, Any] | None, key: str) -> dict[str, Any] | None:
    """Validate a kernel's name and options; options of other kernels are dropped with a message on stderr.

    If a YAML file selects one kernel with its options and the command line another by `--KEY.kind`, the options of the
    first are dropped.

    Args:
        config: The mapping; None for dense attention.
        key: Key of the mapping in the configuration, for messages.

    Raises:
        ConfigError: The kernel is unknown, or no kernel has the option.
    """
    if config is None:
        return None
    from mmattn.kernels import KERNELS, kernel_options

    kind = config.get("kind", "dense")
    if kind not in KERNELS:
        raise ConfigError(
            f"{key}.kind: expected one of {', '.join(KERNELS)}, found {kind!r}{nearest(str(kind), KERNELS)}."
        )
    own = set(kernel_options(kind))
    known = {option for name in KERNELS for option in kernel_options(name)}
    kept: dict[str, Any] = {"kind": kind}
    for option, value in config.items():
        if option == "kind":
            continue
        if option in own:
            kept[option] = value
        elif option in known:
            sys.stderr.write(f"{key}.{option} dropped: {kind} attention has no such option.\n")
        else:
            has = ", ".join(sorted(own)) or "none"
            raise ConfigError(
                f"{key}.{option}: {kind} attention has no such option{nearest(option, own)}; it has: {has}."
            )
    return kept
