"""Recipes and sampling parameters: what is allowed is kept, what is not is refused by name."""

from __future__ import annotations

import math
import tomllib
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_runtime import config
from cascade_runtime.config import (
    CascadeConfig,
    ChannelConfig,
    DeadlineConfig,
    GateConfig,
    SamplingParams,
    StageConfig,
    load_recipe,
    recipe_from_dict,
    recipe_names,
)
from cascade_runtime.errors import ConfigError, InputError

TWO = {"cascade": {"name": "two", "levels": ["light", "heavy"], "num_draft_tokens": [4]}}
TWO["stages"] = {"light": {"checkpoint": "family:light"}, "heavy": {"checkpoint": "family:heavy"}}

not_a_number = st.one_of(st.text(max_size=5), st.none(), st.booleans(), st.lists(st.integers(), max_size=2))


def beyond(low: float, high: float) -> st.SearchStrategy:
    """Numbers outside [low, high], NaN and infinities, and things that are no numbers."""
    outside = st.one_of(st.floats(max_value=low, exclude_max=True), st.floats(min_value=high, exclude_min=True))
    return st.one_of(outside, st.just(math.nan), not_a_number, st.just(16**5000))


def beyond_integers(low: int, high: int) -> st.SearchStrategy:
    outside = st.one_of(st.integers(max_value=low - 1), st.integers(min_value=high + 1))
    return st.one_of(outside, st.floats(), not_a_number, st.just(16**5000))


def test_five_recipes_come_with_the_package():
    assert recipe_names() == ("edge_drafts", "heavy", "light_heavy", "lookup_heavy", "three_level")
    assert load_recipe("three_level").cascade.levels == ("light", "mid", "heavy")
    assert load_recipe("light_heavy").cascade.levels == ("light", "heavy")
    assert load_recipe("heavy").cascade.levels == ("heavy",)


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_name_bundled_members_and_themselves(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.target.name == "heavy"
    members = [stage.family_member for stage in recipe.stages if stage.drafter != "lookup"]
    assert members == [level for level in recipe.cascade.levels if level != "lookup"]
    assert recipe.cascade.mode == "strict"
    if name not in ("heavy", "lookup_heavy"):  # no drafter that sees
        assert recipe.encoder is not None and recipe.encoder.family_member == "event_encoder"
        assert recipe.adapter is not None and recipe.adapter.family_member == "adapter"
        assert (recipe.gate.accept, recipe.gate.reject, recipe.gate.policy) == (0.8, 0.5, "full")


def test_a_recipe_is_read_as_written(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[cascade]\nname = "mine"\nlevels = ["light", "heavy"]\nmode = "aligned"\nnum_draft_tokens = [5]\nwindow = 9\n'
        'slots = 3\nmax_len = 200\n[stages.heavy]\ncheckpoint = "/models/72b"\ndevice = "cuda:1"\ndtype = "bfloat16"\n'
        'threads = 2\nnum_gpus = 1.0\nnum_cpus = 4\nlabels = {gpu = "h200"}\n'
        '[stages.light]\ncheckpoint = "family:light"\n'
        '[encoder]\ncheckpoint = "family:event_encoder"\n[adapter]\ncheckpoint = "family:adapter"\n'
        '[gate]\naccept = 0.9\nreject = 0.1\npolicy = "spot"\nspot_fraction = 0.5\n[channels]\nbackend = "stream"\n'
        "[deadlines]\nrequest_s = 7\nupstream_s = 0\n"
    )
    recipe = load_recipe(path)
    assert recipe.cascade == CascadeConfig(
        name="mine",
        levels=("light", "heavy"),
        mode="aligned",
        num_draft_tokens=(5,),
        window=9,
        slots=3,
        max_len=200,
    )
    assert [stage.name for stage in recipe.stages] == ["light", "heavy"]  # the order of the levels, not of the file
    assert recipe.stage("heavy") == StageConfig(
        name="heavy",
        checkpoint="/models/72b",
        device="cuda:1",
        dtype="bfloat16",
        threads=2,
        num_gpus=1.0,
        num_cpus=4,
        labels={"gpu": "h200"},
    )
    assert recipe.target.path == Path("/models/72b") and recipe.stages[0].path is None
    assert recipe.gate == GateConfig(accept=0.9, reject=0.1, policy="spot", spot_fraction=0.5)
    assert recipe.channels == ChannelConfig(backend="stream")
    assert recipe.deadlines == DeadlineConfig(request_s=7, upstream_s=0)


def test_overrides_take_toml_values_and_bare_strings():
    recipe = load_recipe(
        "three_level",
        ["cascade.window=24", "stages.light.device=cpu", 'gate.policy = "spot"', "cascade.num_draft_tokens=[2, 3]"],
    )
    assert recipe.cascade.window == 24
    assert recipe.cascade.num_draft_tokens == (2, 3)
    assert recipe.stage("light").device == "cpu"
    assert recipe.gate.policy == "spot"
    assert load_recipe("three_level").cascade.window == 32  # nothing leaks into the next load


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("cascade.windw=4", "cascade.windw"),
        ("stages.light.gpu=1", "stages.light.gpu"),
        ("stages.huge.checkpoint=family:heavy", "stages"),
        ("stages.light=3", "stages.light"),
        ("nowhere.key=1", "recipe.nowhere"),
        ("gate.accept=2", "gate.accept"),
        ("gate.reject=0.9", "gate.reject"),
        ("cascade.levels.x=1", "cascade.levels.x"),
        ("cascade.window=0xF" + "F" * 5000, "cascade.window"),
        ("window=4", "override"),
        ("cascade.window", "override"),
        ("=4", "override"),
        ("cascade..x=4", "override"),
        ("cascade.name=a\nb=1", "override"),
        ("encoder.threads=-1", "encoder.threads"),
        ("channels.backend=carrier_pigeon", "channels.backend"),
        ("deadlines.request_s=0", "deadlines.request_s"),
    ],
)
def test_a_bad_override_is_refused_by_name(override, field):
    with pytest.raises(ConfigError) as caught:
        load_recipe("three_level", [override])
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("no_such_recipe", "three_level"),
        ("/no/such/file.toml", "readable"),
        ("~nobody_at_all/x.toml", "readable"),
        ("bad\0name.toml", "readable"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(source, allowed):
    with pytest.raises(ConfigError, match=allowed) as caught:
        load_recipe(source)
    assert caught.value.field == "recipe"


@pytest.mark.parametrize(
    "content",
    [b"[cascade", b"\xff\xfe", b"a = " + b"[" * 30_000, b"# " + b"x" * 70_000, b"a = 1\na = 2"],
    ids=["cut short", "not UTF-8", "nested without end", "too long", "key twice"],
)
def test_a_malformed_file_is_refused(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert caught.value.field == "recipe"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["cascade", "stages", "name", "levels", "gate", "heavy"]), inner, max_size=4
            )
        ),
    )
)
def test_any_nested_table_is_a_recipe_or_a_config_error(table):
    with pytest.raises(ConfigError):
        recipe_from_dict(table)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_recipe_or_a_config_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("recipes") / "any.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_recipe(path)


