"""A batch: bad rows, one reading per recording, refusals to go on, failures of the cascade, full disks, figures."""

from __future__ import annotations

import errno
import gc
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted_batch import RECIPE, Scripted, batch, said, write_recording

from cascade_runtime.api import GenerateRequest
from cascade_runtime.batch import durable
from cascade_runtime.batch.recordings import Recordings
from cascade_runtime.errors import CapacityError, CascadeError, ConfigError, DeadlineExceeded, InputError, StageError
from cluster import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_recording(tmp_path / "in" / f"{number}.npz", number)
    return tmp_path / "in"


def write(folder: Path, *rows: dict[str, Any] | str) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "q.jsonl").write_text("\n".join(lines) + "\n")


def read(folder: Path, name: str = "a.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def question(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "events": f"{number % 3}.npz", "question": f"What is number {number}?", **more}


def test_questions_about_a_recording_are_asked_together_and_it_is_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, *(question(number) for number in range(12)))
    transport, readers = Scripted(), []
    make = Recordings.__init__
    monkeypatch.setattr(Recordings, "__init__", lambda self, root: (make(self, root), readers.append(self))[0])
    batch(folder, transport)
    assert [int(request.question.split()[-1][:-1]) % 3 for request in transport.asked] == [0] * 4 + [1] * 4 + [2] * 4
    assert [reader.reads for reader in readers] == [3]
    assert [row["id"] for row in read(folder)] == [f"q{number}" for number in range(12)]  # in the input's order


