"""Is there room on a device for what is about to be loaded? Asked before a byte is read, answered in one sentence."""

from __future__ import annotations

from pathlib import Path

import torch

from cascade_runtime.errors import ConfigError

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def check_room(what: str, need_bytes: int, device: torch.device) -> None:
    """Raise `ConfigError` where `need_bytes` more do not fit the device now; a device that does not tell passes."""
    free = free_bytes(device)
    if free is not None and need_bytes > free:
        raise ConfigError(what, f"{need_bytes / 1e9:.3g} GB", f"at most {free / 1e9:.3g} GB, what {device} has free")


def free_bytes(device: torch.device) -> int | None:
    """What may be allocated on a device now; None where it is not known. Of a CPU: memory that is available without
    swapping, in this process's control group.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept  # what torch holds without using it is free as well
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used, facts = (_GROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        stat = dict(line.split() for line in facts.read_text().splitlines())
        pages = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))  # files, which give way
        free = min(free, int(text) - int(used.read_text()) + pages)
    return max(0, free)
