"""Drafts from the edge box: the round trip by closed forms and in the simulator, bytes, memory, and the choice."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cascade_runtime.channels.framing import frame
from cascade_runtime.config import DeadlineConfig
from cascade_runtime.messages import DraftBlock, Verdict, encode
from cascade_runtime.planning import cluster_from_dict, edge_cuts, forecast, load_planned_recipe
from cascade_runtime.planning.cluster import Cluster, Load
from cascade_runtime.planning.edge_drafts import HEADER_BYTES, TOKEN_BYTES, EdgeDrafting, edge_drafting, with_box
from cascade_runtime.planning.problem import Problem, problem_of
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import Policy
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.simulation import Agreement, Link, Stage, simulate
from cascade_runtime.simulation import Load as Asked
from cluster import cli

GPU = {"memory_gib": 40, "bandwidth_gb_s": 1000, "tflops": {"bfloat16": 200, "float32": 20}}
BOX = {"memory_gib": 8, "bandwidth_gb_s": 200, "tflops": {"bfloat16": 20, "float32": 4}}


def two_sites(light_ms: float = 5.0, heavy_ms: float = 30.0, agreement: float = 0.8, **more: Any) -> Cluster:
    """A core with one GPU and a box. Passes take as long as is said, whatever they are over; the rest takes no time."""
    profiles = [
        {"stage": "light", "kind": "box", "base_ms": light_ms, "request_ms": 0.0},
        {"stage": "light", "kind": "gpu", "base_ms": light_ms, "request_ms": 0.0},
        {"stage": "heavy", "kind": "gpu", "base_ms": heavy_ms, "request_ms": 0.0},
    ]
    pools = [
        {"name": "vehicle", "kind": "box", "site": "edge", "cameras": True},
        {"name": "server", "kind": "gpu", "site": "core", "devices": more.pop("devices", 1)},
    ]
    known = {"name": "c", "kinds": {"gpu": GPU, "box": BOX}, "pools": pools, "agreement": {"light->heavy": agreement}}
    return cluster_from_dict({**known, "profiles": profiles, "load": {"streams": 1, "prompt": 100}, **more})


def problem(cluster: Cluster, latency_ms: float, patience_s: float = 10.0, streams: int = 1) -> Problem:
    recipe = replace(load_planned_recipe("light_heavy"), deadlines=DeadlineConfig(upstream_s=patience_s))
    beside = with_box(cluster, "box", cluster.pools[1], 100.0, latency_ms)
    return problem_of(recipe, beside, Load(streams=streams, prompt=100, tokens=80))


def drafting(cluster: Cluster, latency_ms: float, patience_s: float = 10.0, streams: int = 1) -> EdgeDrafting:
    found = edge_drafting(problem(cluster, latency_ms, patience_s, streams))
    assert found is not None
    return found


# -- the round trip in the loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency_ms", [0.0, 10.0, 80.0])
def test_a_drafter_that_waits_for_every_verdict_pays_every_round_trip(
    latency_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "_WINDOWS", (4,))
    monkeypatch.setattr(forecast, "_WAITS", (4,))
    found = drafting(two_sites(), latency_ms).edge
    tokens = (1 - 0.8**5) / (1 - 0.8)
    assert found.tokens_per_s == pytest.approx(tokens / (0.030 + 2 * latency_ms / 1000 + 4 * 0.005))
    assert (found.min_drafts, found.window, found.drafts_per_pass) == (4, 4, 4)
    assert found.answer_s == pytest.approx(80 / found.tokens_per_s)


def test_a_round_trip_is_hidden_up_to_w_steps_and_beyond_them_w_tokens_cross_in_each() -> None:
    """A drafter that is nearly always right, so that next to nothing is paid for refusals."""
    steps = two_sites(light_ms=10.0, heavy_ms=50.0, agreement=0.999)
    near, far = drafting(steps, 1.0), drafting(steps, 100.0)
    assert near.edge.tokens_per_s == pytest.approx(1 / 0.010, rel=0.05)
    assert far.hidden_s == pytest.approx(far.edge.window * 0.010) and far.round_trip_s + 0.05 <= far.hidden_s
    assert far.edge.tokens_per_s == pytest.approx(1 / 0.010, rel=0.1)
    beyond = drafting(two_sites(light_ms=1.0, heavy_ms=20.0, agreement=0.999), 500.0)
    assert beyond.hidden_s == pytest.approx(0.064) and beyond.round_trip_s == 1.0
    assert beyond.edge.tokens_per_s == pytest.approx(64 / (1.0 + 0.020), rel=0.15)


def test_a_target_that_will_not_wait_so_long_goes_on_alone() -> None:
    """2 x 25 ms and the first draft's 5 are more than 50 ms; with 10 s of patience they are worth waiting for."""
    found = drafting(two_sites(agreement=0.95), 25.0, patience_s=0.05)
    assert found.edge.min_drafts == 0 and found.edge.tokens_per_s == pytest.approx(1 / 0.030)
    assert found.with_cut is found.alone and found.alone.tokens_per_s == pytest.approx(1 / 0.030)
    assert found.beats_alone_ms == pytest.approx((50 - 5) / 2, abs=0.01)
    assert "the target goes on alone" in "\n".join(found.lines())
    patient = drafting(two_sites(agreement=0.95), 25.0)
    assert patient.edge.tokens_per_s > 1.5 / 0.030 and patient.with_cut is patient.edge