def test_a_window_bounds_what_is_held_and_ends_where_the_recording_changes(folder: Path) -> None:
    write(folder, *(question(number // 4) for number in range(12)))  # 0 0 0 0 1 1 1 1 2 2 2 2
    transport = Scripted()
    batch(folder, transport, window_rows=3, concurrency=100)
    told = [len(set(map(id, (request.events for request in transport.asked[i : i + 4])))) for i in (0, 4, 8)]
    assert told == [1, 1, 1] and len(transport.asked) == 12


def test_a_bad_row_is_an_error_row_and_harms_no_other(folder: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "outside.npz")
    (folder / "link.npz").symlink_to(tmp_path / "outside.npz")
    (folder / "broken.npz").write_bytes(b"PK\x03\x04nonsense")
    bad = [
        "{nothing",
        "[1]",
        {"question": "about nothing"},
        {"events": "0.npz", "video": "1.npz", "question": "which?"},
        {"events": "0.npz", "question": " "},
        {"events": "0.npz", "question": "x" * 9000},
        {"events": "0.npz", "question": "x", "options": ["one"]},
        {"events": "0.npz", "question": "x", "options": ["a car", "a tree"], "answer": "a bus"},
        {"events": "0.npz", "question": "x", "id": ["?"]},
        {"events": "../outside.npz", "question": "x"},
        {"events": str(tmp_path / "outside.npz"), "question": "x"},
        {"events": "link.npz", "question": "x"},
        {"events": "https://example.org/0.npz", "question": "x"},
        {"events": "no-such.npz", "question": "x"},
        {"events": "broken.npz", "question": "x"},
        {"events": "0.npz", "question": "x", "start_s": 5, "end_s": 6},
        '{"question": "' + "y" * 2_000_000 + '"}',
    ]
    write(folder, question(0), *bad, question(1))
    told = batch(folder)
    rows = read(folder)
    assert [row["error_kind"] is None for row in rows] == [True, *[False] * len(bad), True]
    assert told.answers == 2 and told.failed == 0 and sum(told.errors.values()) == len(bad)
    assert set(told.errors) == {"InputError", "EventFormatError"}
    fields = [row["error"].split(":")[0] for row in rows[1:-1]]
    assert fields[:2] == ["row", "row"] and fields[4:9] == ["question", "question", "options", "answer", "id"]
    assert fields[9:14] == ["recording"] * 5 and rows[1]["id"] == "1"


def test_a_run_under_another_configuration_is_refused_and_says_what_differs(folder: Path) -> None:
    write(folder, question(0))
    batch(folder)
    before = (folder / "a.jsonl").read_bytes()
    for change, words in (
        ({"speculate": False}, "asked.speculate was true, is false"),
        ({"window_rows": 7}, "asked.window_rows was 1024, is 7"),
        ({"overrides": ["emulation.seed=5"]}, "recipe.emulation.seed"),
    ):
        with pytest.raises(ConfigError, match="no-resume") as caught:
            batch(folder, **change)
        assert words in str(caught.value.value)
    write(folder, question(0), question(1))
    with pytest.raises(ConfigError, match="no-resume") as caught:
        batch(folder)
    assert "files.q.jsonl" in str(caught.value.value) and (folder / "a.jsonl").read_bytes() == before
    assert batch(folder, resume=False).rows == 2
    transport = Scripted()
    assert batch(folder, transport, concurrency=1, shard_rows=1).rows == 2 and not transport.asked  # complete already


def test_a_file_that_no_batch_wrote_is_not_replaced(folder: Path) -> None:
    write(folder, question(0))
    (folder / "a.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="no-resume"):
        batch(folder)
    (folder / "a.jsonl").unlink()
    (folder / "a.jsonl.manifest.json").write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="manifest"):
        batch(folder)


def test_a_row_that_fails_is_asked_twice_and_again_by_the_next_run(folder: Path) -> None:
    write(folder, *(question(number) for number in range(6)))

    def poison(request: GenerateRequest) -> Any:
        return StageError("mid", "r", "it died") if "number 4" in request.question else said(request)

    transport = Scripted(poison)
    told = batch(folder, transport)
    assert told.answers == 5 and told.failed == 1 and dict(told.errors) == {"StageError": 1}
    assert sum("number 4" in request.question for request in transport.asked) == 2
    assert [row["error_kind"] for row in read(folder)] == [None] * 4 + ["StageError", None]
    healthy = Scripted()
    told = batch(folder, healthy)
    assert [request.question for request in healthy.asked] == ["What is number 4?"]
    assert told.failed == 0 and told.answers == 6 and not (folder / "a.jsonl.parts").exists()


def test_a_cascade_that_always_fails_ends_the_run_and_what_was_answered_stays(folder: Path) -> None:
    write(folder, *(question(number) for number in range(200)))
    given = 0

    def dying(request: GenerateRequest) -> Any:
        nonlocal given
        given += 1
        return said(request) if given <= 60 else DeadlineExceeded("no answer in time")

    with pytest.raises(StageError, match=r"3\d rows in turn failed"):
        batch(folder, Scripted(dying))
    assert not (folder / "a.jsonl").exists()
    healthy = Scripted()
    assert batch(folder, healthy).answers == 200
    assert len(healthy.asked) == 140


def test_a_full_disk_is_a_clear_error_that_loses_nothing_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, *(question(number) for number in range(40)))
    synced, fsync = 0, os.fsync

    def full(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(durable.os, "fsync", full)
        with pytest.raises(CapacityError, match="No space left on device; what was committed is safe"):
            batch(folder)
    assert not list(folder.rglob("*.half-written"))
    transport = Scripted()
    assert batch(folder, transport).answers == 40
    assert len(transport.asked) == 40 - 3 * 4  # the manifest and three shards were on the disk


def test_accuracy_acceptance_and_bleu_are_of_the_whole_output(folder: Path) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = {
        "one": "B.",
        "two": "It is a tree",
        "three": "no idea",
        "four": "A red car passes by slowly",
        "five": "two",
    }

    def answer(request: GenerateRequest) -> Any:
        return replace(said(request), text=texts[request.question.split("\n")[0]])

    pair = {"events": "0.npz", "options": ["a car", "a tree"]}
    write(
        folder,
        {**pair, "question": "one", "answer": "B"},
        {**pair, "question": "two", "answer": "a car"},
        {**pair, "question": "three", "answer": "A"},
        {"events": "1.npz", "question": "four", "answer": "the red car passes by slowly"},
        {"events": "1.npz", "question": "five", "answer": 2},
    )
    told = batch(folder, Scripted(answer))
    assert (told.choices, told.choices_right, told.choices_unnamed) == (3, 1, 1)
    assert (told.open, told.open_same, told.open_contained) == (2, 2, 2)
    assert [row["choice"] for row in read(folder)] == ["B", "B", None, None, None]
    assert told.edges["light-heavy"][0] == 5 * 4 and told.tokens == 5 * 6
    pairs = [texts["four"], texts["five"]], [["the red car passes by slowly", "2"]]
    assert told.bleu4 == pytest.approx(sacrebleu.metrics.BLEU().corpus_score(*pairs).score, abs=0.01)
    assert 50 < told.bleu4 < 100 and told.cider and f"CIDEr-D {told.cider:.2f}" in told.text()
    assert told.to_dict()["accuracy"] == 0.3333


def test_parquet_in_and_out_has_every_column_in_every_file(folder: Path) -> None:
    rows = [question(0, options=["a", "b"], answer="a"), {"events": "gone.npz", "question": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "q.parquet")
    batch(folder, input=folder / "q.parquet", output=folder / "a.parquet")
    table = pq.read_table(folder / "a.parquet")
    assert table.column("index").to_pylist() == [0, 1] and table.column("id").to_pylist() == ["q0", "1"]
    assert table.column("error_kind").to_pylist() == [None, "InputError"]
    write(folder, question(0))
    batch(folder, output=folder / "b.parquet")
    assert pq.read_table(folder / "b.parquet").schema == table.schema  # without an error, options or a score
    (folder / "q.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(InputError, match="readable Parquet"):
        batch(folder, input=folder / "q.parquet", output=folder / "c.jsonl")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"output": "a.csv"}, r"\.jsonl or \.parquet"),
        ({"output": "no/such/folder/a.jsonl"}, "existing folder"),
        ({"layout": "mine"}, "mvbench"),
        ({"root": Path("no/such/folder")}, "existing folder"),
        ({"concurrency": 0}, "concurrency"),
        ({"input": "no-such.jsonl"}, "existing file"),
        ({"input": "q.xlsx"}, r"\.jsonl, \.parquet"),
    ],
)
def test_what_cannot_be_a_batch_is_refused(folder: Path, settings: dict[str, Any], words: str) -> None:
    write(folder, question(0))
    (folder / "q.xlsx").write_bytes(b"PK")
    paths = {
        name: folder / value if isinstance(value, str) and "." in value else value for name, value in settings.items()
    }
    with pytest.raises(CascadeError, match=words):
        batch(folder, **paths)


def test_the_command_answers_reports_and_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, *(question(number) for number in range(4)), "{")
    arguments = ["batch", "-i", str(folder / "q.jsonl"), "-o", str(folder / "a.jsonl"), "--recipe", str(RECIPE)]
    arguments += ["--max-tokens", "8", "--json", "--quiet"]
    assert cli.main(arguments) == cli.OK
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 5 and told["answers"] == 4 and told["errors"] == {"InputError": 1}
    assert all(len(row["token_ids"]) == 8 for row in read(folder)[:4])
    assert cli.main(arguments) == cli.OK
    printed = capsys.readouterr()
    assert json.loads(printed.out) == told and "complete already" in printed.err
    assert cli.main([*arguments, "--alone"]) == cli.USAGE
    assert "asked.speculate" in capsys.readouterr().err


def test_waves_that_fail_together_leave_no_error_behind(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, *(question(number) for number in range(12)))

    class Broken(Scripted):
        async def run(self, requests: Any, timeout_s: float | None, stream: bool) -> Any:
            raise StageError("heavy", "r", "gone")
            yield

    with pytest.raises(StageError, match="gone"):
        batch(folder, Broken(), concurrency=1)
    gc.collect()
    assert not caplog.records  # asyncio tells of errors that nobody has taken
