"""`RecordedAnswers`: what the levels of a cascade said to a number of questions, read from a JSON file.

    {"end": 2, "answers": [{"heavy": [450, 1820, ...], "light": [512, 278, ...]}, ...]}

end: the id that ends an answer (it need not be written down). Per answer and level: token ids, for a drafter what it
says at each position of the target's answer. Only the levels that the recipe needs are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_runtime.errors import ConfigError

_MOST_BYTES = 1 << 28
_MOST_ID = 1 << 24


@dataclass(frozen=True)
class RecordedAnswers:
    """by_level[k][i]: what level k, lightest first, said in answer i; empty for a level that was not asked for.

    digest tells one file from another.
    """

    end: int
    by_level: tuple[tuple[tuple[int, ...], ...], ...]
    digest: str

    @property
    def target(self) -> tuple[tuple[int, ...], ...]:
        """The target's answers."""
        return self.by_level[-1]

    @property
    def vocab_size(self) -> int:
        """Above every id in here."""
        highest = (max(said, default=0) for level in self.by_level for said in level)
        return 1 + max(self.end, *highest)


def read_answers(path: str, levels: Sequence[str | None]) -> RecordedAnswers:
    """Read what the named levels said; None stands for a level whose record is not needed.

    Raises `ConfigError` that says where the file is not as above.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        table = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (OSError, RuntimeError, ValueError, RecursionError) as error:
        raise ConfigError("emulation.answers", path, f"a readable JSON file ({error})") from error
    if not isinstance(table, Mapping) or not isinstance(table.get("answers"), list) or len(table["answers"]) < 2:
        raise ConfigError("emulation.answers", path, f'{{"end": id, "answers": [two or more]}}, {_MOST_BYTES} bytes')
    end = _tokens("end", [table.get("end")])[0]
    by_level = tuple(
        tuple(_said(level, i, answer) for i, answer in enumerate(table["answers"])) if level else () for level in levels
    )
    return RecordedAnswers(end, by_level, hashlib.blake2b(data, digest_size=8).hexdigest())


def _said(level: str, index: int, answer: Any) -> tuple[int, ...]:
    where = f"answers[{index}].{level}"
    if not isinstance(answer, Mapping) or not isinstance(answer.get(level), list):
        raise ConfigError(f"emulation.answers: {where}", answer, "a list of token ids")
    return _tokens(where, answer[level])


def _tokens(where: str, ids: list[Any]) -> tuple[int, ...]:
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < _MOST_ID:
            raise ConfigError(f"emulation.answers: {where}", token, f"token ids from 0 to {_MOST_ID - 1}")
    return tuple(ids)
