"""A stage that compiles its passes against one that does not: the same choices, served by what was compiled."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest
import torch
from torch._inductor import config as inductor

from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import Extension, PromptEmbeds
from cascade_runtime.errors import ConfigError
from cascade_runtime.models.compiled import Compiled

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling takes a C++ compiler")


@pytest.fixture(scope="module")
def levels():
    """(plain, compiled) of the smallest member of the bundled family."""
    recipe = load_recipe("three_level")
    stage = next(stage for stage in recipe.stages if stage.name == "light")
    torch.set_num_threads(1)
    return [Level.load(replace(stage, compile=compiled), recipe.cascade) for compiled in (False, True)]


def test_a_compiled_stage_chooses_what_a_plain_one_chooses(levels):
    plain, compiled = (level.decoder for level in levels)
    assert plain.shortcut is None
    torch.manual_seed(2)
    embeds, draws = torch.randn(40, plain.language.hidden_size), random.Random(4)
    params = SamplingParams(max_tokens=60, temperature=0.7, seed=3)
    prompt = PromptEmbeds(embeds, torch.arange(40), 40)
    rows = [[decoder.admit(prompt, params) for _ in range(2)] for decoder in (plain, compiled)]
    answers, passes = [[], []], 0
    for step in range(25):
        which = [step % 2] if step % 5 else [0, 1]  # two rows at once are not served by what was compiled
        drafts = [[draws.randrange(100) for _ in range(draws.randint(0, 9) if step else 0)] for _ in which]
        trees = [[draws.randrange(-1, i) for i in range(len(d))] if step % 3 else None for d in drafts]
        told = [
            decoder.extend(
                [Extension(mine[i], answers[i], d, parents=t) for i, d, t in zip(which, drafts, trees, strict=True)]
            )
            for decoder, mine in zip((plain, compiled), rows, strict=True)
        ]
        assert told[0] == told[1]
        passes += len(which) == 1
        for i, choices in zip(which, told[0], strict=True):
            answers[i].append(choices[0])
    assert compiled.shortcut.calls == passes
    assert len(set(answers[0])) > 5


def test_the_very_end_of_a_slot_and_long_blocks_go_the_other_way(levels):
    shortcut, most = levels[1].decoder.shortcut, levels[1].decoder.cache.max_len
    where = {"slots": [0], "positions": [[most - 4, most - 3]], "branches": [None]}
    assert shortcut.logits([[1, 2]], starts=[most - 3], **where) is None
    assert shortcut.logits([[1, 2]], starts=[most - 4], **where).shape[:2] == (1, 4)
    assert shortcut.logits([[1] * 65], starts=[0], slots=[0], positions=[range(65)], branches=[None]) is None


def test_without_a_compiler_the_refusal_says_what_is_needed(levels):
    plain = levels[0].decoder
    torch._dynamo.reset()
    with inductor.patch({"cpp.cxx": ("/no/such/compiler",)}), pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        Compiled(plain.language, plain.cache)


def test_compile_is_true_or_false():
    with pytest.raises(ConfigError, match=r"stages.light.compile"):
        load_recipe("three_level", ["stages.light.compile=2"])


def test_only_language_stages_compile():
    with pytest.raises(ConfigError, match=r"encoder\.compile"):
        load_recipe("three_level", ["encoder.compile=true"])
