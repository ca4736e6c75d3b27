"""Ray's label selectors, read as Ray reads them: "edge", "!edge", "in(a, b)", "!in(a, b)"."""

from __future__ import annotations

import re
from collections.abc import Mapping

_CONDITION = re.compile(r"(!?)in\((.*)\)")


def meets(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one that the selector asks for."""
    return all(_holds(condition, labels.get(key)) for key, condition in selector.items())


def one_of(values: list[str]) -> str:
    """The condition that a label is one of these."""
    return values[0] if len(values) == 1 else f"in({', '.join(values)})"


def _holds(condition: str, value: str | None) -> bool:
    several = _CONDITION.fullmatch(condition)
    if several:
        among = value in [each.strip() for each in several[2].split(",")]
        return among != bool(several[1])
    return value != condition[1:] if condition.startswith("!") else value == condition