def test_beyond_a_distance_that_is_told_drafts_bring_less_than_none() -> None:
    found = drafting(two_sites(), 1.0)
    assert found.beats_alone_ms is not None
    nearer, further = (drafting(two_sites(), found.beats_alone_ms * by) for by in (0.98, 1.02))
    assert nearer.with_cut is nearer.edge and further.with_cut is further.alone
    assert drafting(two_sites(agreement=0.1), 1.0).beats_alone_ms is None


class _Whole(Policy):
    """Waits for m drafts and looks at all that have come."""

    def __init__(self, min_drafts: int, window: int) -> None:
        super().__init__(min_drafts, window)
        self.decision = replace(self.decision, max_drafts=window)

    def need(self, row: ScheduledRow) -> int:
        return self.decision.min_drafts


def simulated(found: EdgeDrafting, agreement: float, light_ms: float, patience_s: float = 10.0) -> float:
    """Tokens per second of the same pipeline, its passes as long as `two_sites` says, with a link of that latency."""
    said = found.edge
    light = Stage("light", Policy(0, said.window or 32, 1, 1), StepCost(light_ms / 1000))
    heavy = Stage("heavy", _Whole(said.min_drafts or 4, said.window or 32), StepCost(0.030))
    asked = Asked(streams=1, requests=1, tokens=400)
    link = [Link(found.round_trip_s / 2)]
    run = simulate([light, heavy], Agreement([agreement]), asked, link, upstream_s=patience_s, window=said.window or 32)
    return run.tokens_per_s


@pytest.mark.parametrize(
    ("agreement", "light_ms", "latency_ms"), [(0.7, 5.0, 20.0), (0.9, 5.0, 50.0), (0.98, 2.0, 20.0), (0.98, 5.0, 100.0)]
)
def test_the_simulator_with_a_link_of_that_latency_says_the_same(
    agreement: float, light_ms: float, latency_ms: float
) -> None:
    found = drafting(two_sites(light_ms, 30.0, agreement), latency_ms)
    assert found.edge.tokens_per_s == pytest.approx(simulated(found, agreement, light_ms), rel=0.15)


def test_the_simulator_agrees_that_a_target_without_patience_goes_on_alone() -> None:
    found = drafting(two_sites(agreement=0.8), 100.0, patience_s=0.05)
    assert found.edge.min_drafts == 0
    assert found.edge.tokens_per_s == pytest.approx(simulated(found, 0.8, 5.0, patience_s=0.05), rel=0.05)


# -- what crosses, and what is where ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7])
def test_a_block_and_a_verdict_take_on_a_stream_what_is_planned_for_them(count: int) -> None:
    tokens = tuple(range(count))
    for message in (
        DraftBlock(request=1, epoch=0, base=3, tokens=tokens, stages=(1,) * count, ack=2),
        Verdict(request=1, epoch=0, seq=2, base=3, tokens=tokens, stages=(3,) * count),
    ):
        assert len(frame(encode(message))) == HEADER_BYTES + TOKEN_BYTES * count


def test_the_bytes_of_an_answer_are_those_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_WINDOWS", (4,))
    monkeypatch.setattr(forecast, "_WAITS", (4,))
    found = drafting(two_sites(), 10.0)
    tokens = (1 - 0.8**5) / (1 - 0.8)
    assert found.edge.round_bytes() == round(2 * 40 + 5 * (4 + tokens))
    assert found.answer_bytes == pytest.approx(80 / tokens * found.edge.round_bytes(), abs=1)


def test_the_light_stage_is_off_the_core_and_on_the_box() -> None:
    asked = problem(two_sites(devices=2), 1.0, streams=3)
    found = edge_drafting(asked)
    assert found is not None and found.requests == 3
    parts = {part.name: part for part in asked.parts}
    gpu, box = asked.cluster.kinds["gpu"], asked.cluster.kinds["box"]
    light = parts["light"]
    assert found.off_core_bytes == asked.weight_bytes(light, gpu) + 3 * asked.slot_bytes(light, gpu)
    weights = sum(asked.weight_bytes(parts[name], box) for name in ("light", "encoder", "adapter"))
    assert found.need_bytes == weights + asked.slot_bytes(light, box)
    assert found.room_bytes == box.usable_bytes and found.fits
    assert found.step_s == pytest.approx(0.005)
    assert 0.5 < found.off_core_busy <= 1.0  # it drafts nearly all the time