def _with(**changes: object) -> dict:
    return {**TWO, "cascade": {**TWO["cascade"], **changes}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"levels": ["heavy"]}, "cascade.num_draft_tokens"),
        ({"levels": ["light", "light"]}, "cascade.levels"),
        ({"levels": "light"}, "cascade.levels"),
        ({"levels": []}, "cascade.levels"),
        ({"levels": ["light", "Heavy"]}, "cascade.levels"),
        ({"levels": ["light", "large"]}, "stages"),
        ({"levels": [f"l{i}" for i in range(7)], "num_draft_tokens": [1] * 6}, "cascade.levels"),
        ({"num_draft_tokens": []}, "cascade.num_draft_tokens"),
        ({"num_draft_tokens": [0]}, "cascade.num_draft_tokens"),
        ({"num_draft_tokens": "4"}, "cascade.num_draft_tokens"),
        ({"num_draft_tokens": [32]}, "cascade.window"),
        ({"mode": "fast"}, "cascade.mode"),
        ({"mode": "aligned"}, "cascade.mode"),
        ({"mode": ["strict"]}, "cascade.mode"),
        ({"name": ""}, "cascade.name"),
        ({"name": "a b"}, "cascade.name"),
        ({"name": 3}, "cascade.name"),
    ],
)
def test_an_impossible_cascade_is_refused_by_name(change, field):
    with pytest.raises(ConfigError) as caught:
        recipe_from_dict(_with(**change))
    assert caught.value.field == field


@pytest.mark.parametrize("missing", ["cascade", "stages", "cascade.name", "cascade.levels", "stages.heavy.checkpoint"])
def test_a_missing_key_is_named(missing):
    text = '[cascade]\nname="x"\nlevels=["heavy"]\n[stages.heavy]\ncheckpoint="family:heavy"\n'
    table = tomllib.loads(text)
    *path, last = missing.split(".")
    inner = table
    for part in path:
        inner = inner[part]
    del inner[last]
    with pytest.raises(ConfigError, match=last):
        recipe_from_dict(table)


def test_encoder_and_adapter_come_together():
    lone = {**TWO, "encoder": {"checkpoint": "family:event_encoder"}}
    with pytest.raises(ConfigError, match="together"):
        recipe_from_dict(lone)


def test_an_unknown_level_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="light, mid, heavy"):
        load_recipe("three_level").stage("huge")


