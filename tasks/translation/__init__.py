"""Translation: a sentence in, its translation and what it was read off out.

>>> import tasks.translation
>>> translator = tasks.translation.load()  # doctest: +SKIP
>>> translator.predict(["the old dog carries a basket"])  # doctest: +SKIP
"""

from __future__ import annotations

from tasks.common.lazy import lazy

_EXPORTS = {
    "TranslationModel": "model",
    "TranslationHead": "model",
    "Translator": "predict",
    "Translation": "predict",
    "load": "predict",
    "TranslationModule": "module",
}
__all__, __getattr__ = lazy(__name__, _EXPORTS)