def test_a_core_without_room_for_the_light_stage_can_have_it_on_the_box() -> None:
    """A light model of 1.1 GB, weights and a slot, a target of a few MB, and a core of one GiB."""
    checkpoint = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    known = two_sites(kinds={"gpu": {**GPU, "memory_gib": 1.0}, "box": BOX})
    recipe = load_planned_recipe("light_heavy", [f"stages.light.checkpoint={checkpoint}"])
    found = edge_drafting(problem_of(recipe, with_box(known, "box", known.pools[1], 100.0, 1.0), known.load))
    assert found is not None and found.core.levels == found.alone.levels == ("heavy",)
    assert (found.off_core_bytes, found.off_core_busy) == (0, 0.0)
    assert found.fits and found.edge.levels == ("light", "heavy") and found.with_cut is found.edge


def test_every_box_drafts_for_its_own_request_alone() -> None:
    """A pass that takes longer for more rows does so in the core, where one light stage serves all requests."""
    slow = {"stage": "light", "kind": "gpu", "base_ms": 5.0, "per_row_ms": 10.0, "request_ms": 0.0}
    known = two_sites()
    profiles = tuple(replace(each, per_row_ms=10.0) if each.stage == "light" else each for each in known.profiles)
    assert slow["stage"] == profiles[0].stage
    found = drafting(replace(known, profiles=profiles), 0.1, streams=4)
    assert found.step_s == pytest.approx(0.015)
    assert found.edge.tokens_per_s > 1.5 * found.core.tokens_per_s


# -- the choice ------------------------------------------------------------------------------------------------------


def test_drafts_are_chosen_where_the_light_stage_would_slow_the_core_and_the_box_is_near() -> None:
    recipe, known = load_planned_recipe("light_heavy"), two_sites(heavy_ms=30.0, light_ms=10.0)
    near, far = (edge_cuts(recipe, known, f"1000,{latency_ms},0.1") for latency_ms in (0.5, 200))
    assert near is not None and far is not None and near.drafting is not None and far.drafting is not None
    cuts = {cost.cut: cost for cost in near.choices[-1].costs}
    assert list(cuts) == ["raw", "frames", "features", "drafts"]
    features, drafts = cuts["features"], cuts["drafts"]
    assert drafts.seconds(1000, 0.5) == features.seconds(1000, 0.5) and drafts.window_bytes == features.window_bytes
    assert drafts.answer_s == near.drafting.edge.answer_s < features.answer_s == near.drafting.without_cut.answer_s
    assert drafts.all_bytes - features.all_bytes == near.drafting.answer_bytes > 0
    assert near.drafting.beats_core_ms is not None and 0.5 < near.drafting.beats_core_ms < 200
    assert near.choices[-1].best == "drafts" != far.choices[-1].best
    away = {cost.cut: cost for cost in far.choices[-1].costs}["drafts"]
    assert far.drafting.with_cut is far.drafting.alone and away.answer_bytes == 0


def test_a_box_without_room_for_the_drafter_is_not_offered_the_cut() -> None:
    known = two_sites(kinds={"gpu": GPU, "box": {**BOX, "memory_gib": 1.0}})
    checkpoint = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    recipe = load_planned_recipe("light_heavy", [f"stages.light.checkpoint={checkpoint}"])
    found = edge_cuts(recipe, known, "1000,0.5")
    assert found is not None and found.drafting is not None and not found.drafting.fits
    assert [cost.cut for cost in found.choices[0].costs] == ["raw", "frames", "features"]
    assert "WHICH DOES NOT FIT" in found.text()


def test_the_command_says_what_drafts_from_the_edge_would_bring(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "light_heavy", "--cluster", "2x4090", "--streams", "1", "--edge-link", "100,1"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    for words in ("light in the core", "light on the edge", "without light", "off the core", "bytes a round"):
        assert words in said
    assert cli.main([*command, "--json"]) == 0
    edge = json.loads(capsys.readouterr().out)["edge"]
    drafts = edge["drafting"]
    assert drafts["round_trip_s"] == 0.002 and drafts["edge"]["levels"] == ["light", "heavy"]
    assert drafts["alone"]["levels"] == ["heavy"] and drafts["beats_alone_ms"] > 1
    cut = edge["scenes"][0]["cuts"][-1]
    assert cut["cut"] == "drafts" and cut["answered_s"] > cut["seconds"] and cut["tokens_per_s"] > 0
