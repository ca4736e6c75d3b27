"""Shards: what is committed is found again, what is damaged is not, and no row is there twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.batch.output import compose
from cascade_runtime.batch.shards import Shards
from cascade_runtime.errors import CascadeError, ConfigError


def rows(*indices: int) -> list[dict[str, object]]:
    return [{"index": index, "text": f"answer {index}"} for index in indices]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_shards_keep_what_is_whole_and_forget_the_rest(data: st.DataObject) -> None:
    """Rows committed in any order and in several runs; then some shards are cut short or altered."""
    count = data.draw(st.integers(1, 30), "rows")
    order = data.draw(st.permutations(range(count)), "order")
    with tempfile.TemporaryDirectory() as name:
        folder, held, at = Path(name) / "parts", dict[str, set[int]](), 0
        while at < count:
            shards = Shards(folder)  # a new run
            for _ in range(data.draw(st.integers(1, 4), "shards of the run")):
                part = order[at : at + data.draw(st.integers(1, 6), "rows of the shard")]
                by_window = {window: [i for i in part if i // 10 == window] for window in range(3)}
                for window, indices in by_window.items():
                    before = set(folder.iterdir())
                    shards.commit(window, rows(*indices))
                    held |= {path.name: set(indices) for path in set(folder.iterdir()) - before}
                at += len(part)
            shards.close()
        for name in data.draw(st.sets(st.sampled_from(sorted(held))), "damaged"):
            text = bytearray((folder / name).read_bytes())
            place = data.draw(st.integers(0, len(text) - 2), "place")
            if data.draw(st.booleans(), "cut"):
                del text[place:]
            else:
                text[place] ^= 1
            (folder / name).write_bytes(text)
            del held[name]
        shards = Shards(folder)
        whole = set().union(*held.values())
        assert {i for i in range(count) if shards.is_done(i)} == whole and shards.count == len(whole)
        assert [row["index"] for window in shards.in_order() for row in window] == sorted(whole)
        shards.commit(9, rows(*(i for i in range(count) if i not in whole)))  # asked again
        assert sorted(row["index"] for window in shards.in_order() for row in window) == list(range(count))
        shards.close()


def test_failed_rows_are_in_the_output_and_asked_again(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "parts")
    shards.commit(0, rows(0, 2))
    shards.commit(0, rows(1), failed=True)
    assert [row["index"] for row in next(shards.in_order())] == [0, 1, 2]
    shards.close()
    again = Shards(tmp_path / "parts")
    assert [again.is_done(index) for index in range(3)] == [True, False, True]
    again.close()


def test_two_runs_cannot_write_one_output(tmp_path: Path) -> None:
    first = Shards(tmp_path / "parts")
    with pytest.raises(ConfigError, match="no other run"):
        Shards(tmp_path / "parts")
    first.close()
    Shards(tmp_path / "parts").close()


def test_nothing_is_composed_of_rows_that_are_missing_or_there_twice(tmp_path: Path) -> None:
    for windows, count in (([rows(0, 2)], 3), ([rows(0, 0)], 2), ([rows(0)], 2), ([rows(1), rows(0)], 2)):
        with pytest.raises(CascadeError, match=r"there once|has changed"):
            compose(tmp_path / "a.jsonl", windows, count)
        assert not list(tmp_path.iterdir())
    compose(tmp_path / "a.jsonl", [rows(0, 1), rows(2)], 3)
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 3
