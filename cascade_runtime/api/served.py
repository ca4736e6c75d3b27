"""What a running cascade says of itself: `ServedModel`, `Health`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServedModel:
    """Something that may be asked: its name, and the stages behind it from light to target where that is known."""

    name: str
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Health:
    """Whether requests would be answered now, and in a few words why not."""

    ready: bool
    status: str
