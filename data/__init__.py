"""Readers, processors and batches. Imports torch and numpy; knows neither ``mmattn`` nor ``tasks``.

Import what you need from its module, e.g. ``from data.vqa import VQADataset``: this file imports nothing, so that a
predictor pays only for what it uses.
"""
