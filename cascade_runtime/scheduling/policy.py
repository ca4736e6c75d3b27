"""What a stage's policy is asked, and the policies that measure nothing: `Policy` (fixed figures), `FreeRunning`,
`PreVerify` and `LockStep`.

    need(row)           drafts a row waits for before a pass is spent on it (m)
    pick(ready, others) who is in the pass, and over how many drafts each; empty: rather wait for the others
    grant(row)          what upstream may do: window, block, relay
    observe_*           what came of it

A policy steers speed and never a token. It has no clock and does no I/O; it may be wrong without harm to an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cascade_runtime.messages import MAX_WINDOW, Grant
from cascade_runtime.scheduling.scheduled_row import ScheduledRow

Picked = list[tuple[ScheduledRow, int]]
TRIAL_WINDOW = 4  # of a row that tries drafts where nobody else makes any
_PACE_FORGET, _LATE_FORGET = 0.95, 0.7
_OTHER_PACE = 2.0  # times as quick or slow as usual


@dataclass(frozen=True)
class Decision:
    """What a policy has settled on, and why. A pass looks at min_drafts to max_drafts of a row's drafts; rates are
    predicted tokens per second, 0 where nothing was predicted. They rest on the pace (seconds per draft token of a
    row) and the restart (seconds from a refusal until drafts come again).
    """

    min_drafts: int
    window: int
    max_drafts: int = 0
    speculate: bool = True
    relay: bool = False
    reason: str = "as configured"
    tokens_per_s: float = 0.0
    tokens_per_s_alone: float = 0.0
    pace_s: float = 0.0
    restart_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for metrics and traces."""
        return asdict(self)


class Policy:
    """Fixed: wait for `min_drafts`, let the drafter run `window` ahead, and send it back in blocks of `block`."""

    hides_prefill = True  # a prompt is fed at once, while drafters begin
    min_confidence = 0.0  # a drafter goes on while its drafts' joint probability, in its own eyes, is at least this

    def __init__(self, min_drafts: int, window: int = MAX_WINDOW, block: int = 1, sends: int = 1) -> None:
        self.decision = Decision(min_drafts, window, min_drafts)
        self._grant = Grant(window, block)
        self._first = Grant(MAX_WINDOW, sends)
        self._late_s = self._late = 0.0
        self._seconds = self._tokens = self._work_s = self._worked_for = 0.0

    def need(self, row: ScheduledRow) -> int:
        """Drafts to wait for."""
        return self.decision.min_drafts

    def pick(self, ready: Sequence[ScheduledRow], others: Sequence[ScheduledRow]) -> Picked:
        """Everyone who is ready, over the drafts of one block."""
        return [(row, self.limit(row)) for row in ready]

    def limit(self, row: ScheduledRow) -> int:
        """The most drafts a pass looks at."""
        return 0 if row.alone else self.decision.max_drafts

    def grant(self, row: ScheduledRow) -> Grant:
        """What upstream may do for this row."""
        return self._grant

    def first_grant(self) -> Grant:
        """What a row may do before its downstream has spoken: what was granted last, to whichever row. Where nobody
        wants drafts it makes a few, for it may be the one that is to try them again.
        """
        return self._first

    @property
    def pace_us(self) -> int:
        """Microseconds a token of a row has cost lately, 0 before the first."""
        return round(1e6 * self._seconds / self._tokens) if self._tokens else 0

    def observe_pace(self, seconds: float, tokens: int) -> None:
        """A row grew by so many tokens within so many seconds, during which it could have grown. When the last few took
        a far other time than usual, they alone count.
        """
        self._late_s = _LATE_FORGET * self._late_s + seconds
        self._late = _LATE_FORGET * self._late + tokens
        self._seconds = _PACE_FORGET * self._seconds + seconds
        self._tokens = _PACE_FORGET * self._tokens + tokens
        late, usual = self._late_s * self._tokens, self._seconds * self._late
        if max(late, usual) > _OTHER_PACE * min(late, usual):
            self._seconds, self._tokens = self._late_s, self._late

    @property
    def work_us(self) -> int:
        """Microseconds of shared cores that a token has cost lately, with all levels below; 0 before the first."""
        return round(1e6 * self._work_s / self._worked_for) if self._worked_for else 0

    def observe_work(self, seconds: float, looked: int, tokens: int) -> None:
        """A pass took so much of shared cores, looked at so many drafts, and brought so many tokens."""
        self._work_s = _PACE_FORGET * self._work_s + seconds
        self._worked_for = _PACE_FORGET * self._worked_for + tokens

    def observe_pass(self, rows: int, tokens: int, context: int, seconds: float, work_s: float = 0.0) -> None:
        """A pass without prompts ran, and took so much of the cores that neighbours use as well."""

    def passed(self) -> None:
        """A pass ran, of whatever kind: time to look at the figures."""

    def observe_settled(self, drafted: int, accepted: int, *, relayed: bool) -> None:
        """A row's drafts were looked at; `relayed`: the neighbour had passed them on unverified."""

    def observe_hints(self, pace_us: int, work_us: int = 0, *, relayed: bool) -> None:
        """Drafts came, made at this pace and for so much time of shared cores."""

    def observe_restart(self, seconds: float, drafts: int, pace_us: int) -> None:
        """After a refusal, the first `drafts` new ones took so long."""

    def observe_silence(self, seconds: float) -> None:
        """A row waited so long for drafts, and none came."""

    def observe_grant(self, grant: Grant) -> None:
        """Downstream has granted this to some row."""
        self._first = grant if grant.window else replace(grant, window=TRIAL_WINDOW)


class FreeRunning(Policy):
    """Never wait for drafts, and look at all there are (PipeSpec, arXiv 2505.01572)."""

    def __init__(self, window: int = MAX_WINDOW, sends: int = 1) -> None:
        super().__init__(0, window, 1, sends)
        self.decision = Decision(0, window, MAX_WINDOW)


class PreVerify(Policy):
    """Wait for a block, and look at no more; with no draft in sight, as after a refusal, go on alone at once, while the
    next are made. Of each block, the pass before has said the first token itself.

    The rule of PEARL (Liu et al., ICLR 2025) but for its common step: the pass alone is its pre-verify, which judges
    the first draft once both are there, the pass over a block its post-verify. DSI with one server (Timor et al., ICLR
    2025) does the same, with a block of its lookahead.
    """

    def __init__(self, block: int, window: int = MAX_WINDOW, sends: int = 1) -> None:
        super().__init__(max(1, block - 1), window, 1, sends)

    def need(self, row: ScheduledRow) -> int:
        """A block, of a drafter that was right so far."""
        return self.decision.min_drafts if row.standing.hints else 0


class LockStep(Policy):
    """One stage at a time: a pass starts when every row has its block, and nobody drafts while downstream runs."""

    hides_prefill = False

    def __init__(self, block: int, sends: int = 1) -> None:
        super().__init__(block, window=block, block=max(1, block), sends=sends)
        self._first = Grant(sends, sends)

    def pick(self, ready: Sequence[ScheduledRow], others: Sequence[ScheduledRow]) -> Picked:
        """Nobody before everybody is ready."""
        return [] if others else super().pick(ready, others)

    def observe_grant(self, grant: Grant) -> None:
        """A new row drafts a block, whatever the others do."""

    def grant(self, row: ScheduledRow) -> Grant:
        """Draft a block, unless this stage itself waits for its downstream."""
        return Grant(0, self._grant.block) if row.standing.blocked else self._grant
