"""The wall clock may jump: whatever waits, times out or decides looks at a monotonic one."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_architecture import Module, modules

WALL = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today")
TOLD_TO_OTHERS = {
    "cascade_runtime.tracing.tracer": "places the records of one machine beside another's",
    "cluster.traced_run": "where a trace is cut off",
    "cascade_runtime.transports.retries": "Retry-After may be a date, RFC 9110; no wait is longer than the deadline",
    "cluster.serving.routes": "when a model was made, in OpenAI's answers",
    "cluster.serving.gateway": "when an answer was made, in OpenAI's answers",
    "cluster.serving.batches.runs": "when a batch was made; it outlives the process",
    "cluster.serving.batches.run": "when a batch came to a status, and how much of its day is left as a process begins",
    "cluster.serving.files.store": "how old a file is; it outlives the process",
}


def wall_clocks(module: Module) -> Iterator[str]:
    """Where a module looks at the wall clock, or hands it to somebody."""
    names = {"time", "time_ns"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith(WALL):
            yield f"{module.name}:{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time" and names & {each.name for each in node.names}:
            yield f"{module.name}:{node.lineno}: from time import ..."


def test_only_what_is_told_to_others_comes_from_the_wall_clock() -> None:
    looks = {module.name: found for module in modules() if (found := list(wall_clocks(module)))}
    assert not {name: found for name, found in looks.items() if name not in TOLD_TO_OTHERS}
    assert not TOLD_TO_OTHERS.keys() - looks.keys()


@pytest.mark.parametrize(
    "text",
    [
        "import time\nuntil = time.time() + 5",
        "import time\ndef wait(clock=time.time): ...",
        "import time\nnow = time.time_ns()",
        "from time import time",
        "from datetime import UTC, datetime\nnow = datetime.now(UTC)",
        "import datetime\nnow = datetime.datetime.now()",
    ],
)
def test_the_clock_rule_sees_it(text: str) -> None:
    assert list(wall_clocks(Module("actors.stage", text)))


def test_the_clock_rule_lets_monotonic_clocks_pass() -> None:
    text = (
        "import time\nfrom time import monotonic\nuntil = time.monotonic() + time.monotonic_ns() / 1e9\ntime.sleep(1)"
    )
    assert not list(wall_clocks(Module("actors.stage", text)))
