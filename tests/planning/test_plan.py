"""`cascade plan`: what fits, what cannot, what one more device brings, and what the plan says of itself."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from cascade_runtime.config import PolicyConfig, recipe_from_dict
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning import (
    Load,
    cluster_from_dict,
    cluster_names,
    draw,
    load_cluster,
    load_planned_recipe,
    plan,
)
from cluster import cli

GPU = {"memory_gib": 40, "bandwidth_gb_s": 1000, "tflops": {"bfloat16": 200, "float32": 20}}
SMALL = {"memory_gib": 4, "bandwidth_gb_s": 400, "tflops": {"bfloat16": 60, "float32": 10}}


def cluster(pools, **more):
    return cluster_from_dict({"name": "c", "kinds": {"gpu": GPU, "small": SMALL}, "pools": pools, **more})


def pool(name, kind, devices=1, **more):
    return {"name": name, "kind": kind, "devices": devices, **more}


def small_recipe(**policy):
    recipe = load_planned_recipe("onevision_small")
    return replace(recipe, policy=PolicyConfig(**policy)) if policy else recipe


ONE_STREAM = Load(streams=1)


def devices_of(found):
    return [(device, stage) for replica in found.replicas for device in replica.devices for stage in device.stages]


# -- what fits -------------------------------------------------------------------------------------------------------


def test_a_plan_fits_the_memory_of_every_device_and_counts_weights_and_kv():
    found = plan(small_recipe(), cluster([pool("big", "gpu"), pool("little", "small")]), load=ONE_STREAM)
    placed = {stage.stage: (device.kind, stage) for device, stage in devices_of(found)}
    assert placed["heavy"][0] == "gpu" and placed["light"][0] == "small"
    assert placed["heavy"][1].weight_bytes == pytest.approx(2 * 8.031e9, rel=1e-3)  # with the tower it shares
    assert placed["heavy"][1].kv_bytes == 57_344 * 8192
    assert all(d.used_bytes <= d.usable_bytes for replica in found.replicas for d in replica.devices)
    assert found.runs_today and not found.spare


def test_more_slots_than_fit_are_not_promised():
    tight = {**GPU, "memory_gib": 19.4}  # 18.7 GB usable: the weights leave room for five slots of .47 GB
    table = {"name": "c", "kinds": {"tight": tight}, "pools": [pool("p", "tight")]}
    found = plan(small_recipe(), cluster_from_dict(table), load=Load(streams=64))
    assert found.replicas[0].slots == found.replicas[0].slots_that_fit == 5


def test_a_target_that_fits_nowhere_is_refused_and_the_refusal_says_what_would_fit():
    with pytest.raises(
        ConfigError, match=r"stages\.heavy.*149 GB of bfloat16.*--assume int8.*--assume int4"
    ) as refusal:
        plan(load_planned_recipe("onevision"), load_cluster("1xa100"))
    assert refusal.value.field == "stages.heavy"
    with pytest.raises(ConfigError, match="No quantisation"):
        plan(load_planned_recipe("onevision"), load_cluster("1x4090"))


def test_an_assumption_is_made_only_where_allowed_and_marked():
    found = plan(load_planned_recipe("onevision"), load_cluster("2xh100"), assume=("int8",), load=Load(streams=2))
    assert not found.runs_today and found.assumptions == ("weights on GPUs in int8",)
    assert {stage.dtype for _, stage in devices_of(found)} == {"int8"}
    assert "ASSUMES, and the runtime does not do today: weights on GPUs in int8" in found.text()
    fits = plan(small_recipe(), load_cluster("1x4090"), assume=("int8", "int4"))
    assert fits.runs_today  # what fits as it is is not quantised


def test_parts_that_do_not_fit_together_take_turns_when_that_is_allowed():
    table = {"name": "c", "kinds": {"k": {**GPU, "memory_gib": 17, "pcie_gb_s": 10}}, "pools": [pool("p", "k")]}
    with pytest.raises(ConfigError, match="--assume sequential"):
        plan(small_recipe(), cluster_from_dict(table))
    found = plan(small_recipe(), cluster_from_dict(table), assume=("sequential",))
    replica = found.replicas[0]
    turns = [(stage.turn, stage.stage) for stage in replica.devices[0].stages]
    assert replica.mode == "in turns" and turns == [(0, "tower"), (1, "heavy")]
    heavy = replica.devices[0].stages[-1]
    assert heavy.load_s == pytest.approx(heavy.weight_bytes / 10e9)
    assert replica.devices[0].used_bytes <= replica.devices[0].usable_bytes
    assert found.runs_today and replica.overrides == ()  # it leaves the drafter out


def test_a_slower_bus_makes_taking_turns_slower():
    def rate(pcie):
        table = {"name": "c", "kinds": {"k": {**GPU, "memory_gib": 17, "pcie_gb_s": pcie}}, "pools": [pool("p", "k")]}
        return plan(small_recipe(), cluster_from_dict(table), assume=("sequential",)).tokens_per_s

    assert rate(1) < 0.5 * rate(50)


# -- what it would bring ---------------------------------------------------------------------------------------------


def test_a_device_at_the_bottleneck_helps_and_one_elsewhere_does_not():
    found = plan(small_recipe(), cluster([pool("big", "gpu"), pool("little", "small", 3)]))
    gains = {more.pool: more.gain for more in found.one_more}
    assert found.replicas[0].bottleneck == "heavy"
    assert gains["big"] > 0.5 * found.tokens_per_s
    assert gains["little"] == 0


def test_the_bottleneck_is_the_drafter_where_the_drafter_is_slow():
    slow = {"stage": "light", "kind": "small", "base_ms": 12.0}
    fast, apart = {"stage": "heavy", "kind": "gpu", "base_ms": 60.0}, {"stage": "light", "kind": "gpu", "base_ms": 30.0}
    both = cluster(
        [pool("big", "gpu"), pool("little", "small")], profiles=[slow, fast, apart], agreement={"light->heavy": 0.95}
    )
    assert plan(small_recipe(), both, load=ONE_STREAM).replicas[0].bottleneck == "light"
    quick = cluster(
        [pool("big", "gpu"), pool("little", "small")],
        profiles=[{**slow, "base_ms": 0.1}, fast, apart],
        agreement={"light->heavy": 0.95},
    )
    assert plan(small_recipe(), quick, load=ONE_STREAM).replicas[0].bottleneck == "heavy"


@pytest.mark.parametrize("agreement", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("streams", [1, 4])
def test_prediction_and_simulation_agree_within_a_quarter_on_devices_of_their_own(agreement, streams):
    known = cluster([pool("big", "gpu"), pool("little", "small")], agreement={"light->heavy": agreement})
    found = plan(small_recipe(), known, load=Load(streams=streams))
    (replica,) = found.replicas
    assert replica.simulated_tokens_per_s == pytest.approx(replica.tokens_per_s, rel=0.25)
    assert found.tokens_per_s == replica.simulated_tokens_per_s


def test_useless_drafts_are_not_planned_and_good_ones_are():
    def levels(agreement):
        known = cluster([pool("big", "gpu"), pool("little", "small")], agreement={"light->heavy": agreement})
        return plan(small_recipe(), known, load=ONE_STREAM)

    assert levels(0.02).replicas[0].levels == ("heavy",)
    good = levels(0.9)
    assert good.replicas[0].levels == ("light", "heavy")
    assert good.tokens_per_s > 1.5 * good.tokens_per_s_alone
    assert good.replicas[0].edges[0].min_drafts > levels(0.6).replicas[0].edges[0].min_drafts


def test_no_plan_is_slower_than_the_target_alone_on_the_same_devices():
    for name in ("1x4090", "2x4090", "edge_and_core"):
        found = plan(small_recipe(), load_cluster(name))
        assert found.tokens_per_s >= found.tokens_per_s_alone


def test_a_measured_profile_replaces_the_roofline():
    profile = {"stage": "heavy", "kind": "gpu", "base_ms": 100.0}
    found = plan(small_recipe(), cluster([pool("big", "gpu")], profiles=[profile]), load=Load(streams=4, prompt=64))
    assert found.tokens_per_s_alone == pytest.approx(40.0, rel=0.05)


def test_drafts_do_not_cross_sites_without_a_link_and_a_slow_one_costs():
    pools = [pool("big", "gpu", site="core"), pool("little", "small", site="edge")]
    profile = [{"stage": "light", "kind": "gpu", "base_ms": 500.0}]  # the drafter has no place beside the target

    def found(**more):
        known = cluster(pools, profiles=profile, agreement={"light->heavy": 0.9}, **more)
        return plan(small_recipe(), known, load=ONE_STREAM)

    near = found(links=[{"between": ["edge", "core"], "latency_ms": 0.1}])
    far = found(links=[{"between": ["edge", "core"], "latency_ms": 40}])
    assert found().replicas[0].levels == ("heavy",)
    assert near.replicas[0].levels == ("light", "heavy")
    assert near.tokens_per_s > 1.1 * far.tokens_per_s


def test_the_encoder_stays_with_the_cameras_and_the_adapter_near_the_target():
    found = plan(load_planned_recipe("three_level"), load_cluster("edge_and_core"))
    sites = {
        stage.stage: device.site for device, stage in devices_of(found) if device.kind != "orin_64" or device.shared
    }
    assert sites["encoder"] == "edge" and sites["adapter"] == "core"


# -- size ------------------------------------------------------------------------------------------------------------


def test_ten_thousand_devices_are_filled_with_few_kinds_of_replica_and_worth_more_than_one_by_one():
    many = plan(small_recipe(), cluster([pool("big", "gpu", 10_000)]))
    one = plan(small_recipe(), cluster([pool("big", "gpu")]))
    assert sum(r.count * d.copies for r in many.replicas for d in r.devices) == 10_000 and not many.spare
    assert len(many.replicas) <= 3 and many.tokens_per_s > 10_000 * one.tokens_per_s
    alone = plan(small_recipe(), cluster([pool("big", "gpu", 10_000)], agreement={"light->heavy": 0.0}))
    assert [(r.levels, r.count) for r in alone.replicas] == [(("heavy",), 10_000)]
    assert alone.tokens_per_s == pytest.approx(10_000 * one.tokens_per_s)


def test_latency_prefers_the_quickest_answer_and_throughput_the_most_tokens():
    two = cluster([pool("big", "gpu", 2)], agreement={"light->heavy": 0.8})
    quick, much = plan(small_recipe(objective="latency"), two), plan(small_recipe(), two)
    assert much.tokens_per_s >= quick.tokens_per_s
    assert quick.tokens_per_s / quick.streams >= much.tokens_per_s / much.streams


# -- what it says ----------------------------------------------------------------------------------------------------

PLAN_KEYS = (
    "schema recipe cluster tokens_per_s predicted_tokens_per_s tokens_per_s_alone ttft_s streams prompt answer_tokens "
    "replicas one_more spare assumptions defaults runs_today"
)
REPLICA_KEYS = (
    "count mode levels slots slots_that_fit devices edges tokens_per_s simulated_tokens_per_s ttft_s simulated_ttft_s "
    "bottleneck overrides drafts"
)
EDGE_KEYS = "upstream downstream agreement latency_s min_drafts window drafts_per_pass tokens_per_pass"
STAGE_KEYS = "stage dtype weight_bytes kv_bytes pass_ms busy load_s turn piece pieces layers"


def test_the_json_of_schema_1_keeps_its_keys():
    found = json.loads(json.dumps(plan(small_recipe(), load_cluster("2x4090"), load=ONE_STREAM).to_dict()))
    (replica,) = found["replicas"]
    assert found["schema"] == 1 and set(found) == set(PLAN_KEYS.split())
    assert set(replica) == set(REPLICA_KEYS.split())
    assert set(replica["edges"][0]) == set(EDGE_KEYS.split())
    assert set(replica["devices"][0]) == {"pool", "kind", "site", "usable_bytes", "stages", "shared", "copies"}
    assert set(replica["devices"][0]["stages"][0]) == set(STAGE_KEYS.split())
    assert set(found["one_more"][0]) == {"pool", "kind", "tokens_per_s", "gain"}


def test_the_overrides_are_a_recipe_and_hold_the_plan():
    (replica,) = plan(small_recipe(), load_cluster("2x4090"), load=ONE_STREAM).replicas
    recipe = load_planned_recipe("onevision_small", replica.overrides)
    assert recipe.cascade.num_draft_tokens == tuple(edge.min_drafts for edge in replica.edges)
    assert recipe.cascade.slots == replica.slots


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_that_is_shipped_can_be_planned_and_its_picture_names_everything(name):
    recipe = "eventgpt_videollava" if name == "eventgpt_4090" else "three_level"
    found = plan(load_planned_recipe(recipe), load_cluster(name))
    root = ElementTree.fromstring(draw(found))
    words = " ".join("".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    for device, stage in devices_of(found):
        assert {device.kind, device.pool, stage.stage} <= set(words.replace(",", " ").replace("(", " ").split())
    for pool_ in load_cluster(name).pools:
        assert pool_.name in words
    assert f"{found.tokens_per_s:.4g} tokens/s" in words


def test_a_picture_escapes_what_a_recipe_is_called():
    found = plan(small_recipe(), load_cluster("1x4090"))
    ElementTree.fromstring(draw(replace(found, recipe="a<b>&c")))


def test_the_command_prints_a_plan_as_text_and_as_json_and_draws_it(tmp_path, capsys):
    command = ["plan", "onevision_small", "--cluster", "2x4090", "--streams", "1"]
    assert cli.main([*command, "--picture", str(tmp_path / "plan.svg")]) == 0
    text = capsys.readouterr().out
    assert "light -> heavy" in text and "<- bottleneck" in text and "one more device" in text
    ElementTree.parse(tmp_path / "plan.svg")
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["streams"] == 1


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--picture", "plan.png"], "--picture"),
        (["--assume", "magic"], "assume"),
        (["--streams", "-1"], "load.streams"),
        (["--prompt", "9000"], "load.prompt"),
        (["--set", "stages.heavy.checkpoint=/nowhere"], "stages.heavy.checkpoint"),
    ],
)
def test_the_command_refuses_with_the_field_and_exit_code_2(more, named, capsys):
    assert cli.main(["plan", "onevision_small", "--cluster", "2x4090", *more]) == 2
    assert f"cascade: {named}" in capsys.readouterr().err


def test_an_agreement_or_profile_of_a_stage_the_recipe_lacks_is_refused():
    with pytest.raises(ConfigError, match="agreement"):
        plan(small_recipe(), cluster([pool("p", "gpu")], agreement={"mid->heavy": 0.5}))
    with pytest.raises(ConfigError, match=r"profiles\.stage"):
        profile = {"stage": "mid", "kind": "gpu", "base_ms": 1.0}
        plan(small_recipe(), cluster([pool("p", "gpu")], profiles=[profile]))


def test_a_recipe_given_as_tables_is_planned_like_one_from_a_file():
    table = {
        "cascade": {"name": "alone", "levels": ["heavy"], "slots": 2, "max_len": 8192},
        "stages": {"heavy": {"checkpoint": "llava-hf/llava-onevision-qwen2-7b-ov-hf"}},
    }
    found = plan(recipe_from_dict(table), load_cluster("1x4090"))
    assert found.replicas[0].levels == ("heavy",) and found.streams == 2
