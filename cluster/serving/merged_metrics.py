"""`merged`: what several replicas count as one page, every sample with a label that says whose it is.

Behind Serve's proxy a scrape meets any replica. Were it told that one's counters only, they would seem to fall and rise
from scrape to scrape, and every rate made of them would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

_COMMENT = "# "


def merged(texts: Mapping[str, str]) -> str:
    """Prometheus' text format 0.0.4 of all together, families whole and in the order of the first. texts: the same of
    each replica, by the value of the label `replica`.
    """
    comments: dict[str, list[str]] = {}  # family -> its HELP and TYPE
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in filter(None, text.splitlines()):
            if line.startswith(_COMMENT):
                family = line.split(" ", 3)[2]
                told = comments.setdefault(family, [])
                if line not in told:
                    told.append(line)
            else:
                samples.setdefault(family, []).append(labelled(line, "replica", replica))
    lines = [line for family, told in comments.items() for line in (*told, *samples.get(family, ()))]
    return "\n".join(lines) + "\n"


def labelled(sample: str, label: str, value: str) -> str:
    """One line, `name{a="b"} 1` or `name 1`, with one more label in front of its own."""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    name, space, counted = sample.partition(" ")
    if "{" not in name:
        return f'{name}{{{label}="{escaped}"}}{space}{counted}'
    name, _, rest = sample.partition("{")
    return f'{name}{{{label}="{escaped}",{rest}'
