"""`Window`: a stretch of the input's rows, with its questions in groups that share a recording.

    rows   0  1  2  3  4  5 | 6  7 ...           a: rows 0 2 5, b: rows 1 3, and row 4 is bad
           a  b  a  b  ?  a | c  c               groups: (0 2 5), (1 3)

Questions of a group are asked one after the other, so that what their prompts have in common is computed once. A
window ends after `size` rows, or later while the next row is about the recording of the last. Where windows end
depends on nothing but the input and `size`: a run that goes on finds the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cascade_runtime.batch.question import BadRow, Question, Row

_MOST_OVER = 4  # times `size` rows, where one recording has ever more questions


@dataclass(frozen=True)
class Window:
    """Rows first .. first + count - 1 of the input. `groups` in the order of their first row."""

    number: int
    first: int
    count: int
    groups: tuple[tuple[Question, ...], ...]
    bad: tuple[BadRow, ...]


def windows(rows: Iterable[Row], size: int) -> Iterator[Window]:
    """The windows of an input, in order; every row is in exactly one."""
    number, held = 0, list[Row]()
    for row in rows:
        if len(held) >= size and (len(held) >= _MOST_OVER * size or not _goes_on(held[-1], row)):
            yield _window(number, held)
            number, held = number + 1, []
        held.append(row)
    if held:
        yield _window(number, held)


def _goes_on(last: Row, row: Row) -> bool:
    return isinstance(last, Question) and isinstance(row, Question) and last.about == row.about


def _window(number: int, rows: list[Row]) -> Window:
    groups: dict[object, list[Question]] = {}
    for row in rows:
        if isinstance(row, Question):
            groups.setdefault(row.about, []).append(row)
    bad = tuple(row for row in rows if isinstance(row, BadRow))
    return Window(number, rows[0].index, len(rows), tuple(map(tuple, groups.values())), bad)
