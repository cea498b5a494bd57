"""Fine-tuning of a classifier on data with other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmattn.tasks.common.adapter import Adapter, CheckpointParts
from mmattn.tasks.common.finetune import init_missing, without


class LabelAdapter(Adapter):
    """Reads models whose last layer has a row for each of the processor's `labels`."""

    scores: ClassVar[tuple[str, ...]] = ("head.",)  # name prefixes of the layers that depend on the classes
    head: ClassVar[tuple[str, ...]] = ("head.",)  # name prefixes of the layers that may be missing
    resized: ClassVar[tuple[str, ...]] = ()  # names of position maps, see `init_missing`

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """Replace the layers that depend on the classes if these differ, and initialize missing layers.

        See `Adapter.adapt`.
        """
        trained = parts.processor
        if any(getattr(trained, name, None) != getattr(processor, name, None) for name in ("labels", "multi_label")):
            parts = without(parts, self.scores, f"was trained on {len(trained.labels)} other classes")
        return super().adapt(init_missing(parts, sizes, seed, self.head, self.resized), processor, sizes, seed)
