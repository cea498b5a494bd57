"""Procedural, seeded data for every task, made in memory: no download."""
