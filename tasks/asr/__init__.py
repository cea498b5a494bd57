"""Speech recognition: a recording in, its words and when they were said out.

>>> import tasks.asr
>>> recogniser = tasks.asr.load()  # doctest: +SKIP
>>> recogniser.predict([{"audio": "speech.wav"}])  # doctest: +SKIP
"""

from __future__ import annotations

from tasks.common.lazy import lazy

_EXPORTS = {
    "ASRModel": "model",
    "ASRHead": "model",
    "Recogniser": "predict",
    "Transcript": "predict",
    "load": "predict",
    "ASRModule": "module",
}
__all__, __getattr__ = lazy(__name__, _EXPORTS)
