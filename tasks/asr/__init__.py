"""Speech recognition: transcripts and word timings from recordings.

>>> from mmattn.tasks import asr
>>> recognizer = asr.load()  # doctest: +SKIP
>>> recognizer("speech.wav")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.asr.model import ASRHead as ASRHead, ASRModel as ASRModel
    from mmattn.tasks.asr.module import ASRModule as ASRModule
    from mmattn.tasks.asr.predict import ASRPrediction as ASRPrediction, ASRPredictor as ASRPredictor, load as load

_NAMES = {
    "model": ("ASRModel", "ASRHead"),
    "predict": ("ASRPredictor", "ASRPrediction", "load"),
    "module": ("ASRModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.asr", _NAMES)

_ALONE = "--decode.ctc_weight 0 --decode.num_beams 1"

TASK = Task(
    name="asr",
    package="mmattn.tasks.asr",
    title="Speech recognition: train on recordings and their texts, evaluate, transcribe, compute word timings.",
    model="model:ASRModel",
    processor="processor:SpeechProcessor",
    module="module:ASRModule",
    datamodule="module:ASRDataModule",
    predictor="predict:ASRPredictor",
    demo="demo:make",
    options=(
        Option(
            "audio",
            "recording to transcribe, of any length (WAV, FLAC, OGG, MP3, AIFF; others with torchcodec); for a "
            "folder, use --input",
            kind="item",
        ),
        Option("num_beams", "number of beams; 1: greedy (default: as the model was measured)", int),
        Option(
            "ctc_weight",
            "CTC weight in joint decoding; 0: attention alone, 1: CTC alone (default: as the model was measured)",
            float,
        ),
        Option(
            "lm_weight",
            "weight of the model's n-gram language model, if it has one (default: as the model was measured)",
            float,
        ),
        Option("language", "Whisper only: spoken language, such as de or German (default: detected)"),
        Option(
            "task", "Whisper only: transcribe, or translate into English (default: as in its generation_config.json)"
        ),
        Option("window", "length of a window in seconds (default: the longest training clip)", float),
    ),
    adapter="adapters:ASRAdapter",
    families={
        "whisper/*": "adapters:WhisperAdapter",
        "wav2vec2/*": "adapters:CTCAdapter",
        "hubert/*": "adapters:CTCAdapter",
    },
    default_checkpoint="fsdd",
    baselines={
        "audio ablated": "--data.ablate audio",
        "mean pooling for attention": "--model.pooling mean",
    },
    variants={
        "CTC alone": "--model.decoder none",
        "LSTM, additive attention": "--model.decoder lstm",
        "transformer encoder": "--model.encoder transformer",
        "soft attention alone": _ALONE,  # greedy, without CTC: the baseline of the next three
        "LSTM, additive attention alone": f"--model.decoder lstm {_ALONE}",
        "monotonic attention alone": f"--model.cross_attention.kind monotonic {_ALONE}",
        "monotonic chunks alone": f"--model.cross_attention.kind monotonic --model.cross_attention.chunk 4 {_ALONE}",
        "monotonic attention": "--model.cross_attention.kind monotonic",
        "streaming": "--model.chunk_frames 8 --model.left_chunks 4",
    },
    metric="wer",
    packages=("jiwer",),
    kernel_length=512,
    localisation="alignment:localisation",
    tiny="--data.demo_size 24 --data.batch_size 8 --data.max_frames 1200 --model.embed_dim 16 --model.num_heads 2 "
    "--model.ffn_dim 16 --model.encoder_layers 1 --decode.num_beams 1",
)
