"""What a language stage says of itself: `info` for the launcher, `stats` for whoever looks, `LoopClock` for both."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import torch

from actors.host import process
from cascade_runtime.decoding.level import Level

if TYPE_CHECKING:
    from actors.stage import LanguageStage


class LoopClock:
    """What a stage's loop does with its time. busy_ns: in passes. awake_ns: in turns of the loop, passes included."""

    def __init__(self) -> None:
        self.busy_ns = self.awake_ns = 0
        self._began_ns = 0

    def turn(self) -> int:
        """A turn begins: at this monotonic time."""
        self._began_ns = time.monotonic_ns()
        return self._began_ns

    def rest(self) -> None:
        """The turn is over."""
        self.awake_ns += time.monotonic_ns() - self._began_ns
        self._began_ns = 0

    @property
    def turning_s(self) -> float:
        """How long the turn that is under way has lasted; 0 where none is."""
        began_ns = self._began_ns
        return (time.monotonic_ns() - began_ns) / 1e9 if began_ns else 0.0


def info(name: str, level: Level) -> dict[str, Any]:
    """Facts that do not change."""
    language = level.model.language
    return {
        "name": name,
        "tokenizer": level.tokenizer_tag(),
        "ends": level.ends,
        **process(language.device),
        "weight_bytes": language.weight_bytes,
        "kv_bytes": level.decoder.cache.nbytes,
        "device": str(language.device),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": torch.get_num_threads(),
    }


def stats(stage: LanguageStage) -> dict[str, Any]:
    """Counters since the start; `busy_s` is time in passes, `awake_s` in turns of the loop, passes included.
    `silences` are passes that were run because a row had waited for drafts until its deadline.
    """
    decoder, links = stage.level.decoder, stage.links
    return {
        "name": stage.name,
        "emulated": stage.config.emulated,
        "passes": decoder.passes,
        "tokens_fed": decoder.tokens_fed,
        "busy_s": stage.clock.busy_ns / 1e9,
        "awake_s": stage.clock.awake_ns / 1e9,
        "active_rows": len(stage.rows),
        "free_slots": decoder.free_slots,
        "slots": decoder.cache.slots,
        "early_blocks": len(stage.scheduler.early),
        "silences": stage.scheduler.silences,
        "refused_messages": links.refused,
        "edge": stage.totals.to_dict(),
        "decision": stage.scheduler.policy.decision.to_dict(),
        "upstream_alive": bool(links.upstream),
        "downstream_alive": bool(links.downstream),
    }