SAMPLING = {
    "temperature": beyond(0, 10),
    "top_k": beyond_integers(0, 1_000_000),
    "top_p": st.one_of(beyond(0, 1), st.just(0.0)),
    "seed": beyond_integers(0, 2**64 - 1),
    "max_tokens": beyond_integers(1, config.MAX_TOKENS),
    "stop": st.one_of(
        st.text(), st.integers(), st.just([""]), st.just(["x" * 65]), st.just(["x"] * 9), st.just([1]), st.none()
    ),
    "ignore_eos": st.one_of(st.integers(), st.text(), st.none()),
}


@pytest.mark.parametrize("field", SAMPLING)
@given(st.data())
def test_a_bad_sampling_parameter_is_refused_by_name(field, data):
    value = data.draw(SAMPLING[field])
    with pytest.raises(InputError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field


PLACES = {
    "window": (beyond_integers(1, 1024), lambda v: CascadeConfig(name="x", levels=("heavy",), window=v)),
    "slots": (beyond_integers(1, 4096), lambda v: CascadeConfig(name="x", levels=("heavy",), slots=v)),
    "max_len": (beyond_integers(16, 2**20), lambda v: CascadeConfig(name="x", levels=("heavy",), max_len=v)),
    "threads": (beyond_integers(0, 256), lambda v: StageConfig(name="heavy", checkpoint="x", threads=v)),
    "num_gpus": (beyond(0, 16), lambda v: StageConfig(name="heavy", checkpoint="x", num_gpus=v)),
    "num_cpus": (beyond(0, 256), lambda v: StageConfig(name="heavy", checkpoint="x", num_cpus=v)),
    "accept": (beyond(-1, 1), lambda v: GateConfig(accept=v, reject=-1)),
    "reject": (beyond(-1, 0.8), lambda v: GateConfig(reject=v)),
    "spot_fraction": (beyond(0, 1), lambda v: GateConfig(spot_fraction=v)),
    "start_s": (beyond(1, 3600), lambda v: DeadlineConfig(start_s=v)),
    "request_s": (beyond(0.1, 3600), lambda v: DeadlineConfig(request_s=v)),
    "upstream_s": (beyond(0, 60), lambda v: DeadlineConfig(upstream_s=v)),
    "control_s": (beyond(0.1, 600), lambda v: DeadlineConfig(control_s=v)),
    "drain_s": (beyond(0.1, 600), lambda v: DeadlineConfig(drain_s=v)),
}


@pytest.mark.parametrize("field", PLACES)
@given(st.data())
def test_a_number_out_of_range_is_refused_by_name(field, data):
    values, build = PLACES[field]
    with pytest.raises(ConfigError) as caught:
        build(data.draw(values))
    assert caught.value.field.endswith(f".{field}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("checkpoint", ""),
        ("checkpoint", "family:"),
        ("checkpoint", "family:../light"),
        ("checkpoint", "a\0b"),
        ("checkpoint", 3),
        ("device", "tpu"),
        ("device", "cuda:x"),
        ("device", "cuda:0 "),
        ("device", 0),
        ("dtype", "int8"),
        ("labels", [1]),
        ("labels", {f"k{i}": "v" for i in range(17)}),
    ],
)
def test_a_bad_placement_is_refused_by_name(field, value):
    with pytest.raises(ConfigError) as caught:
        StageConfig(name="light", **{"checkpoint": "family:light", field: value})
    assert caught.value.field == f"stages.light.{field}"


@pytest.mark.parametrize("labels", [{"gpu": ""}, {"gpu": 4}, {"gpu": "x" * 4097}])
def test_a_bad_label_is_refused_by_key(labels):
    with pytest.raises(ConfigError) as caught:
        StageConfig(name="light", checkpoint="family:light", labels=labels)
    assert caught.value.field == "stages.light.labels.gpu"


@given(
    temperature=st.floats(0, 10),
    top_k=st.integers(0, 1_000_000),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(1, config.MAX_TOKENS),
    stop=st.lists(st.text(min_size=1, max_size=64), max_size=8),
)
def test_what_is_allowed_is_kept_as_given(temperature, top_k, top_p, seed, max_tokens, stop):
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_tokens=max_tokens, stop=stop
    )
    assert (params.temperature, params.top_k, params.top_p, params.seed) == (temperature, top_k, top_p, seed)
    assert (params.max_tokens, params.stop) == (max_tokens, tuple(stop))


def test_configuration_cannot_change_after_it_was_checked():
    with pytest.raises(FrozenInstanceError):
        SamplingParams().temperature = 2.0  # type: ignore[misc]
    with pytest.raises(ConfigError):
        replace(GateConfig(), accept=7)


def test_labels_are_a_copy_of_what_was_given():
    labels = {"gpu": "h200"}
    stage = StageConfig(name="heavy", checkpoint="family:heavy", labels=labels)
    labels["gpu"] = 3  # type: ignore[assignment]
    assert stage.labels == {"gpu": "h200"}
