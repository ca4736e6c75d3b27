"""Killed at any moment and started again, a batch gives the file of an uninterrupted run: each row once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_batch import batch, write_recording

from cascade_runtime.batch import durable

ROWS = 160


def write_questions(folder: Path, rows: int) -> None:
    """Questions about five recordings, mixed, with a bad row among them."""
    for number in range(5):
        write_recording(folder / f"{number}.npz", number)
    lines = [
        json.dumps({"id": f"q{i}", "events": f"{i * 7 % 5}.npz", "question": f"What is number {i}?"})
        for i in range(rows)
    ]
    lines[rows // 2] = "{this is no row"
    (folder / "q.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
    return folders


def wait_for_answers(counter: Path, process: subprocess.Popen[bytes], more: int) -> None:
    """Until a run has given so many answers more than were there; a file holds a byte for each."""
    before, until = counter.stat().st_size if counter.exists() else 0, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if counter.exists() and counter.stat().st_size >= before + more:
            return
        time.sleep(0.001)
    raise AssertionError(f"no {more} answers came")


def test_a_batch_killed_again_and_again_gives_every_row_once(two_folders: tuple[Path, Path]) -> None:
    undisturbed, killed = two_folders
    for folder in two_folders:
        write_questions(folder, ROWS)
    batch(undisturbed, window_rows=24)
    rng, kills, committed = random.Random(11), 0, 0
    while True:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("scripted_batch.py")), str(killed), "0.004"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        if kills < 4:
            wait_for_answers(killed / "asked", process, more=rng.randint(1, 25))
            process.send_signal(signal.SIGKILL)
        code = process.wait(timeout=60)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        assert not (killed / "a.jsonl").exists()  # never half of it
        shards = list((killed / "a.jsonl.parts").glob("*.jsonl")) if (killed / "a.jsonl.parts").exists() else []
        assert len(shards) >= committed  # nothing that was committed is lost
        committed = len(shards)
    assert kills == 4 and committed > 0
    assert (killed / "a.jsonl").read_bytes() == (undisturbed / "a.jsonl").read_bytes()
    rows = [json.loads(line) for line in (killed / "a.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(ROWS))
    assert [row["error_kind"] for row in rows if row["error"]] == ["InputError"]
    asked = len((killed / "asked").read_bytes())
    assert ROWS - 1 <= asked <= ROWS - 1 + kills * (2 * 4 + 4)  # two waves and a shard at most are asked twice
    assert not (killed / "a.jsonl.parts").exists()


class Killed(BaseException):
    """The process stops here."""


class Disk:
    """The disk's operations; number `last` and all later ones stop the process, before or after their work."""

    def __init__(self, last: int, *, after: bool) -> None:
        self.last, self.after, self.calls = last, after, 0

    def wrap(self, operation):
        def call(*arguments):
            self.calls += 1
            if self.calls == self.last and self.after:
                operation(*arguments)
            if self.calls >= self.last:
                raise Killed
            return operation(*arguments)

        return call


@pytest.mark.parametrize("after", [False, True])
def test_whatever_operation_of_the_disk_is_the_last_nothing_is_lost(
    two_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    undisturbed, killed = two_folders
    for folder in two_folders:
        write_questions(folder, 10)
    batch(undisturbed)
    expected = (undisturbed / "a.jsonl").read_bytes()
    last = 1
    while True:
        disk = Disk(last, after=after)
        with monkeypatch.context() as patched:
            for name in ("replace", "fsync"):
                patched.setattr(durable.os, name, disk.wrap(getattr(durable.os, name)))
            try:
                batch(killed)
                break
            except Killed:
                pass
        assert not (killed / "a.jsonl").exists() or (killed / "a.jsonl").read_bytes() == expected
        batch(killed)
        assert (killed / "a.jsonl").read_bytes() == expected
        for left in killed.glob("a.jsonl*"):
            left.unlink()
        last += 1
    assert last > 20  # of so many operations each was the last once
