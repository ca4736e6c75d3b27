"""Which machine a process runs on: neighbours on one machine may share memory and sockets."""

from __future__ import annotations

import platform
from pathlib import Path


def host() -> str:
    """The machine this process runs on: its name and the identity of its running kernel."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}/{boot.read_text().strip() if boot.exists() else ''}"
