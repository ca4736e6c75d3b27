"""What must not grow: memory, descriptors, stored objects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import ray

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pids: Iterable[int]) -> int:
    """Memory that these processes of this machine hold; of one that is gone, none."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            continue
    return total


def open_descriptors() -> int:
    """Of this process; 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def stored_objects() -> int:
    """Objects in the stores of the cluster that this process is connected to."""
    from ray._private.internal_api import memory_summary  # Ray's public way needs its dashboard

    summary = memory_summary(address=ray.get_runtime_context().gcs_address, stats_only=True)
    return sum(int(count) for count in re.findall(r"(\d+) objects", summary))


def slope_per_hour(samples: Sequence[tuple[float, float]]) -> float:
    """Least squares through (seconds, value), per hour; 0 for fewer than three samples."""
    if len(samples) < 3:
        return 0.0
    mean_t = sum(t for t, _ in samples) / len(samples)
    mean_v = sum(v for _, v in samples) / len(samples)
    spread = sum((t - mean_t) ** 2 for t, _ in samples)
    return 3600 * sum((t - mean_t) * (v - mean_v) for t, v in samples) / spread if spread else 0.0
