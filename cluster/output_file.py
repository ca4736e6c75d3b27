"""`write_output`: a file that a command was asked for, or one clear line about why there is none."""

from __future__ import annotations

from pathlib import Path

from cascade_runtime.errors import CascadeError


def write_output(path: Path, text: str) -> None:
    """Write or replace it. Raises `CascadeError`."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CascadeError(f"{path}: {error.strerror or error}") from error
