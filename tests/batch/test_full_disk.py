"""A disk that fills up in the middle of a batch: a typed error, no half row, and the next run goes on."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from full_disk import files_up_to
from scripted_batch import Scripted, batch, write_recording

from cascade_runtime.batch import durable
from cascade_runtime.errors import CapacityError

ROWS = 24


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "roomy", tmp_path / "full"
    for folder in made:
        folder.mkdir()
        write_recording(folder / "0.npz")
        lines = [json.dumps({"id": f"q{i}", "events": "0.npz", "question": f"What is {i}?"}) for i in range(ROWS)]
        (folder / "q.jsonl").write_text("\n".join(lines) + "\n")
    batch(made[0])
    return made


def whole_lines(folder: Path) -> bool:
    """Whether all that has a name holds whole rows."""
    named = [path for path in folder.rglob("*.jsonl") if path.name != "q.jsonl"]
    for path in named:
        text = path.read_text()
        assert text.endswith("\n") and all(json.loads(line) for line in text.splitlines()), path
    return not list(folder.rglob("*.half-written"))


def test_whichever_write_finds_no_room_the_next_run_makes_the_same_file(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy, full = folders
    expected, room = (roomy / "a.jsonl").read_bytes(), 0
    fsync = os.fsync
    while True:
        left = room

        def sync(handle: int) -> None:
            nonlocal left
            if (left := left - 1) < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        with monkeypatch.context() as patched:
            patched.setattr(durable.os, "fsync", sync)
            try:
                batch(full)
                break
            except CapacityError as error:
                assert "No space left on device" in str(error) and error.retryable
        assert whole_lines(full)
        assert not (full / "a.jsonl").exists() or (full / "a.jsonl").read_bytes() == expected
        batch(full)
        assert (full / "a.jsonl").read_bytes() == expected
        for made in full.glob("a.jsonl*"):
            made.unlink()
        room += 1
    assert room > 10


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_system_that_refuses_bytes_is_such_a_disk(folders: tuple[Path, Path], share: float) -> None:
    """No room for the manifest; for the output; for its last line."""
    roomy, full = folders
    expected = (roomy / "a.jsonl").read_bytes()
    with files_up_to(int(share * len(expected))), pytest.raises(CapacityError, match="make room and run the same"):
        batch(full)
    assert whole_lines(full) and not (full / "a.jsonl").exists()
    transport = Scripted()
    assert batch(full, transport).answers == ROWS
    assert (full / "a.jsonl").read_bytes() == expected
    assert share < 0.1 or not transport.asked  # every answer was on the disk
