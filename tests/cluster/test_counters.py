"""What a server counts can be found by who looks for vLLM's: names, labels, and what the figures mean."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cascade_runtime.api import Answer, Timings
from cascade_runtime.errors import DeadlineExceeded
from cascade_runtime.metrics import EdgeCounters
from cluster.serving.counters import ServerCounters

# 12 ms in the queue, the first of its four tokens after 52 ms, the last after 112
COUNTS: dict[str, Any] = {"masks": (2,) * 4, "prompt_tokens": 37}
TIMINGS = Timings(52.0, 112.0, (("light", "pass", 30.0, 40.0), ("encoder", "encode", 12.0, 20.0)))
ANSWER = Answer(
    "r", "abcd", (1, 2, 3, 4), tuple("abcd"), "stop", ("light", "heavy"), (2,) * 4, TIMINGS, prompt_tokens=37
)

# metrics of the dashboard among vLLM's examples (examples/online_serving/prometheus_grafana), which looks at
# {model_name="$model_name"} only. It asks for gpu_cache_usage_perc, the old name of kv_cache_usage_perc.
OF_VLLM_S_DASHBOARD = (
    *("e2e_request_latency_seconds_bucket", "e2e_request_latency_seconds_sum", "prompt_tokens_total"),
    *("generation_tokens_total", "inter_token_latency_seconds_bucket", "num_requests_running", "num_requests_waiting"),
    *("time_to_first_token_seconds_bucket", "kv_cache_usage_perc", "request_prompt_tokens_bucket"),
    *("request_generation_tokens_bucket", "request_success_total", "request_queue_time_seconds_sum"),
    *("request_prefill_time_seconds_sum", "request_decode_time_seconds_sum"),
)


def stage(name: str, active: int, free: int) -> dict[str, Any]:
    decision = dict.fromkeys(("min_drafts", "window", "speculate", "relay", "tokens_per_s", "tokens_per_s_alone"), 0)
    counted = dict.fromkeys(("passes", "tokens_fed", "busy_s", "awake_s", "refused_messages"), 0)
    edge = EdgeCounters("light-heavy" if name == "heavy" else name).to_dict()
    slots = {"active_rows": active, "free_slots": free}
    return {"name": name, **counted, **slots, "edge": edge, "decision": decision | {"reason": "best"}}


def counted(model: str = "street-camera", **heavy: Any) -> list[tuple[str, dict[str, str], float]]:
    """(name, labels, value) after one answer and one failure, as Prometheus reads them."""
    counters = ServerCounters(model)
    counters.ended(ANSWER)
    counters.ended(DeadlineExceeded("late"))
    controller = {"name": "controller", "running": 3, "waiting": 2, "cancelled": 1}
    stats = {"controller": controller, "light": stage("light", 4, 4), "heavy": heavy or stage("heavy", 2, 6)}
    families = text_string_to_metric_families(counters.text(stats))
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def value(name: str, **labels: str) -> float:
    (found,) = [told for called, have, told in counted() if called == name and labels.items() <= have.items()]
    return found


def test_whoever_looks_for_a_model_of_vllm_s_finds_this_one() -> None:
    told = counted()
    found = {name for name, labels, _ in told if labels.get("model_name") == "street-camera"}
    assert {f"vllm:{name}" for name in OF_VLLM_S_DASHBOARD} <= found
    assert not [name for name, labels, _ in told if name.startswith("vllm:") != ("model_name" in labels)]


@pytest.mark.parametrize("model", ['a "quoted" \\ one', "two words, a comma = 1", "x" * 64])
def test_any_name_of_a_model_can_be_read_back(model: str) -> None:
    names = {labels["model_name"] for name, labels, _ in counted(model) if name.startswith("vllm:")}
    assert names == {model}


def test_times_and_lengths_are_those_of_the_answer_in_vllm_s_parts() -> None:
    for part, seconds in (("queue", 0.012), ("prefill", 0.040), ("decode", 0.060)):
        assert value(f"vllm:request_{part}_time_seconds_sum") == pytest.approx(seconds)
    assert value("vllm:e2e_request_latency_seconds_sum") == pytest.approx(0.012 + 0.040 + 0.060)
    assert value("vllm:inter_token_latency_seconds_sum") == pytest.approx(0.020)
    assert value("vllm:request_prompt_tokens_sum") == 37 and value("vllm:request_generation_tokens_sum") == 4
    assert value("vllm:request_prompt_tokens_count") == 1  # a failure has no lengths
    assert value("vllm:request_success_total", finished_reason="stop") == 1


def test_slots_of_the_target_are_what_a_cache_is_to_vllm() -> None:
    assert value("vllm:kv_cache_usage_perc") == 2 / 8
    silent = counted(name="heavy", problem="silent")
    assert not [name for name, *_ in silent if name == "vllm:kv_cache_usage_perc"]
