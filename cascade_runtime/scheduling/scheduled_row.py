"""`ScheduledRow`: one request inside one stage, as far as scheduling is concerned."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_runtime.scheduling.standing import Standing


@dataclass(eq=False)
class ScheduledRow:
    """One request in one stage.

    expect_drafts: whether upstream takes part in it. since: when the current wait for drafts began. heard: the last
    word from downstream. late: the wait is over. missed: waits in vain in a row. context: positions its KV row holds.
    prompt_left: those of its prompt that are still to be fed. prefix: rows with the same one begin with the same
    prompt. path: the product of the model's own probabilities for what it has drafted since the last word from
    downstream. alone: the next pass looks at no drafts, the last one was spoilt by them. upstream, downstream: which
    replicas of the stages next door have this request.
    """

    standing: Standing
    expect_drafts: bool = True
    since: float = 0.0
    heard: float = 0.0
    missed: int = 0
    late: bool = False
    passes: int = 0
    context: int = 0
    prompt_left: int = 0
    prefix: str = ""
    path: float = 1.0
    alone: bool = False
    upstream: int = 0
    downstream: int = 0
    restarted: float | None = None  # when upstream was last sent back; None once its first new drafts are here
    produced: float | None = (
        None  # when it last grew, while it could have grown on; time in passes with prompts left out
    )

    @property
    def handle(self) -> int:
        """The request's number."""
        return self.standing.request

    @property
    def fresh(self) -> bool:
        """It has never run: its next pass is its prefill."""
        return self.passes == 0

    @property
    def untouched(self) -> bool:
        """Nothing of its prompt was fed yet."""
        return self.prompt_left == self.context
