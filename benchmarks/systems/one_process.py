"""Systems whose rule needs no overlap: one process and one thread each, beside the target alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import load_recipe
from cascade_runtime.decoding.lookup import LookupDecoder, Memory
from cascade_runtime.engine import Engine
from cascade_runtime.in_turns import InTurns

_TOGETHER = 4  # systems that are compared with one run of the target alone


class System:
    """One recipe's engine; recordings are seen once."""

    def __init__(self, path: Path) -> None:
        self.name, self.recipe = path.stem, load_recipe(path)
        self.engine = InTurns(self.recipe) if self.recipe.cascade.loading == "in_turns" else Engine.load(self.recipe)
        if isinstance(self.engine, Engine):
            _see_once(self.engine)
        self.rate = 0.0  # tokens per second of the last run
        self.ratios: dict[float, list[float]] = {}  # beside the target alone, run shortly before
        self.answers: dict[float, list[Answer]] = {}

    @property
    def kind(self) -> str:
        """What its answers are promised to be."""
        rule = self.recipe.cascade.acceptance
        return "lossy" if rule.startswith("lossy") else "in law" if rule in ("ratio", "traversal") else "exact"

    def run(self, requests: Sequence[GenerateRequest], temperature: float) -> None:
        """Answer all, one at a time; a system that loads its models in turn, in one batch."""
        if isinstance(self.engine, Engine) and isinstance(memory := self.engine.levels[0].decoder, LookupDecoder):
            memory.memory = Memory()  # it has not been asked these before
        start, batch = time.perf_counter(), isinstance(self.engine, InTurns)
        shares = [requests] if batch else [[request] for request in requests]
        answers = [each for share in shares for each in _answers(self.engine.run(share))]
        seconds = time.perf_counter() - start
        self.answers[temperature] = answers
        self.rate = sum(len(each.token_ids) for each in answers) / seconds

    def row(self, alone: System, temperature: float) -> dict[str, Any]:
        """Its figures at a temperature."""
        answers, told = self.answers[temperature], alone.answers[temperature]
        return figures(answers, told, self.ratios[temperature]) | {"promised": self.kind}


def figures(answers: Sequence[Answer], alone: Sequence[Answer], ratios: Sequence[float]) -> dict[str, Any]:
    """Of a system's answers, beside those of the target alone, and of its speed over that."""
    tokens, passes = sum(len(each.token_ids) for each in answers), sum(each.target_passes for each in answers)
    last = [each.edges[-1] for each in answers if each.edges]
    tested = sum(sum(edge.num_tested_tokens_per_pos) for edge in last)
    kept = sum(sum(edge.num_accepted_tokens_per_pos) for edge in last)
    return {
        "tokens_per_pass": round(tokens / passes, 3),
        "speedup": round(statistics.median(ratios), 3),
        "exact": all(a.token_ids == b.token_ids for a, b in zip(answers, alone, strict=True)),
        "agreement": round(kept / tested, 4) if tested else None,
    }


def show(name: str, row: dict[str, Any]) -> None:
    """One line. Raises `AssertionError` where an answer that was promised is another."""
    agreement = f"{row['agreement']:.1%}" if row["agreement"] is not None else "-"
    found = "equal" if row["exact"] else "other tokens"
    measured = f"{row['tokens_per_pass']:>12.2f}{row['speedup']:>8.2f}x{agreement:>11}"
    print(f"  {name:<28}{measured}  {row['promised']}, {found}", flush=True)
    assert row["exact"] or row["promised"] != "exact", f"{name}: not the target's answers"


def head(title: str) -> None:
    """Above the lines."""
    print(f"\n{title}")
    print(f"  {'':<28}{'tokens/pass':>12}{'speedup':>9}{'agreement':>11}  promised, found", flush=True)


def compare(
    systems: Sequence[System], requests: Sequence[GenerateRequest], temperature: float, rounds: int
) -> dict[str, Any]:
    """Every system's row, the first the target alone."""
    alone = systems[0]
    for round_ in range(rounds + 1):  # the first to warm up
        for i, system in enumerate(systems):
            if not i % _TOGETHER:
                alone.run(requests, temperature)
            if system is not alone:
                system.run(requests, temperature)
            if round_:
                system.ratios.setdefault(temperature, []).append(system.rate / alone.rate)
    head(f"temperature {temperature}, {len(requests)} questions, {rounds} rounds")
    told: dict[str, Any] = {}
    for system in systems:
        row = system.row(alone, temperature)
        show(system.name, row)
        told[system.name if not temperature else f"{system.name} at {temperature}"] = row
    return told


def _see_once(engine: Engine) -> None:
    """What recordings look like to the models is computed once."""
    see, seen = engine.front_end.see, dict[tuple[int, bool], Any]()

    def once(events: Any, *, speculate: bool = True) -> Any:
        key = (id(events), speculate)
        if key not in seen:
            seen[key] = see(events, speculate=speculate)
        return seen[key]

    engine.front_end.see = once  # type: ignore[method-assign]


def _answers(updates: Iterable[tuple[int, Any]]) -> list[Answer]:
    """Last words by request. Raises what came instead of an answer."""
    last = {index: update for index, update in updates if isinstance(update, Answer | Exception)}
    for update in last.values():
        if isinstance(update, Exception):
            raise update
    return [last[index] for index in sorted(last)]
