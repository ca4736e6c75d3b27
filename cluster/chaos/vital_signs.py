"""What must not grow: memory, descriptors, stored objects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import ray

_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)


def allocated_bytes(pids: Iterable[int]) -> int:
    """Memory that these processes of this machine have allocated and touched; of one that is gone, none. Pages of files
    are left out: the kernel drops them and brings them back as it likes.
    """
    total = 0
    for pid in pids:
        try:
            found = _ANONYMOUS.search(Path(f"/proc/{pid}/status").read_text())
        except OSError:
            continue
        total += 1024 * int(found[1]) if found else 0
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
