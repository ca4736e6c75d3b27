"""What a tower made of a recording is kept for the next question about it, within a bound, and changes no answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.engine import Engine
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.kept import KeptFeatures


def packet(source: str) -> VisualFeatures:
    return VisualFeatures(np.zeros((1, 4, 8), np.float32), "tower", ("dense",), source)  # 128 bytes


def asked(kept: KeptFeatures, sources: str) -> str:
    """The recordings whose features were made, of those that were asked for in this order."""
    made = []
    for source in sources:
        assert kept.get(("tower", source), lambda s=source: made.append(s) or packet(s)).source == source
    return "".join(made)


def test_the_longest_unused_go_first_and_the_bound_holds() -> None:
    kept = KeptFeatures(300)  # two
    assert asked(kept, "aabab") == "ab"
    assert asked(kept, "acaba") == "cb"  # c pushed b out, b pushed c out: a was asked for in between
    assert kept.nbytes == 256
    assert asked(KeptFeatures(0), "aa") == "aa"
    assert asked(KeptFeatures(100), "aa") == "aa"  # one that is larger than all that may be kept


@pytest.mark.parametrize("most_bytes", [1000, 100])  # 100: too large to be kept, and shared all the same
def test_what_several_want_at_once_is_made_once(most_bytes: int) -> None:
    kept, inside, go = KeptFeatures(most_bytes), threading.Event(), threading.Event()

    def make() -> VisualFeatures:
        inside.set()
        assert go.wait(30)
        return packet("a")

    def other() -> VisualFeatures:
        raise AssertionError("made twice")

    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(kept.get, ("tower", "a"), make)
        assert inside.wait(30)
        rest = [pool.submit(kept.get, ("tower", "a"), other) for _ in range(4)]
        time.sleep(0.2)  # they wait by now
        go.set()
        assert {id(each.result(30)) for each in rest} == {id(first.result(30))}
    assert kept.nbytes == (128 if most_bytes == 1000 else 0)


def test_a_failure_fails_only_whoever_met_it() -> None:
    kept, inside, go = KeptFeatures(1000), threading.Event(), threading.Event()

    def fails() -> VisualFeatures:
        inside.set()
        assert go.wait(30)
        raise MemoryError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept.get, ("tower", "a"), fails)
        assert inside.wait(30)
        second = pool.submit(kept.get, ("tower", "a"), lambda: packet("a"))
        go.set()
        assert isinstance(first.exception(30), MemoryError) and second.result(30).source == "a"


@pytest.mark.parametrize(("keep_mb", "encoded"), [(0, 4), (8, 2)])
def test_a_second_question_about_a_recording_needs_no_tower_and_gets_the_same_answer(
    tmp_path: Path, keep_mb: int, encoded: int
) -> None:
    recipe = toy_recipe(write_toy_family(tmp_path), ["noisy"], cascade={"keep_features_mb": keep_mb})
    engine, plain = Engine.load(recipe), Engine.load(toy_recipe(tmp_path, []))
    tower, passes = engine.front_end.verifier.towers[-1][1], []
    encode = tower.encode
    tower.encode = lambda pixels: passes.append(1) or encode(pixels)
    requests = [
        GenerateRequest(events=toy_events(seed), question=question, sampling=SamplingParams(max_tokens=8))
        for seed in (1, 2)
        for question in ("What moves?", "Where?")
    ]
    answers = [engine.generate([request])[0].token_ids for request in requests]  # type: ignore[union-attr]
    assert answers == [plain.generate([request])[0].token_ids for request in requests]  # type: ignore[union-attr]
    assert len(passes) == encoded
