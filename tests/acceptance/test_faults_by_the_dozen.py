"""Every stage killed twenty times and hung twenty times under load, in threads: nothing lost, nothing changed.

Minutes, so it is not part of `make test`:  CASCADE_ACCEPTANCE=1 python -m pytest tests/acceptance
The same on processes, at the pace at which they load, is `cascade bench chaos`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "actors")]

from test_restarts import LEVELS, hang, recipe_of, supervised, until
from toy_family import toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.engine import Engine

pytestmark = pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1")
STAGES = ("encoder", "adapter", *LEVELS)
TIMES = 20
CLIENTS = 4


@pytest.mark.parametrize("kind", ["kill", "hang"])
def test_twenty_times_each_stage(tmp_path: Path, kind: str) -> None:
    family = write_toy_family(tmp_path)
    kinds = toy_requests(24, seed=3)
    reference = [answer.token_ids for answer in Engine.load(toy_recipe(family, [])).generate(kinds)]  # type: ignore[union-attr]
    over, counted = threading.Event(), threading.Lock()
    wrong: list[Any] = []
    sent = answered = 0

    def client(controller: Any, number: int) -> None:
        nonlocal sent, answered
        while not over.is_set():
            number = (number + 5) % len(kinds)
            with counted:
                sent += 1
            try:
                answer: Answer = controller.generate(_fresh(kinds[number]))
            except Exception as error:  # noqa: BLE001  it is what the client sees
                wrong.append(error)
                continue
            with counted:
                answered += 1
            if answer.token_ids != reference[number]:
                wrong.append((number, answer.token_ids))

    with supervised(recipe_of(family)) as controller, ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[None]] = [pool.submit(client, controller, number) for number in range(CLIENTS)]
        try:
            faults, took = 0, list[float]()
            for _ in range(TIMES):
                for name in STAGES:
                    before = answered
                    at = time.monotonic()
                    faults += 1
                    on = hang(controller, name) if kind == "hang" else controller.crew.handles[name].kill()
                    assert until(lambda faults=faults: len(controller.supervisor.recoveries) >= faults, 60), name
                    took.append(time.monotonic() - at)
                    if on is not None:
                        on.set()
                    assert until(lambda before=before: answered > before, 60), f"no answer after {name}"
        finally:
            over.set()
        for each in clients:
            each.result(120)
        assert not wrong and sent == answered
        assert len(controller.supervisor.recoveries) == TIMES * len(STAGES)
        for name in LEVELS:
            stage = controller.crew.handles[name].stage
            assert until(lambda stage=stage: stage.stats()["free_slots"] == 4)
    took.sort()
    print(f"\n{kind}: {faults} faults, {answered} answers; whole again p50 {took[len(took) // 2]:.2f} s, "
          f"p95 {took[int(0.95 * len(took))]:.2f} s")  # fmt: skip


def _fresh(request: Any) -> Any:
    from dataclasses import replace
    from uuid import uuid4

    return replace(request, request_id=uuid4().hex)
