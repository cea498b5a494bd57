"""Shared code of the tasks that predict labels: one class per sample, or several that are not mutually exclusive."""
