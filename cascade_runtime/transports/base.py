"""`Transport`: the one seam between the client and wherever the cascade runs.

A client knows this protocol only. Implementations register under the entry-point group `cascade_runtime.transports`
(pyproject.toml), each as a callable `(recipe) -> Transport`, so that the client imports neither Ray nor a server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from importlib.metadata import entry_points
from typing import Protocol

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe
from cascade_runtime.errors import CascadeError, ConfigError

GROUP = "cascade_runtime.transports"

Update = tuple[int, "str | Answer | CascadeError"]


class Transport(Protocol):
    """A running cascade."""

    def run(self, requests: Sequence[GenerateRequest], timeout_s: float | None, stream: bool) -> AsyncIterator[Update]:
        """Answer requests side by side. Yields (index, piece of text) if `stream`, and (index, answer or error)
        once each.
        """
        ...

    async def close(self) -> None:
        """Stop the cascade. A second call does nothing."""


def transport_names() -> tuple[str, ...]:
    """The targets a client may name."""
    return tuple(sorted(point.name for point in entry_points(group=GROUP)))


def open_transport(target: str, recipe: Recipe) -> Transport:
    """Start a cascade at a target ("in-process", "ray"). Raises `ConfigError` for one that is not installed."""
    for point in entry_points(group=GROUP, name=target):
        return point.load()(recipe)
    raise ConfigError("target", target, ", ".join(transport_names()) or "none is installed: pip install -e .")
