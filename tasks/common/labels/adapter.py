"""From a model's classes to those of other data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmattn.tasks.common.adapter import Adapter, CheckpointParts
from mmattn.tasks.common.finetune import init_missing, without


class LabelAdapter(Adapter):
    """Reads models whose last layer has a row a class, as the processor's `labels` name them."""

    scores: ClassVar[tuple[str, ...]] = ("head.",)  # names by which layers begin that know the classes
    head: ClassVar[tuple[str, ...]] = ("head.",)  # and all that may be missing
    resized: ClassVar[tuple[str, ...]] = ()  # position maps, as `init_missing` takes them

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """What training begins with: without the layers that know other classes, and with new ones for what is not
        there; see `Adapter.adapt`."""
        known = parts.processor
        if any(getattr(known, name, None) != getattr(processor, name, None) for name in ("labels", "multi_label")):
            parts = without(parts, self.scores, f"knows {len(known.labels)} other classes")
        return super().adapt(init_missing(parts, sizes, seed, self.head, self.resized), processor, sizes, seed)
