"""What a running pipeline records of itself: every pass once, every message at both ends, every request's own times."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from threaded_pipeline import threaded_pipeline
from toy_family import toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.tracing import Trace
from cascade_runtime.tracing.arrows import arrows

STREAMS = 6


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sequence[Answer], dict[str, Trace], dict[str, Any]]:
    """Answers, traces by stage, and stats by language stage of one run of three levels."""
    patient = {"start_s": 300.0, "upstream_s": 10.0}  # on a busy machine too, no verifier goes on without drafts
    family = write_toy_family(tmp_path_factory.mktemp("toy"))
    recipe = toy_recipe(family, ["noisy", "noisy"], [2, 4], deadlines=patient)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(controller.generate, toy_requests(24, seed=3)))
        stages = [controller.stages["encoder"].stage, controller.stages["adapter"].stage, *controller.language]
        stats = {stage.name: stage.stats() for stage in controller.language}
        return answers, {trace.stage: trace for trace in (stage.trace() for stage in stages)}, stats


def test_every_pass_is_one_span_and_its_figures_add_up(told: Any) -> None:
    _, traces, stats = told
    for name, counted in stats.items():
        spans = traces[name].spans
        shared = sum(len(span.shares) > 1 for span in spans)  # the model may run twice: for long prompts, for the rest
        assert 0 < len(spans) <= counted["passes"] <= len(spans) + shared
        assert sum(span.tokens for span in spans) == counted["tokens_fed"]
        assert sum(span.end_ns - span.start_ns for span in spans) == pytest.approx(counted["busy_s"] * 1e9)
        assert all(before.end_ns <= after.start_ns for before, after in itertools.pairwise(spans))
        assert sum(span.drafts for span in spans) == counted["edge"]["spec_decode_num_draft_tokens"]
        assert sum(span.accepted for span in spans) == counted["edge"]["spec_decode_num_accepted_tokens"]
    every = [span for trace in traces.values() for span in trace.spans]
    assert sum(span.drafts for span in every) > sum(span.accepted for span in every) > 0
    assert {share.name for span in traces["target"].spans for share in span.shares} == {"prefill", "verify"}
    assert {share.name for span in traces["level0"].spans for share in span.shares} == {"prefill", "draft"}
    assert any(len(span.requests) > 1 for span in traces["target"].spans)


def test_an_answers_times_are_those_of_the_trace(told: Any) -> None:
    answers, traces, _ = told
    for answer in answers:
        stages = [span[0] for span in answer.timings.spans]
        assert {"encoder", "adapter", "target"} <= set(stages)
        assert [span[1] for span in answer.timings.spans if span[0] == "encoder"] == ["encode"]
        assert {"align", "dense", "decide"} <= {span[1] for span in answer.timings.spans if span[0] == "adapter"}
        assert next(span[1] for span in answer.timings.spans if span[0] == "target") == "prefill"
        assert all(
            start <= end <= answer.timings.total_ms
            for stage, _, start, end in answer.timings.spans
            if stage == "target"
        )
    told_ms = sum(
        end - start for answer in answers for stage, _, start, end in answer.timings.spans if stage == "target"
    )
    spans = traces["target"].spans
    assert told_ms == pytest.approx(sum((s.end_ns - s.start_ns) / 1e6 * len(s.requests) for s in spans))


def test_every_message_taken_was_sent_and_arrows_lead_forward_in_time(told: Any) -> None:
    _, traces, _ = told
    found = arrows(traces.values())
    taken = [message for trace in traces.values() for message in trace.messages if message.receiver == trace.stage]
    assert len(found) == len(taken)
    assert all(arrow.start_ns <= arrow.end_ns for arrow in found)
    assert all(arrow.sent[3:5] == arrow.taken[3:5] for arrow in found)  # the same request, as many tokens
    ways = {(arrow.sent.sender, arrow.sent.receiver) for arrow in found}
    assert ways == {("level0", "level1"), ("level1", "level0"), ("level1", "target"), ("target", "level1")}


def test_what_a_policy_decided_is_noted_with_its_reason(told: Any) -> None:
    _, traces, stats = told
    for name, counted in stats.items():
        notes = traces[name].notes
        assert notes and {note.name for note in notes} == {"decision"}
        assert {"min_drafts", "window", "speculate", "relay", "reason"} <= notes[-1].facts.keys()
        assert notes[-1].facts == counted["decision"]
