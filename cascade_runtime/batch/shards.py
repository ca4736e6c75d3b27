"""`Shards`: the answers committed so far, as small files that are each there whole or not at all.

    answers.jsonl.parts/
        lock                          held while a run writes here
        00000000-0000.jsonl           outcomes of window 0, then {"rows": 64, "sha256": ...} of the lines above
        00000000-0001.jsonl
        00000001-0000.failed.jsonl    rows the cascade failed on: forgotten when the run goes on, which asks them again

A row is committed when the shard that holds it has its name. Shards never change, a row is in one shard only, and a
shard whose last line does not fit the others is treated as if it had never been written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cascade_runtime.batch.durable import HALF_WRITTEN, remove, storage_errors, write_durably
from cascade_runtime.errors import ConfigError

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{8})-(\d{4,})(\.failed)?\.jsonl")

OutcomeRow = Mapping[str, Any]  # `Outcome.to_dict`


class Shards:
    """The shards of one output. Opening them locks their folder, drops what is half written or has failed, and finds
    out which rows are done. Raises `ConfigError` while another run writes there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
            self._lock = (folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError("output", str(folder), "an output that no other run is writing") from error
        self._done = bytearray()  # by row: 1 where it is committed
        self._by_window: dict[int, list[Path]] = {}
        self._next: dict[int, int] = {}
        self._load()

    def _load(self) -> None:
        for path in sorted(self.folder.iterdir()):
            name = _NAME.fullmatch(path.name)
            rows = None if name is None or name[3] else _verified(path)
            if rows is not None and name is not None:
                self._add(path, int(name[1]), int(name[2]), [row["index"] for row in rows])
            elif name is not None or path.name.endswith(HALF_WRITTEN):
                if name is not None and not name[3]:
                    log.warning("%s is damaged: its rows are asked again", path)
                remove(path)

    def _add(self, path: Path, window: int, number: int, indices: Sequence[int]) -> None:
        self._by_window.setdefault(window, []).append(path)
        self._next[window] = max(self._next.get(window, 0), number + 1)
        self._done.extend(bytes(max(0, max(indices) + 1 - len(self._done))))
        for index in indices:
            self._done[index] = 1

    def is_done(self, index: int) -> bool:
        """Whether a row is committed."""
        return index < len(self._done) and bool(self._done[index])

    @property
    def count(self) -> int:
        """How many rows are committed."""
        return sum(self._done)

    def commit(self, window: int, rows: Sequence[OutcomeRow], *, failed: bool = False) -> None:
        """Put outcomes of a window on the disk; they are committed when this returns. Raises what `write_durably`
        does, and then they are not.
        """
        if not rows:
            return
        number = self._next.get(window, 0)
        path = self.folder / f"{window:08d}-{number:04d}{'.failed' if failed else ''}.jsonl"
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        last = json.dumps({"rows": len(rows), "sha256": hashlib.sha256(lines).hexdigest()}).encode() + b"\n"
        write_durably(path, lambda file: file.write(lines + last))
        self._add(path, window, number, [row["index"] for row in rows])

    def in_order(self) -> Iterator[list[OutcomeRow]]:
        """All outcomes in the order of the input, a window at a time."""
        for window in sorted(self._by_window):
            rows = [row for path in self._by_window[window] for row in _verified(path) or ()]
            yield sorted(rows, key=lambda row: row["index"])

    def remove(self) -> None:
        """Remove the shards and their folder, and give back the lock."""
        for path in [path for paths in self._by_window.values() for path in paths]:
            remove(path)
        self._by_window, self._done = {}, bytearray()
        self.close()
        remove(self.folder / "lock")
        with storage_errors(self.folder):
            self.folder.rmdir()

    def close(self) -> None:
        """Give back the lock. A second call does nothing."""
        self._lock.close()


def _verified(path: Path) -> list[OutcomeRow] | None:
    """The outcomes of a shard, or None where it is not whole."""
    with storage_errors(path):
        *lines, last = path.read_bytes().splitlines(keepends=True) or [b""]
    try:
        footer = json.loads(last)
        whole = footer["rows"] == len(lines) and footer["sha256"] == hashlib.sha256(b"".join(lines)).hexdigest()
    except (ValueError, KeyError, TypeError):
        return None
    return [json.loads(line) for line in lines] if whole and lines else None
