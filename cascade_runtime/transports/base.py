"""`Transport`: the one seam between the client and wherever the cascade runs.

A client knows this protocol only. Implementations register under the entry-point group `cascade_runtime.transports`
(pyproject.toml), so that the client imports neither Ray nor a server nor an HTTP library:

    a name         "in-process", "ray"      (recipe) -> Transport      starts a cascade
                   "ray://ADDRESS"          (recipe, address=...)      on a Ray that runs already
    a URL scheme   "http", "grpc", ...      (remote) -> Transport      reaches one that somebody else runs
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol
from urllib.parse import urlsplit

from cascade_runtime.api import Answer, GenerateRequest, Health, Piece, ServedModel
from cascade_runtime.config import Recipe
from cascade_runtime.errors import CascadeError, ConfigError

GROUP = "cascade_runtime.transports"
MAX_CONCURRENCY = 1024
MAX_RETRIES = 10
DEFAULT_TIMEOUT_S = 120.0  # of a request to a server, where its caller names none
_KEY = re.compile(r"[\x21-\x7e]{1,512}")

Update = tuple[int, "Piece | Answer | CascadeError"]


class Transport(Protocol):
    """A cascade, running here or elsewhere."""

    def run(
        self,
        requests: Sequence[GenerateRequest],
        timeout_s: float | None,
        stream: bool,
        concurrency: int = MAX_CONCURRENCY,
    ) -> AsyncIterator[Update]:
        """Answer requests, at most `concurrency` at a time. Yields (index, `Piece`) if `stream`, and (index, answer or
        error) once each. Leaving the iterator early ends what still runs.
        """
        ...

    async def models(self) -> tuple[ServedModel, ...]:
        """What may be asked here."""
        ...

    async def health(self) -> Health:
        """Whether requests would be answered now."""
        ...

    async def trace(self, request_id: str) -> dict[str, Any]:
        """What was done when for a request that was answered lately, as a Chrome trace. Raises `NotFound`."""
        ...

    async def close(self) -> None:
        """Stop what was started. A second call does nothing."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A cascade that somebody else runs, and how to speak to it. Raises `ConfigError` for what cannot be meant.

    url: scheme, host and perhaps a path; no credentials in it. max_retries: of one request, beside the first try.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    max_retries: int = 2

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
        except ValueError:
            raise ConfigError("target", "an address that cannot be read", "scheme://host:port") from None
        if parts.username is not None or parts.password is not None:
            raise ConfigError("target", f"{parts.scheme}://...@...", "no credentials in the address: api_key=...")
        if not usable:
            raise ConfigError("target", self.url, "scheme://host:port, without query")
        if self.api_key is not None and not (isinstance(self.api_key, str) and _KEY.fullmatch(self.api_key)):
            raise ConfigError("api_key", "a text that is not shown", "1 to 512 printable characters without spaces")
        retries = self.max_retries
        if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= MAX_RETRIES:
            raise ConfigError("max_retries", retries, f"an integer from 0 to {MAX_RETRIES}")


def is_remote(target: str) -> bool:
    """Whether a target is the address of a server; "ray://..." says where stages are to be started."""
    return "://" in target and not target.lower().startswith("ray://")


def transport_names() -> tuple[str, ...]:
    """The targets a client may name, and the schemes of addresses it may give."""
    return tuple(sorted(point.name for point in entry_points(group=GROUP)))


def open_transport(target: str, how: Recipe | Remote) -> Transport:
    """Start a cascade of a recipe ("in-process", "ray", "ray://ADDRESS"), or reach the one at an address. Raises
    `ConfigError` for a target that is not installed.
    """
    name, scheme, address = target.partition("://")
    name = name.lower() if scheme else target
    for point in entry_points(group=GROUP, name=name):
        try:
            make = point.load()
        except ModuleNotFoundError as error:
            allowed = f"an address only, in an installation without {error.name}"
            raise ConfigError("target", target, allowed) from error
        return make(how, address=address) if scheme and not isinstance(how, Remote) else make(how)
    raise ConfigError("target", target, ", ".join(transport_names()) or "none is installed: pip install -e .")
