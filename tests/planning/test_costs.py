"""Sizes and the roofline: against the library's own modules, and against arithmetic done by hand."""

from __future__ import annotations

import pytest

from cascade_runtime.config import load_recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.models import stage_sizes
from cascade_runtime.planning.cluster import Kind
from cascade_runtime.planning.model_size import published, read_size, size_of
from cascade_runtime.planning.roofline import roofline, slowed
from cluster.doctor import FAMILY, parameters

KIND = Kind(
    name="k",
    memory_gib=80,
    bandwidth_gb_s=1000,
    tflops={"bfloat16": 100, "float32": 10},
    bandwidth_share=1.0,
    flops_share=1.0,
    layer_us=100,
)
SEVEN = read_size(published()["llava-onevision-qwen2-7b-ov-hf"], "7b", "stages.heavy")


@pytest.mark.parametrize("size", ["0.5b", "7b", "72b"])
def test_a_published_size_is_counted_as_the_library_builds_it(size):
    counted, built = read_size(published()[f"llava-onevision-qwen2-{size}-ov-hf"], size, size), stage_sizes(size)
    assert 2 * counted.language == built.part_bytes["language"]
    assert 2 * counted.projector == built.part_bytes["projector"]
    assert 2 * counted.vision == built.part_bytes["vision"]
    assert 2 * counted.kv == built.kv_bytes_per_token
    assert counted.visual_tokens == built.visual_tokens_per_frame


def test_the_bundled_family_is_counted_as_its_files_hold_it():
    recipe = load_recipe("three_level")
    for stage in (*recipe.stages, recipe.encoder, recipe.adapter):
        size = size_of(stage)
        assert size.language + size.projector + size.vision == parameters(FAMILY / stage.family_member)


def test_one_token_is_bound_by_memory_and_a_prompt_by_operations():
    cost = roofline(SEVEN, KIND, "bfloat16")
    read = SEVEN.language - SEVEN.idle
    assert cost.seconds(1, 1) == pytest.approx(28e-4 + 2 * read / 1e12)
    assert cost.seconds(1, 2000) == pytest.approx(28e-4 + 2000 * 2 * read / 1e14)
    assert cost.seconds(4, 4, 10_000) - cost.seconds(4, 4) == pytest.approx(10_000 * 57_344 / 1e12)


def test_quantised_weights_are_read_faster_and_computed_as_fast():
    whole, quarter = roofline(SEVEN, KIND, "bfloat16"), roofline(SEVEN, KIND, "int4")
    assert quarter.seconds(1, 1) < 0.6 * whole.seconds(1, 1)
    assert quarter.seconds(1, 4000) == whole.seconds(1, 4000)


def test_a_shared_device_takes_everything_longer_by_the_same_factor():
    cost = roofline(SEVEN, KIND, "bfloat16")
    for work in ((1, 1, 0), (4, 4, 9000), (1, 3000, 3000)):
        assert slowed(cost, 2.5).seconds(*work) == pytest.approx(2.5 * cost.seconds(*work))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "gpt2"}, "s.model_type"),
        ({"text_config": None}, "s.text_config"),
        ({"text_config": {"hidden_size": -1}}, "s.text_config.hidden_size"),
        ({"vision_config": {"hidden_size": 2**40}}, "s.vision_config.hidden_size"),
    ],
)
def test_an_absurd_configuration_is_refused_by_field(change, field):
    with pytest.raises(ConfigError) as refusal:
        read_size({**published()["llava-onevision-qwen2-7b-ov-hf"], **change}, "x", "s")
    assert refusal.value.field == field
