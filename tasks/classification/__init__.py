"""Image classification: a picture in, its class and where the model looked out.

>>> import tasks.classification
>>> predictor = tasks.classification.load()  # doctest: +SKIP
>>> predictor.predict([{"image": "photo.jpg"}])  # doctest: +SKIP
"""

from __future__ import annotations

from tasks.common.lazy import lazy

_EXPORTS = {
    "ClassificationModel": "model",
    "ClassificationHead": "model",
    "ClassificationOutput": "model",
    "ClassificationPredictor": "predict",
    "ClassificationAnswer": "predict",
    "load": "predict",
    "ClassificationModule": "module",
}
__all__, __getattr__ = lazy(__name__, _EXPORTS)
