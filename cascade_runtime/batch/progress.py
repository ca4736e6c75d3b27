"""`Progress`: a bar of rows with time to go, tokens per second and acceptance; off a terminal a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

from cascade_runtime.api import Answer
from cascade_runtime.metrics import EdgeCounters, merge_edges

_ON_SCREEN_S, _IN_A_LOG_S = 0.2, 15.0


class Progress:
    """Rows of a batch on stderr. Tokens per second are of this run, not of what was there before."""

    def __init__(self, rows: int, done: int, *, hidden: bool) -> None:
        from tqdm import tqdm

        every_s = _ON_SCREEN_S if sys.stderr.isatty() else _IN_A_LOG_S
        self._bar: Any = tqdm(
            total=rows, initial=done, unit="row", disable=hidden, mininterval=every_s, maxinterval=every_s, leave=True
        )
        self._started = time.monotonic()
        self._tokens = 0
        self._edges: dict[str, EdgeCounters] = {}

    def add(self, rows: int, answer: Answer | None = None) -> None:
        """So many rows more are settled, the last of them by this answer."""
        if answer is not None:
            self._tokens += len(answer.token_ids)
            self._edges = merge_edges([*self._edges.values(), *answer.edges])
        self._bar.set_postfix(self._figures(), refresh=False)
        self._bar.update(rows)

    def _figures(self) -> dict[str, str]:
        told = {"tokens/s": f"{self._tokens / max(1e-9, time.monotonic() - self._started):.0f}"}
        return told | {name: f"{edge.acceptance_rate:.0%}" for name, edge in self._edges.items() if edge.num_drafts}

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
