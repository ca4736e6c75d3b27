"""The bundled members: what they are called, how deep they are, and where they lie. `family.py` makes them."""

from __future__ import annotations

from pathlib import Path

from cascade_runtime.errors import ConfigError

LAYERS = {"light": 1, "mid": 5, "heavy": 20}
MEMBERS = (*LAYERS, "event_encoder", "adapter")
_HOME = Path(__file__).parent.parent / "family"


def family_path(member: str) -> Path:
    """The directory of a bundled member. Raises ConfigError for a name that is none."""
    if member not in MEMBERS:
        raise ConfigError("family member", member, f"one of {', '.join(MEMBERS)}")
    return _HOME / member
