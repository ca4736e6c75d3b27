"""The manifest: what it wrote is what it reads, any change of configuration is found and named, models have a hash."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_batch import recipe

from cascade_runtime.batch import manifest
from cascade_runtime.batch.manifest import Manifest, configuration
from cascade_runtime.errors import ConfigError

NAMES = st.sampled_from(["recipe", "asked", "seed", "window"])
LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4) | st.lists(st.integers(0, 3), max_size=3)
TABLES = st.recursive(
    st.dictionaries(NAMES, LEAVES, min_size=1, max_size=3), lambda inner: st.dictionaries(NAMES, inner, max_size=3)
)


@settings(max_examples=40, deadline=None)
@given(before=TABLES, now=TABLES, complete=st.booleans())
def test_a_run_goes_on_exactly_under_the_configuration_it_began_with(
    before: dict[str, Any], now: dict[str, Any], complete: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.manifest.json"
        assert Manifest.load(path) is None
        Manifest(before, complete, {"rows": 3}).save(path)
        read = Manifest.load(path)
        assert read == Manifest(before, complete, {"rows": 3})
        read.check_same(before)
        if now != before:
            with pytest.raises(ConfigError, match="no-resume"):
                read.check_same(now)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ConfigError, match="manifest"):
            Manifest.load(path)


def test_any_byte_of_a_model_and_any_file_of_the_input_is_part_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "model", tmp_path / "q.jsonl"
    folder.mkdir()
    asked.write_text("{}")
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(3000))

    def told(**changes: Any) -> dict[str, Any]:
        files = {"files": [asked], "recipe": recipe(), "asked": {"seed": 1}, "checkpoints": {"heavy": str(folder)}}
        return configuration(**{**files, **changes})

    first = told()
    assert told() == first and first["recipe"]["cascade"]["slots"] == 16
    assert told(recipe=recipe("cascade.slots=4"))["recipe"]["cascade"]["slots"] == 4
    weights.write_bytes(bytes(2999) + b"\1")
    assert told()["models"] != first["models"] and told()["files"] == first["files"]
    weights.rename(folder / "other.safetensors")
    assert len({told()["models"]["heavy"], first["models"]["heavy"]}) == 2
    asked.write_text("{ }")
    assert told()["files"] != first["files"]
    monkeypatch.setattr(manifest, "_WHOLE_BYTES", 1000)  # as for a model of many gigabytes: some blocks, and the size
    monkeypatch.setattr(manifest, "_BLOCK", 10)
    several = [told()["models"]["heavy"]]
    for content in (b"\1" + bytes(2999), bytes(2999) + b"\2", bytes(3001)):
        (folder / "other.safetensors").write_bytes(content)
        several.append(told()["models"]["heavy"])
    assert len(set(several)) == 4
