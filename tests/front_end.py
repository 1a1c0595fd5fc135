"""Nodes as the front end describes them in its requests."""

from __future__ import annotations


def node(kind: str, **inputs) -> dict:
    return {"type": kind, "inputs": inputs}


def scheduler(schedule: str = "karras", steps: int = 8, denoise: float = 1.0, **options) -> dict:
    return node("FewStepScheduler", schedule=schedule, steps=steps, denoise=denoise, **options)
