"""Whether a Ray lets in only who knows its token: `refuse_open_ray`, `tell_open_ray`.

Ray's ports listen on every address of a machine, and its protocol is pickle: without token authentication whoever
reaches one of them runs code here. Ray 2.60 switches it on by itself where it is started by `ray.init()`, makes a token
in ~/.ray/auth_token, and leaves it off where RAY_AUTH_MODE says "disabled".
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cascade_runtime.errors import ConfigError

_MODE = "RAY_AUTH_MODE"


def refuse_open_ray() -> None:
    """Raises `ConfigError` where a Ray that is started now would let in everybody."""
    mode = os.environ.get(_MODE, "token")
    if mode.lower() != "token":
        raise ConfigError(_MODE, mode, "token, or not set: without one, whoever reaches Ray's ports runs code here")


def tell_open_ray(address: str, report: Callable[[str], None]) -> None:
    """Says so where this process has joined a Ray that asks for no token (it would have needed RAY_AUTH_MODE=token)."""
    if os.environ.get(_MODE, "").lower() != "token":
        report(f"Ray at {address} asks for no token: whoever reaches its ports runs code there (SECURITY.md)")
