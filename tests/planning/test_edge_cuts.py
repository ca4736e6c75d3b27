"""What crosses from an edge box: the quickest cut by link, and the bandwidths at which two are equal."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from cascade_runtime.errors import ConfigError
from cascade_runtime.planning import cluster_from_dict, edge_cuts, load_cluster, load_planned_recipe
from cascade_runtime.planning.edge_cuts import CutCost, break_even_mbit_s, parse_link, quickest, reigns, scenes
from cluster import cli

RAW = CutCost("raw", 2_000_000, 0.0, 0.010)
FRAMES = CutCost("frames", 100_000, 0.020, 0.005)
FEATURES = CutCost("features", 4_000_000, 0.030, 0.0)


def test_a_window_takes_its_work_its_bytes_and_the_way() -> None:
    assert FRAMES.seconds(mbit_s=8.0, latency_ms=50.0) == pytest.approx(0.020 + 0.005 + 0.05 + 0.1)


def test_at_the_break_even_both_take_equally_long_and_beside_it_the_other_is_quicker() -> None:
    even = break_even_mbit_s(RAW, FRAMES)
    assert even == pytest.approx(8 * 1_900_000 / 1e6 / 0.015) == break_even_mbit_s(FRAMES, RAW)
    assert RAW.seconds(even, 5) == pytest.approx(FRAMES.seconds(even, 5))
    assert quickest([RAW, FRAMES], even / 1.1, 5) == "frames" and quickest([RAW, FRAMES], even * 1.1, 5) == "raw"


def test_more_bytes_and_more_work_are_never_the_quicker() -> None:
    assert break_even_mbit_s(FEATURES, FRAMES) is None
    assert [cut for cut, _, _ in reigns([RAW, FRAMES, FEATURES])] == ["frames", "raw"]


def test_the_reigns_cover_every_bandwidth_and_name_the_quickest_in_each() -> None:
    spares = CutCost("features", 4_000_000, 0.001, 0.0)
    found = reigns([RAW, FRAMES, spares])
    assert found[0][1] == 0 and math.isinf(found[-1][2])
    assert all(before[2] == after[1] for before, after in pairwise(found))
    for cut, low, high in found:
        inside = min(max(low * 1.01, 0.001), 1e9) if math.isinf(high) else (low + high) / 2
        assert quickest([RAW, FRAMES, spares], inside, 0.0) == cut


def test_the_bytes_of_the_bundled_familys_features_follow_from_its_checkpoints() -> None:
    found = edge_cuts(load_planned_recipe("light_heavy"), load_cluster("2x4090"), "100,20")
    assert found is not None and (found.rule, found.mbit_s, found.latency_ms) == ("activity", 100.0, 20.0)
    choice = found.choices[0]
    sizes = {cost.cut: cost.window_bytes for cost in choice.costs}
    assert sizes["features"] - sizes["frames"] == 2 * 64 * (96 + 128) * 4
    assert choice.best == "frames"
    assert any("no pool has cameras" in note for note in found.notes)


def test_a_cluster_with_cameras_far_away_brings_its_own_link_and_others_none() -> None:
    recipe = load_planned_recipe("onevision_small")
    found = edge_cuts(recipe, load_cluster("edge_and_core"), None)
    assert found is not None and (found.mbit_s, found.latency_ms) == (100.0, 20.0)
    assert found.rule == "event_frame/last_wins" and "does not say" in found.notes[0]
    assert edge_cuts(recipe, load_cluster("2x4090"), None) is None


def test_a_slower_edge_makes_the_features_cut_slower_and_nothing_else() -> None:
    def features(kind: str) -> dict[str, float]:
        pools = [{"name": "vehicle", "kind": kind, "cameras": True, "site": "edge"}, {"name": "core", "kind": "h200"}]
        made = cluster_from_dict({"name": "c", "pools": pools})
        found = edge_cuts(load_planned_recipe("light_heavy"), made, "1000,1")
        assert found is not None
        return {cost.cut: cost.seconds(1000, 1) for cost in found.choices[0].costs}

    small, large = features("orin_64"), features("h200")
    assert small["features"] > large["features"]
    assert (small["raw"], small["frames"]) == (large["raw"], large["frames"])


def test_measured_frames_are_within_what_pictures_can_be() -> None:
    for scene in scenes():
        assert 0 < scene.frame_bytes["event_frame/last_wins"] < scene.raw_bytes
        assert scene.raw_bytes / scene.events == pytest.approx(13, rel=0.1)  # t 8, x 2, y 2, p 1


@pytest.mark.parametrize("text", ["", "10", "10,x", "10,5,3,2", "0,5", "10,-1", "nan,5", "10,5,0"])
def test_a_link_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--edge-link"):
        parse_link(text)


def test_the_command_shows_bytes_and_break_evens(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "light_heavy", "--cluster", "2x4090", "--streams", "1", "--edge-link", "10,50"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "edge and core 10 Mbit/s and 50 ms apart" in said and "quickest: frames below" in said
    assert cli.main([*command, "--json"]) == 0
    edge = json.loads(capsys.readouterr().out)["edge"]
    assert (
        edge["scenes"][0]["quickest"][0]["cut"] == "frames" and edge["scenes"][0]["quickest"][-1]["to_mbit_s"] is None
    )
