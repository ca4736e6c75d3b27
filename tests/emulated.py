"""Emulated cascades for tests: passes of a fraction of a millisecond, and answers with words that repeat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

END = 2


def emulated_table(drafters: Sequence[str], emulation: dict[str, Any], **cascade: Any) -> dict[str, Any]:
    """A recipe's table: `drafters` in front of a target, all of them emulated."""
    names = [*drafters, "target"]
    return {
        "cascade": {
            "name": "emulated",
            "levels": names,
            "num_draft_tokens": [3] * len(drafters),
            "window": 12,
            "slots": 4,
            "max_len": 256,
            **cascade,
        },
        "stages": {
            name: {"device": "emulated", "num_cpus": 0.1, "profile": {"base_ms": 0.2 * (k + 1), "prefill_ms": 0.5}}
            for k, name in enumerate(names)
        },
        "encoder": {"device": "emulated", "num_cpus": 0.1, "profile": {"render_ms": 0.1}},
        "adapter": {"device": "emulated", "num_cpus": 0.1, "profile": {"align_ms": 0.1, "dense_ms": 0.4}},
        "emulation": emulation,
    }


def write_answers(path: Path, drafters: Sequence[str], count: int = 20) -> Path:
    """Answers of a small grammar, two sentences each; a drafter says the same with one token in five wrong."""
    rng = np.random.default_rng(5)
    answers = []
    for _ in range(count):
        target: list[int] = []
        for _ in range(2):
            target += [10, 11, int(rng.integers(20, 24)), 12, int(rng.integers(30, 33)), 13, 14]
        said = {"target": target}
        for name in drafters:
            wrong = rng.random(len(target)) < 0.2
            said[name] = [40 if miss else token for token, miss in zip(target, wrong, strict=True)]
        answers.append(said)
    path.write_text(json.dumps({"end": END, "answers": answers}))
    return path
