"""`Report`: the figures of a whole output, those of earlier runs included: rows, errors, accuracy, acceptance, BLEU and
CIDEr.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cascade_runtime.batch.cider import Cider
from cascade_runtime.batch.scoring import words
from cascade_runtime.errors import InputError

_BLEU_ORDER = 4
_OF_THE_ROW = {kind.__name__ for kind in (InputError, *InputError.__subclasses__())}


@dataclass
class Report:
    """Counts over the rows of an output. failed: errors that are the cascade's, not the row's. edges: edge -> [drafted,
    accepted]. bleu4: of open answers against the right ones, 0 to 100, where the extra `qa` is installed; cider: the
    same by CIDEr-D, 0 to 10.
    """

    rows: int = 0
    answers: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    failed: int = 0
    choices: int = 0
    choices_right: int = 0
    choices_unnamed: int = 0
    open: int = 0
    open_same: int = 0
    open_contained: int = 0
    edges: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    bleu4: float | None = None
    cider: float | None = None

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Report:
        """The report that `to_dict` told."""
        counts: dict[str, Any] = {item.name: told[item.name] for item in fields(cls) if item.name in told}
        counts["errors"] = Counter(told["errors"])
        return cls(**counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the shares that follow from the counts; None where there is nothing to divide by."""
        return {
            **asdict(self),
            "errors": dict(self.errors),
            "accuracy": _share(self.choices_right, self.choices),
            "open_exact": _share(self.open_same, self.open),
            "open_contains": _share(self.open_contained, self.open),
            "acceptance": {edge: _share(accepted, drafted) for edge, (drafted, accepted) in self.edges.items()},
        }

    def text(self) -> str:
        """A line per kind of figure."""
        errors = ", ".join(f"{kind} {count}" for kind, count in self.errors.most_common())
        errors = f"; {errors}" if errors else ""
        lines = [f"{self.rows} rows: {self.answers} answers of {self.tokens} tokens{errors}"]
        if self.choices:
            unnamed = f", {self.choices_unnamed} named no option" if self.choices_unnamed else ""
            lines.append(f"multiple choice: {self.choices_right} of {self.choices} right{unnamed}")
        if self.open:
            bleu = "" if self.bleu4 is None else f", BLEU-4 {self.bleu4:.1f}"
            bleu += "" if self.cider is None else f", CIDEr-D {self.cider:.2f}"
            lines.append(
                f"open answers: {self.open_same} of {self.open} to the word, {self.open_contained} contain it{bleu}"
            )
        for edge, (drafted, accepted) in self.edges.items():
            lines.append(f"{edge}: accepted {accepted} of {drafted} draft tokens")
        return "\n".join(lines)


def report(windows: Iterable[Sequence[Mapping[str, Any]]]) -> Report:
    """The figures of an output's rows (`Outcome.to_dict`), a stretch at a time."""
    told, bleu, cider = Report(), _Bleu(), Cider()
    for window in windows:
        for row in window:
            _count(told, row)
            if row["contained"] is not None:
                bleu.add(row["text"], row["answer"])
                cider.add(words(row["text"]), words(row["answer"]))
    told.bleu4, told.cider = bleu.score(), cider.score()
    return told


def _count(told: Report, row: Mapping[str, Any]) -> None:
    told.rows += 1
    if row["error_kind"] is not None:
        told.errors[row["error_kind"]] += 1
        told.failed += row["error_kind"] not in _OF_THE_ROW
        return
    told.answers += 1
    told.tokens += len(row["token_ids"])
    if row["contained"] is not None:
        told.open += 1
        told.open_same += row["correct"]
        told.open_contained += row["contained"]
    elif row["correct"] is not None:
        told.choices += 1
        told.choices_right += row["correct"]
        told.choices_unnamed += row["choice"] is None
    for edge in row["edges"]:
        counts = told.edges.setdefault(edge["edge"], [0, 0])
        counts[0] += edge["drafted"]
        counts[1] += edge["accepted"]


class _Bleu:
    """BLEU-4 of a corpus (Papineni et al., ACL 2002) by sacrebleu, from sums over its answers: none of them is kept."""

    def __init__(self) -> None:
        try:
            self._bleu: Any = importlib.import_module("sacrebleu.metrics").BLEU(
                max_ngram_order=_BLEU_ORDER, effective_order=True
            )
        except ImportError:
            self._bleu = None
        self._matches, self._possible = [0] * _BLEU_ORDER, [0] * _BLEU_ORDER
        self._said = self._right = 0

    def add(self, said: str, right: str) -> None:
        """One answer and the right one."""
        if self._bleu is None:
            return
        score = self._bleu.sentence_score(said, [right])
        self._matches = [a + b for a, b in zip(self._matches, score.counts, strict=True)]
        self._possible = [a + b for a, b in zip(self._possible, score.totals, strict=True)]
        self._said += score.sys_len
        self._right += score.ref_len

    def score(self) -> float | None:
        """The score so far; None without sacrebleu or before the first answer."""
        if self._bleu is None or not self._right:
            return None
        found = self._bleu.compute_bleu(self._matches, self._possible, self._said, self._right)
        return round(float(found.score), 2)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
