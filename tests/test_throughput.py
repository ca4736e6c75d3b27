"""The throughput benchmark: its figures are those of its answers, its page is whole, and it runs on a cluster."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from threaded_pipeline import threaded_pipeline

from benchmarks.throughput.__main__ import main
from benchmarks.throughput.charts import bars, columns, distributions, shares
from benchmarks.throughput.measure import Run, Side, percentile
from cascade_runtime.api import Answer, GenerateRequest, Timings
from cascade_runtime.config import Recipe
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.tracing import Share, Trace, Tracer

RECIPE = Path(__file__).parents[1] / "benchmarks" / "recipes" / "emulated_5_25_100.toml"
FASTER = [f"stages.{name}.profile.base_ms={ms}" for name, ms in (("light", 0.5), ("mid", 1.0), ("heavy", 4.0))]


def answer(tokens: int, ttft_ms: float, total_ms: float, accepted: int) -> Answer:
    edge = EdgeCounters("light-heavy")
    edge.observe(4, accepted)
    masks = tuple(3 if k < accepted else 2 for k in range(tokens))
    timings = Timings(ttft_ms, total_ms)
    ids = tuple(range(tokens))
    return Answer("r", "", ids, ("",) * tokens, "stop", ("light", "heavy"), masks, timings, (edge,), target_passes=2)


def test_figures_of_a_side_are_those_of_its_answers() -> None:
    tracer = Tracer("heavy")
    tracer.record(0, 10**9, (Share(0, "verify"),))
    answers = [answer(5, 10.0, 50.0, 4), answer(3, 30.0, 40.0, 1), answer(1, 20.0, 20.0, 0)]
    side = Side("cascade", [Run(answers, 0.5, [tracer.snapshot()]), Run(answers[:1], 1.0, [tracer.snapshot()])])
    assert side.tokens_per_s == statistics.median([9 / 0.5, 5 / 1.0])
    assert side.ttft_ms == [10.0, 10.0, 20.0, 30.0]
    assert side.tpot_ms == [5.0, 10.0, 10.0]  # an answer of one token has none
    edge = side.edges["light-heavy"]
    assert edge.acceptance_rate == 9 / 16 and edge.mean_acceptance_length == (9 + 4) / 4
    assert side.said_by == {"light": 9, "heavy": 5}
    told = side.to_dict()
    assert told["ttft_ms_p50"] == 10.0 and told["ttft_ms_p95"] == 30.0
    assert told["busy_share"] == {"heavy": 1.0} and told["latency_hidden"] is None


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 21)]
    assert [percentile(values, percent) for percent in (5, 50, 95, 100)] == [1.0, 10.0, 19.0, 20.0]
    assert percentile([7.0], 95) == 7.0 and percentile([], 50) is None


def test_charts_are_drawn_to_scale_and_quote_what_they_name() -> None:
    name = '<b> & "c"'
    drawn = [
        bars([(name, 2.0, name, "#000"), ("half", 1.0, "1", "#000")]),
        shares([(name, 3.0, "#000"), ("b", 1.0, "#111")]),
        distributions({name: ([1.0, 2.0, 8.0], "#000"), "none": ([], "#111")}, "ms"),
        columns([0.1, None, 0.2], [9, 0, 3], "#000"),
    ]
    trees = [ElementTree.fromstring(text) for text in drawn]
    widths = [float(each.get("width", 0)) for each in trees[0].iter("rect") if each.get("fill") == "#000"]
    assert widths[0] == 2 * widths[1]
    assert next(text.text for text in trees[1].iter("text")) == "75%"
    heights = [float(each.get("height", 0)) for each in trees[3].iter("rect")]
    assert heights[1] == 2 * heights[0] and len(heights) == 2  # nothing where nothing was tested


class Pipeline:
    """A pipeline of threads in place of one of Ray actors."""

    def __init__(self, recipe: Recipe, controller: Any) -> None:
        self.recipe, self.controller = recipe, controller
        self.stages = {name: controller.stages[name] for name in recipe.cascade.levels}

    def generate(self, request: GenerateRequest) -> Answer:
        return self.controller.generate(request)

    def trace(self) -> list[Trace]:
        vision = (self.controller.stages["encoder"], self.controller.stages["adapter"])
        return [handle.stage.trace() for handle in (*vision, *self.stages.values())]


@contextmanager
def launched(recipe: Recipe, **options: object) -> Iterator[Pipeline]:
    with threaded_pipeline(recipe) as controller:
        yield Pipeline(recipe, controller)


def test_it_runs_and_ends_in_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.throughput.__main__.launch", launched)
    page = tmp_path / "page.html"
    options = [part for override in FASTER for part in ("--set", override)]
    arguments = ["--recipe", str(RECIPE), "--streams", "2", "--requests", "1", "--rounds", "1", "--max-tokens", "12"]
    assert main([*arguments, *options, "--html", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])
    assert told["identical"] and told["alone"]["tokens"] == told["cascade"]["tokens"] == 24
    assert told["tps"] == pytest.approx(told["cascade"]["tokens_per_s"]) and told["tps_alone"] > 0
    assert set(told["edges"]) <= {"light-mid", "mid-heavy"} and sum(told["said_by"].values()) == 24
    assert all(held["peak"] > 1e6 for held in told["memory"].values())
    assert any("emulated, no model ran" in line for line in lines)
    text = page.read_text()
    assert "emulated, no model ran" in text  # said where figures are shown
    tree = ElementTree.fromstring(text.removeprefix("<!doctype html>"))
    assert len(list(tree.iter("section"))) >= 8 and f"{told['speedup']:.2f}x its target alone" in text
    assert not [each for each in tree.iter() if each.get("src") or each.get("href", "#")[0] != "#"]  # nothing to load
