"""Visual question answering: a picture and a question in, an answer and where the model looked out.

>>> import tasks.vqa
>>> predictor = tasks.vqa.load()  # doctest: +SKIP
>>> predictor.predict([{"image": "photo.jpg", "question": "What colour is the circle?"}])  # doctest: +SKIP
"""

from __future__ import annotations

from tasks.common.lazy import lazy

_EXPORTS = {
    "VQAModel": "model",
    "VQAHead": "model",
    "VQAOutput": "model",
    "VQAPredictor": "predict",
    "VQAAnswer": "predict",
    "load": "predict",
    "VQAModule": "module",
}
__all__, __getattr__ = lazy(__name__, _EXPORTS)
