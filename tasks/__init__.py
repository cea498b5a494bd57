"""Task packages, one folder each, on the shared core `mmattn` and the readers in `data`.

Importing this package imports nothing else: `load` finds out from a model's folder which task it belongs to and imports
that task's predictor alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS: tuple[str, ...] = ("vqa", "translation", "summarization", "classification", "segmentation", "asr")


def load(directory: str | Path, device: str = "auto", precision: str | None = None) -> Any:
    """Load the predictor of a model's folder, whichever task it is of.

    Public models are read as the Hugging Face hub lays them out: Marian translates, BART and T5 summarize
    (`tasks.translation.load` lets these translate), SegFormer segments, Whisper and, where they have a CTC head,
    wav2vec 2.0 and HuBERT recognise speech.

    Args:
        directory: the `model/` folder of a run, or the run's; a folder with a public model's `config.json`, weights
            and tokenizer; or "hf:owner/name", "hf:owner/name@revision", a repository of the hub.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        precision: "float32", "bfloat16" or "int8": weights are packed for speed on a CPU, after which the model can
            neither be trained nor exported; None: they stay as they are.

    Returns:
        The task's predictor, e.g. `tasks.vqa.VQAPredictor`.

    Raises:
        CheckpointError: there is no model, it is incomplete, or of a task or family that this version has not.
    """
    import importlib

    from tasks.common.pretrained import task_of

    task = task_of(directory)
    options = {} if precision is None else {"precision": precision}
    return importlib.import_module(f"tasks.{task}.predict").load(directory, device=device, **options)
