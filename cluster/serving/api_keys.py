"""API keys: read from a file, kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from cascade_runtime.errors import ConfigError

ANYBODY = "-"
"""Who asks where no keys are set."""
_MAX_KEYS = 1000
_MAX_FILE_BYTES = 1 << 20
_MIN_CHARACTERS = 16


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_key_file(path: Path) -> tuple[str, ...]:
    """The digests of the keys in a file: one a line, "#" begins a comment. Raises `ConfigError`."""
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1).decode()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError("api_key_file", str(path), f"a readable text file ({error})") from error
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not 1 <= len(keys) <= _MAX_KEYS or len(text) > _MAX_FILE_BYTES:
        raise ConfigError("api_key_file", str(path), f"1 to {_MAX_KEYS} keys, one a line")
    for number, key in enumerate(keys):
        if len(key) < _MIN_CHARACTERS or not key.isprintable() or " " in key:
            problem = f"key number {number + 1} of {len(key)} characters"  # never the key itself
            raise ConfigError("api_key_file", problem, f"keys of at least {_MIN_CHARACTERS} characters without blanks")
    return tuple(dict.fromkeys(digest(key) for key in keys))


def caller_of(authorization: str, digests: Sequence[str]) -> str | None:
    """Who asks, by the Authorization header: a short name of its key, ANYBODY without keys, None for a wrong one.

    Every key is compared, so that the time taken tells nothing about which one nearly matched.
    """
    if not digests:
        return ANYBODY
    scheme, _, key = authorization.partition(" ")
    offered = digest(key.strip())
    found = None
    for known in digests:
        if hmac.compare_digest(offered, known):
            found = known[:12]
    return found if scheme.lower() == "bearer" else None
