"""`Drafts`: what a verifier knows of one kind of drafts, made by its neighbour or passed on by it."""

from __future__ import annotations

from cascade_runtime.scheduling.hazards import Hazards

ENOUGH = 4  # verified blocks before a decision rests on them; as many as there are rows, if more
_FORGET = 0.9


class Drafts:
    """pace_s: per draft and row. work_s: of shared cores, per draft. heard: paces and silences."""

    def __init__(self) -> None:
        self.hazards = Hazards()
        self.pace_s = self.work_s = 0.0
        self.heard = 0

    def came(self, pace_s: float, work_s: float, weight: float = 1.0) -> None:
        """Some came, or none did within `pace_s`."""
        self.heard += 1
        old = _FORGET**weight
        self.pace_s = old * self.pace_s + (1 - old) * pace_s if self.pace_s else pace_s
        self.work_s = old * self.work_s + (1 - old) * work_s if self.work_s else work_s

    def known(self, rows: float) -> bool:
        """Whether a decision may rest on this."""
        return self.pace_s > 0 and self.hazards.blocks >= max(ENOUGH, rows)
