"""Counts of speculation, in vLLM's names plus the `edge` they belong to, and what follows from them.

An edge is a pair of neighbouring stages, "light-mid": the first drafts, the second verifies. One draft is one verified
block; positions count from 0 within it. Example: a block of 4 of which 2 were accepted adds

    num_drafts 1   num_draft_tokens 4   num_accepted_tokens 2
    num_draft_tokens_per_pos [1 1 1 1]   num_accepted_tokens_per_pos [1 1 0 0]

Acceptance is a run: position i is only *tested* when all before it were accepted. The hazard at i is the share of
tested tokens there that were refused; it does not fall merely because earlier positions failed, as the plain
per-position rate does. Here it is [0, 0, 1, -]: position 3 was never tested.

`prometheus_text` writes the counters of a whole pipeline in the text format of Prometheus.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cascade_runtime.errors import InputError

_PREFIX = "spec_decode_"
_MAX_NAME, _MAX_POSITIONS = 128, 8192  # of an edge that somebody else tells of


@dataclass
class EdgeCounters:
    """Counters of one edge; they only rise. Not locked: one stage's loop writes them, others get `to_dict`."""

    edge: str
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_bonus_tokens: int = 0
    num_draft_tokens_per_pos: list[int] = field(default_factory=list)
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)
    num_tested_tokens_per_pos: list[int] = field(default_factory=list)

    def observe(self, drafted: int, accepted: int, bonus: int = 1) -> None:
        """One verified block: `accepted` of `drafted` tokens, and `bonus` tokens of the verifier's own (0 at an end).

        Raises `InputError` unless 0 <= accepted <= drafted and bonus >= 0. A pass without drafts is not a draft:
        observe(0, 0) counts nothing.
        """
        if not 0 <= accepted <= drafted or bonus < 0:
            raise InputError("acceptance", (drafted, accepted, bonus), "0 <= accepted <= drafted, bonus >= 0")
        if not drafted:
            return
        self._widen(drafted)
        self.num_drafts += 1
        self.num_draft_tokens += drafted
        self.num_accepted_tokens += accepted
        self.num_bonus_tokens += bonus
        for position in range(drafted):
            self.num_draft_tokens_per_pos[position] += 1
        for position in range(accepted):
            self.num_accepted_tokens_per_pos[position] += 1
        for position in range(min(accepted + 1, drafted)):
            self.num_tested_tokens_per_pos[position] += 1

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of all drafted tokens; nan before the first draft."""
        return _ratio(self.num_accepted_tokens, self.num_draft_tokens)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens won per verified block, the verifier's own (bonus or correction) included; nan before the first."""
        return _ratio(self.num_accepted_tokens + self.num_bonus_tokens, self.num_drafts)

    @property
    def acceptance_rate_per_pos(self) -> list[float]:
        """vLLM's: accepted at a position over the number of drafts (of any length)."""
        return [_ratio(count, self.num_drafts) for count in self.num_accepted_tokens_per_pos]

    @property
    def acceptance_hazard_per_pos(self) -> list[float]:
        """Chance that a token at a position is refused, given that all before it were accepted; nan if never tested."""
        return [
            _ratio(tested - accepted, tested)
            for tested, accepted in zip(self.num_tested_tokens_per_pos, self.num_accepted_tokens_per_pos, strict=True)
        ]

    def merge(self, other: EdgeCounters) -> EdgeCounters:
        """The sum of two counters of the same edge, as a new one; of different edges raises `InputError`."""
        if other.edge != self.edge:
            raise InputError("edge", other.edge, f"counters of {self.edge!r}")
        merged = EdgeCounters(
            self.edge,
            self.num_drafts + other.num_drafts,
            self.num_draft_tokens + other.num_draft_tokens,
            self.num_accepted_tokens + other.num_accepted_tokens,
            self.num_bonus_tokens + other.num_bonus_tokens,
        )
        for part in (self, other):
            merged._widen(len(part.num_draft_tokens_per_pos))
            for name in _PER_POS:
                into = getattr(merged, name)
                for position, count in enumerate(getattr(part, name)):
                    into[position] += count
        return merged

    def to_dict(self) -> dict[str, object]:
        """Plain JSON: every count and every derived figure under vLLM's name, None where it is not defined yet."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        per_pos = {name: list(getattr(self, name)) for name in _PER_POS}
        return {
            "edge": self.edge,
            **{_PREFIX + name: value for name, value in (counts | per_pos).items()},
            "acceptance_rate": _plain(self.acceptance_rate),
            "mean_acceptance_length": _plain(self.mean_acceptance_length),
            "acceptance_rate_per_pos": [_plain(value) for value in self.acceptance_rate_per_pos],
            "acceptance_hazard_per_pos": [_plain(value) for value in self.acceptance_hazard_per_pos],
        }

    @classmethod
    def from_dict(cls, data: object) -> EdgeCounters:
        """The counts of `to_dict`; what follows from them is computed again. Raises `InputError`."""
        if not isinstance(data, Mapping) or not isinstance(data.get("edge"), str) or len(data["edge"]) > _MAX_NAME:
            raise InputError("edge", type(data).__name__, f"an object with the edge's name, up to {_MAX_NAME} letters")
        told: dict[str, Any] = {name: data.get(_PREFIX + name) for name in (*_COUNTS, *_PER_POS)}
        for name in _PER_POS:
            values = told[name]
            if not isinstance(values, list) or len(values) > _MAX_POSITIONS or not all(map(_is_count, values)):
                raise InputError(_PREFIX + name, type(values).__name__, f"a list of up to {_MAX_POSITIONS} counts")
        for name in _COUNTS:
            if not _is_count(told[name]):
                raise InputError(_PREFIX + name, type(told[name]).__name__, "a count from 0 to 2**53")
        return cls(data["edge"], **told)

    def _widen(self, positions: int) -> None:
        for name in _PER_POS:
            counts = getattr(self, name)
            counts.extend([0] * (positions - len(counts)))


_COUNTS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_bonus_tokens")
_PER_POS = ("num_draft_tokens_per_pos", "num_accepted_tokens_per_pos", "num_tested_tokens_per_pos")


def merge_edges(counters: Iterable[EdgeCounters]) -> dict[str, EdgeCounters]:
    """Counters of several stages and runs, summed per edge."""
    merged: dict[str, EdgeCounters] = {}
    for one in counters:
        merged[one.edge] = merged[one.edge].merge(one) if one.edge in merged else one.merge(EdgeCounters(one.edge))
    return merged


def prometheus_text(stats: Mapping[str, Mapping[str, Any]]) -> str:
    """What a pipeline's `stats()` says ("controller", then every language stage), in Prometheus' text format 0.0.4.

    What vLLM counts has vLLM's name (prefix `vllm:`), with an `edge` label where it counts speculation; all else the
    prefix `cascade:` and a `stage` label. `cascade:policy_*` is what each stage's policy has decided.
    """
    families: dict[str, list[str]] = {}
    edges: list[EdgeCounters] = []

    def add(name: str, value: float, **labels: object) -> None:
        said = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        families.setdefault(name, []).append(f"{name}{{{said}}} {value:.15g}" if said else f"{name} {value:.15g}")

    for name, counted in stats.items():
        if name == "controller":
            add("vllm:num_requests_running", counted["running"])
            add("vllm:num_requests_waiting", counted["waiting"])
            add("cascade:num_requests_cancelled_total", counted["cancelled"])
            continue
        for key, metric in _STAGE_METRICS.items():
            add(f"cascade:{metric}", counted[key], stage=name)
        decision = counted["decision"]
        for key in _DECISION:
            add(f"cascade:policy_{key}", decision[key], stage=name)
        add("cascade:policy_info", 1, stage=name, reason=decision["reason"])
        if counted["edge"]["edge"] != name.partition(".")[0]:  # else the first stage: nobody drafts for it
            edges.append(EdgeCounters.from_dict(counted["edge"]))
    for named, edge in merge_edges(edges).items():  # replicas of a stage count together
        for count in _COUNTS:
            add(_metric(count), getattr(edge, count), edge=named)
        for count in _PER_POS:
            for position, value in enumerate(getattr(edge, count)):
                add(_metric(count), value, edge=named, position=position)
    lines: list[str] = []
    for name, samples in families.items():
        lines += [f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}", *samples]
    return "\n".join(lines) + "\n"


_STAGE_METRICS = {
    "passes": "stage_passes_total",
    "tokens_fed": "stage_tokens_fed_total",
    "busy_s": "stage_busy_seconds_total",
    "awake_s": "stage_awake_seconds_total",
    "refused_messages": "stage_refused_messages_total",
    "active_rows": "stage_active_rows",
    "free_slots": "stage_free_slots",
}
_DECISION = ("min_drafts", "window", "speculate", "relay", "tokens_per_s", "tokens_per_s_alone")
_OF_VLLM = ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")


def _metric(count: str) -> str:
    return f"{'vllm' if count in _OF_VLLM else 'cascade'}:{_PREFIX}{count}_total"


def _escaped(label: object) -> str:
    return str(label).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
