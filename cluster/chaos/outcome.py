"""`Outcome`: what came of a run with faults, as a table and as one line of JSON."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cluster.chaos.load import Heard, Sent
from cluster.chaos.plan import Fault
from cluster.supervision.supervisor import Recovery


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Seconds unless a name says otherwise; a rate is requests a second.

    lost: neither an answer nor an error came. duplicated: more than one last word came. changed: answers whose tokens
    are not the clean ones. client_visible_errors: what the client was told instead of an answer. retried: requests
    that the transport asked again. recovery: from a fault until its stage was whole again, links included; without
    load: but for what starting a process and loading its model took. gap: between one answer and the next. leaked_fds:
    of this process, whose stages' are new with every fault.
    """

    recipe: str
    seed: int
    minutes: float
    capacity_per_s: float
    rate_per_s: float
    sent: int
    ok: int
    identical: int
    retried: int
    lost: int
    duplicated: int
    changed: int
    client_visible_errors: int
    errors: dict[str, int]
    faults: int
    faults_by_kind: dict[str, int]
    faults_skipped: int
    restarts: int
    recovery_p50_s: float
    recovery_p95_s: float
    recovery_with_load_p50_s: float
    recovery_with_load_p95_s: float
    longest_gap_s: float
    clean_longest_gap_s: float
    ttft_p99_ms: float
    clean_ttft_p99_ms: float
    memory_slope_mb_per_h: float
    leaked_slots: int
    leaked_refs: int
    leaked_fds: int

    @property
    def passed(self) -> bool:
        """Whether nobody outside has noticed anything but time, and nothing is left behind."""
        wrong = self.lost or self.duplicated or self.changed or self.client_visible_errors
        return not (wrong or self.leaked_slots or self.leaked_refs or self.leaked_fds)

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        return {**asdict(self), "passed": self.passed}

    def text(self) -> str:
        """A line each."""
        rows = {
            "requests": f"{self.sent} sent at {self.rate_per_s:.2f}/s ({self.capacity_per_s:.2f}/s is all it can)",
            "answers": f"{self.ok}, {self.identical} of them token for token the clean run's, {self.changed} not",
            "lost, duplicated": f"{self.lost}, {self.duplicated}",
            "errors seen": f"{self.client_visible_errors} {self.errors or ''}".rstrip(),
            "asked again": f"{self.retried}",
            "faults": ", ".join(f"{count} {kind}" for kind, count in self.faults_by_kind.items()) or "none",
            "recovery without load": f"p50 {self.recovery_p50_s:.2f} s, p95 {self.recovery_p95_s:.2f} s",
            "recovery with it": f"p50 {self.recovery_with_load_p50_s:.2f} s, p95 {self.recovery_with_load_p95_s:.2f} s",
            "longest gap": f"{self.longest_gap_s:.2f} s, without faults {self.clean_longest_gap_s:.2f} s",
            "p99 to first token": f"{self.ttft_p99_ms:.0f} ms, without faults {self.clean_ttft_p99_ms:.0f} ms",
            "memory": f"{self.memory_slope_mb_per_h:+.1f} MB/h over {self.minutes:g} minutes",
            "left behind": f"{self.leaked_slots} slots, {self.leaked_refs} refs, {self.leaked_fds} descriptors",
        }
        return "\n".join(f"{name:<22} {said}" for name, said in rows.items())


class Tally:
    """The part of an outcome that compares requests with their clean answers, one by one."""

    def __init__(self, clean: Sequence[Heard]) -> None:
        self._clean = clean
        self._sent = self._ok = self._identical = self._lost = self._duplicated = 0
        self._errors = Counter[str]()

    def add(self, sent: Sent) -> None:
        """One that has ended, or will not."""
        self._sent += 1
        self._lost += not sent.outcomes
        self._duplicated += len(sent.outcomes) > 1
        if sent.answer is not None:
            self._ok += 1
            self._identical += sent.answer.token_ids == self._clean[sent.kind].token_ids
        elif sent.outcomes:
            self._errors[type(sent.outcomes[0]).__name__] += 1

    def told(self) -> dict[str, object]:
        """The sums."""
        return {
            "sent": self._sent,
            "ok": self._ok,
            "identical": self._identical,
            "changed": self._ok - self._identical,
            "lost": self._lost,
            "duplicated": self._duplicated,
            "client_visible_errors": sum(self._errors.values()),
            "errors": dict(self._errors),
        }


def count_answers(sent: Sequence[Sent], clean: Sequence[Heard]) -> dict[str, object]:
    """The tally of all of them."""
    tally = Tally(clean)
    for each in sent:
        tally.add(each)
    return tally.told()


def recoveries_of(
    done: Sequence[tuple[Fault, float]], recoveries: Sequence[Recovery], kind: str = ""
) -> list[tuple[float, float]]:
    """For each fault (of this kind) that led to a restart: seconds from it until its stages were whole, and those of
    them in which none of its stages was starting a process or loading a model.
    """
    caused: list[list[Recovery]] = [[] for _ in done]
    for each in recoveries:  # by the last fault before it that befell its stage
        befell = [number for number, (fault, at) in enumerate(done) if at <= each.noticed_at and _befalls(fault, each)]
        if befell and not (caused[befell[-1]] and done[befell[-1]][0].stage):
            caused[befell[-1]].append(each)
    found: list[tuple[float, float]] = []
    for (fault, at), mine in zip(done, caused, strict=True):
        if mine and fault.kind == (kind or fault.kind) != "pause":
            up_at = max(each.up_at for each in mine)
            found.append((up_at - at, up_at - at - _covered([(each.begun_at, each.loaded_at) for each in mine])))
    return found


def _befalls(fault: Fault, recovery: Recovery) -> bool:
    return fault.stage in ("", recovery.stage)


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that are in one of these spans or more."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def longest_gap_s(sent: Sequence[Sent]) -> float:
    """Between one answer and the next."""
    ends = sorted(each.ended for each in sent if each.answer is not None)
    return max((b - a for a, b in itertools.pairwise(ends)), default=0.0)
