"""Which rows of a pass attend together. Attention alone pads: every group to its longest row."""

from __future__ import annotations

from collections.abc import Sequence

CALL = 48  # as many padded queries cost what one more call of attention per layer costs


def attending(counts: Sequence[int], slots: Sequence[int]) -> tuple[list[int], list[int]]:
    """An order of the rows, and how many of them in turn attend together, so that calls and padded queries cost least.

    Within a group slots ascend: neighbouring ones are read in place.
    """
    rows = sorted(range(len(counts)), key=lambda i: slots[i])
    if not rows or len(counts) * max(counts) - sum(counts) <= CALL:
        return rows, [len(rows)]
    order = sorted(rows, key=lambda i: -counts[i])
    best, cut = [0.0], [0]  # of the first n in order: the least cost, and where the last group begins
    for end in range(1, len(order) + 1):
        cost, start = min((best[j] + CALL + (end - j) * counts[order[j]], j) for j in range(end))
        best.append(cost)
        cut.append(start)
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(sorted(order[cut[end] : end], key=lambda i: slots[i]))
        end = cut[end]
    return [i for group in groups for i in group], [len(group) for group in groups]
