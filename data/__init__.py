"""Readers, processors and batches of the modalities. Imports torch and numpy, but neither the core nor ``tasks``.

Names are imported from their modules, e.g. ``from mmattn.data.batching import make_loader``: this file imports
nothing, so that a predictor loads only the modules it uses.
"""
