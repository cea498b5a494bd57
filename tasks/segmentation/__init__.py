"""Segmentation: a picture in, the class of each of its pixels and where the model looked out.

>>> import tasks.segmentation
>>> predictor = tasks.segmentation.load()  # doctest: +SKIP
>>> predictor.predict([{"image": "photo.jpg"}])[0].shares  # doctest: +SKIP
"""

from __future__ import annotations

from tasks.common.lazy import lazy

_EXPORTS = {
    "SegmentationModel": "model",
    "SegmentationHead": "model",
    "SegmentationOutput": "model",
    "SegmentationPredictor": "predict",
    "SegmentationAnswer": "predict",
    "load": "predict",
    "SegmentationModule": "module",
}
__all__, __getattr__ = lazy(__name__, _EXPORTS)
