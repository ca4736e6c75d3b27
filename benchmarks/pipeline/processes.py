"""The processes of all actors of this project on this machine, and the core time they have used, from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from actors.adapter import AdapterVerifierStage
from actors.controller import Controller
from actors.drafter import Drafter
from actors.encoder import EventEncoderStage
from actors.mid_verifier import MidVerifier
from actors.target import Target


class Bare:
    """An actor that does nothing."""

    def ready(self) -> bool:
        """It runs."""
        return True


def actors() -> list[int]:
    """Processes that Ray has named after an actor of ours."""
    kinds = (EventEncoderStage, AdapterVerifierStage, Drafter, MidVerifier, Target, Controller, Bare)
    names = {f"ray::{kind.__name__}" for kind in kinds}
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_text().split("\0")[0].split(".")[0] in names:
                pids.append(int(path.parent.name))
    return pids


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used; 0 where it is gone."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
