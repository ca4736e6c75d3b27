"""What does not fit a device is refused before a byte of it is read."""

from __future__ import annotations

import pytest
import torch

from cascade_runtime.errors import ConfigError
from cascade_runtime.models import load_checkpoint, loading, room
from cascade_runtime.models.bundled import family_path

CPU = torch.device("cpu")


def test_a_checkpoint_larger_than_what_is_free_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: 1_000_000)
    monkeypatch.setattr(loading.Checkpoint, "_read", lambda *a: pytest.fail("a weight was read"))
    with pytest.raises(ConfigError) as refused:
        load_checkpoint(family_path("heavy"), parts=("language",))
    assert str(refused.value) == "heavy [language]: got '0.0599 GB'; allowed: at most 0.001 GB, what cpu has free"


def test_slots_that_do_not_fit_beside_the_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    language = load_checkpoint(family_path("light"), parts=("language",)).language
    assert language is not None
    monkeypatch.setattr(room, "free_bytes", lambda device: 64 * language.kv_bytes_per_token)
    assert language.new_cache(2, 32).slots == 2
    with pytest.raises(ConfigError, match=r"cascade\.slots"):
        language.new_cache(2, 33)


def test_free_memory_is_that_of_the_control_group_without_files(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:  90 kB\n")
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUP", tmp_path)
    assert room.free_bytes(CPU) == 90 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    (tmp_path / "memory.current").write_text("45000\n")
    (tmp_path / "memory.stat").write_text("anon 15000\ninactive_file 20000\nactive_file 5000\n")
    assert room.free_bytes(CPU) == 30_000
    assert room.free_bytes(torch.device("meta")) is None
