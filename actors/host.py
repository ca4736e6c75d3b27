"""The machine under a stage: neighbours on one may share memory and sockets, and share its cores."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import threading
from pathlib import Path

import torch

_GRADES = 4


@functools.cache
def host() -> str:
    """The machine this process runs on: its name and the identity of its running kernel. Pulses say it all the time."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}/{boot.read_text().strip() if boot.exists() else ''}"


def process(device: object) -> dict[str, int | str]:
    """Where this process runs, its pid, and the most memory it has held at once: of the machine (Linux's VmHWM, 0 where
    the system does not tell), and of tensors on its GPU, 0 on a CPU.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return {
        "host": host(),
        "pid": os.getpid(),
        "peak_bytes": next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0),
        "device_peak_bytes": torch.cuda.max_memory_allocated(str(device)) if str(device).startswith("cuda") else 0,
    }


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def step_back() -> None:
    """Let this thread go after others by `_GRADES` of the 19 grades of niceness.

    Where stages share CPU cores, the target goes first: a draft is worth less than the pass that waits for it.
    """
    with contextlib.suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _GRADES))
