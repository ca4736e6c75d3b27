"""The published sizes, from their real configurations on the meta device."""

from __future__ import annotations

import pytest

from cascade_runtime.errors import ConfigError
from cascade_runtime.models import stage_sizes


@pytest.mark.parametrize(
    ("size", "rows", "hidden", "kv", "billions"),
    [("0.5b", 152000, 896, 12_288, 0.894), ("7b", 152128, 3584, 57_344, 8.031), ("72b", 152128, 8192, 327_680, 73.18)],
)
def test_a_published_size_weighs_what_is_known_of_it(size, rows, hidden, kv, billions):
    sizes = stage_sizes(size)
    assert sizes.lm_head_rows == rows
    assert sizes.shapes["language"]["decoder.embed_tokens.weight"] == (rows, hidden)
    assert sizes.kv_bytes_per_token == kv
    assert sizes.shapes["projector"]["mlp.linear_1.weight"] == (hidden, 1152)
    assert sizes.shapes["projector"]["newline"] == (hidden,)
    assert sizes.shapes["vision"]["embeddings.position_embedding.weight"] == (729, 1152)
    assert len({n.split(".")[2] for n in sizes.shapes["vision"] if n.startswith("encoder.layers")}) == 26
    assert sizes.visual_tokens_per_frame == 196
    assert sizes.raw_bytes_per_frame == 729 * 1152 * 2
    assert sizes.visual_bytes_per_frame == 196 * hidden * 2
    assert sum(sizes.part_bytes.values()) / 2e9 == pytest.approx(billions, rel=1e-3)


def test_towers_weigh_the_same_and_heads_are_tied_only_in_the_smallest():
    vision = {stage_sizes(size).part_bytes["vision"] for size in ("0.5b", "7b", "72b")}
    assert len(vision) == 1
    tied = ["lm_head.weight" not in stage_sizes(size).shapes["language"] for size in ("0.5b", "7b", "72b")]
    assert tied == [True, False, False]


def test_another_size_is_refused():
    with pytest.raises(ConfigError, match="size"):
        stage_sizes("13b")
