"""Passes of fixed shape against the ragged ones, kernels run by Triton's interpreter (tests/conftest.py)."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import Extension, PromptEmbeds
from cascade_runtime.errors import InputError
from cascade_runtime.models import kernels, replay
from cascade_runtime.models.slot_cache import Branches

ROWS = ([2, 0, 3], [11, 7, 30])  # slots, lengths before
# one position axis, and three: kernels see no other difference between families, and their interpreter is slow
two_families = pytest.mark.parametrize("pair", ["llava_onevision", "qwen2_vl"], indirect=True)


def eager(language, cache, tokens, slots, starts):
    positions = torch.cat([torch.arange(start, start + len(row)) for start, row in zip(starts, tokens, strict=True)])
    hidden = language.forward(
        language.embed([token for row in tokens for token in row]),
        slots=slots,
        starts=starts,
        counts=[len(row) for row in tokens],
        positions=positions.expand(3, -1) if language.position_axes == 3 else positions,
        cache=cache,
    )
    return language.logits(hidden)


def chains(tokens, firsts):
    positions = [range(first, first + len(row)) for row, first in zip(tokens, firsts, strict=True)]
    return {"positions": positions, "branches": [None] * len(tokens)}


@pytest.fixture
def caches(pair):
    """Two caches with the same left-over numbers."""
    language = pair[0].language
    ours, theirs = language.new_cache(4, 200), language.new_cache(4, 200)
    torch.manual_seed(3)
    for one, other in zip(ours.held, theirs.held, strict=True):
        one.normal_()
        other.copy_(one)
    return ours, theirs


@two_families
@pytest.mark.parametrize("counts", [[1], [3], [1, 1], [4, 1, 2], [1, 5, 2]])
def test_a_pass_of_fixed_shape_is_the_ragged_pass(pair, caches, counts):
    language, (ours, theirs) = pair[0].language, caches
    replays = replay.Replays(language, ours, captures=False)
    slots, starts = (part[: len(counts)] for part in ROWS)
    for step in range(2):  # the second runs on what the first wrote, other slots in the same buffers
        tokens = [[8 + (7 * step + 3 * i + j) % 40 for j in range(count)] for i, count in enumerate(counts)]
        found = replays.logits(tokens, slots=slots, starts=starts, **chains(tokens, starts))
        wanted = eager(language, theirs, tokens, slots, starts)
        real = torch.cat([found[i, :count] for i, count in enumerate(counts)])
        assert torch.allclose(real, wanted, atol=1e-4)
        assert torch.equal(real.argmax(-1), wanted.argmax(-1))
        for one, other in zip(ours.held, theirs.held, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
        starts = [start + count - (step == 0) for start, count in zip(starts, counts, strict=True)]
        slots = slots[1:] + slots[:1]


def test_a_decoder_whose_passes_are_replayed_keeps_the_same_states(pair):
    language = pair[0].language
    keeps = (0, language.num_layers - 1, language.num_layers)
    found = []
    for replayed in (True, False):
        decoder = Decoder(language, slots=4, max_len=200)
        decoder.shortcut = replay.Replays(language, decoder.cache, captures=False) if replayed else None
        decoder.keeps = keeps
        torch.manual_seed(0)
        embeds, positions = torch.randn(5, language.hidden_size), torch.arange(5)
        positions = positions.expand(3, -1) if language.position_axes == 3 else positions
        rows = [decoder.admit(PromptEmbeds(embeds + i, positions, 5), SamplingParams()) for i in range(3)]
        decoder.extend([Extension(row, []) for row in rows])
        passes = [
            decoder.extend([Extension(row, [9], [10, 11 + i][: i + 1]) for i, row in enumerate(rows)]),
            decoder.extend([Extension(row, [9], [12, 13, 14], parents=[-1, -1, 1]) for row in rows[1:]]),
        ]
        found.append((passes, [row.states for row in rows]))
    (choices, states), (wanted, others) = found
    assert choices == wanted
    for mine, theirs in zip(states, others, strict=True):
        assert mine.start == theirs.start
        assert torch.allclose(mine.values, theirs.values, atol=1e-4)


@two_families
def test_a_long_row_is_attended_in_parts(pair, caches):
    language, (ours, theirs) = pair[0].language, caches
    replays = replay.Replays(language, ours, captures=False)
    for start in (0, 63, 64, 65, 190):
        found = replays.logits([[9, 10]], slots=[1], starts=[start], **chains([[9, 10]], [start]))
        assert torch.allclose(found[0], eager(language, theirs, [[9, 10]], [1], [start]), atol=1e-4)


def test_shapes_are_few_and_bounded(pair, caches):
    replays = replay.Replays(pair[0].language, caches[0], captures=False)
    assert replays.shape([1, 3, 2]) == (4, 3)
    assert replays.shape([1, 7, 2]) == (4, 8)
    assert replays.shape([1]) == (1, 1)
    assert replays.shape([1] * 129) is None
    assert replays.shape([100]) == (1, 128)
    assert replays.logits([[1] * 200], slots=[0], starts=[0], positions=[[0]], branches=[None]) is None


def test_a_tree_is_served_as_far_as_an_integer_of_the_device_goes(pair, caches):
    language, (ours, theirs) = pair[0].language, caches
    replays = replay.Replays(language, ours, captures=False)
    parents = [-1, 0, 0, 1, -1, 2]  # two of the nodes lie in the cache before the pass
    sees = []
    for node, parent in enumerate(parents):
        sees.append(1 << node | (sees[parent] if parent >= 0 else 0))
    tokens, positions, branches = [[9, 10, 11, 12, 13, 14]], [[70, 71, 71, 72, 70, 72]], [Branches(70, sees)]
    found = replays.logits(tokens, slots=[1], starts=[70], positions=positions, branches=branches)
    at = torch.tensor(positions[0])
    hidden = language.forward(
        language.embed(tokens[0]),
        slots=[1],
        starts=[70],
        counts=[6],
        positions=at.expand(3, -1) if language.position_axes == 3 else at,
        cache=theirs,
        branches=branches,
    )
    assert torch.allclose(found[0, :6], language.logits(hidden), atol=1e-4)
    chain = eager(language, theirs, tokens, [1], [70])
    assert not torch.allclose(found[0, :6], chain, atol=1e-2)
    assert replays.logits([[1]], slots=[0], starts=[70], positions=[[70]], branches=[Branches(7, [1 << 63])]) is None


@two_families
def test_many_tokens_of_a_row_attend_in_blocks_of_queries(pair, caches, monkeypatch):
    language, (ours, theirs) = pair[0].language, caches
    monkeypatch.setattr(kernels, "_QUERIES", 16)
    replays = replay.Replays(language, ours, captures=False)
    tokens = [[8 + i % 40 for i in range(23)], [30 + i % 9 for i in range(7)]]
    found = replays.logits(tokens, slots=[1, 3], starts=[64, 3], **chains(tokens, [64, 3]))
    assert replays._passes[(2, 24), ()]._attention._blocks > 1
    real = torch.cat([found[0, :23], found[1, :7]])
    assert torch.allclose(real, eager(language, theirs, tokens, [1, 3], [64, 3]), atol=1e-4)


def test_a_large_model_leaves_long_passes_to_the_library(pair, caches, monkeypatch):
    monkeypatch.setattr(replay, "_LARGE", 1)
    replays = replay.Replays(pair[0].language, caches[0], captures=False)
    assert replays.shape([1] * 64) == (64, 1)
    assert replays.shape([1] * 65) is None


def test_what_does_not_fit_a_slot_is_refused(pair, caches):
    replays = replay.Replays(pair[0].language, caches[0], captures=False)
    with pytest.raises(InputError, match="row end"):
        replays.logits([[1, 2]], slots=[0], starts=[199], positions=[[0]], branches=[None])
    with pytest.raises(InputError, match="token_ids"):
        replays.logits([[pair[0].language.vocab_size]], slots=[0], starts=[1], positions=[[0]], branches=[None])


@pytest.mark.parametrize(("outputs", "inputs", "parts"), [(40, 1100, 3), (33, 512, 1), (16, 2048, 4)])
def test_a_product_in_parts_adds_up_to_the_product(outputs, inputs, parts):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(5, inputs)
    linear = Plain(weight, bias)
    found = kernels.sums(x, linear, kernels.Blocks(16, 128, parts, 2, 2))
    assert found.shape == (parts, 5, outputs)
    assert torch.allclose(found.sum(0), torch.nn.functional.linear(x, weight, bias), atol=1e-3)


def test_a_gated_product_is_silu_of_one_half_times_the_other():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(2 * 24, 100), torch.randn(2 * 24), torch.randn(17, 100)
    gate, up = torch.nn.functional.linear(x, weight, bias).chunk(2, -1)
    found = kernels.product(x, Plain(weight, bias), gated=True)
    assert torch.allclose(found, torch.nn.functional.silu(gate) * up, atol=1e-3)


def test_blocks_depend_on_the_weight_alone_and_fit_a_program():
    for outputs, inputs in ((896, 4864), (3584, 18944), (8192, 29568), (151646, 8192)):
        blocks = kernels.Blocks.of(outputs, inputs, cut=True)
        for tokens in (1, 16, 17, 64, 128):
            found = blocks.constants(inputs, tokens, size=2)
            assert found["TOKENS"] >= max(16, tokens)
            assert (found["OUT"] + found["TOKENS"]) * found["IN"] * 2 * found["num_stages"] <= 110_000
            assert 128 % found["IN"] == 0
        assert blocks.share(inputs) * blocks.parts >= inputs


def test_every_kernel_compiles_for_a_gpu():
    """The interpreter accepts what the compiler does not."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, here / "compile_kernels.py"],
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert [line.split()[0] for line in run.stdout.splitlines()] == [
        *("product", "added", "query_key_value", "attend", "put_together")
    ]


@two_families
def test_a_decoder_that_replays_chooses_what_one_that_does_not_chooses(pair):
    language = pair[0].language
    plain, replaying = (Decoder(language, slots=3, max_len=120) for _ in range(2))
    replaying.shortcut = replay.Replays(language, replaying.cache, captures=False)
    torch.manual_seed(1)
    rows = []
    for length in (9, 70, 30):
        at = torch.arange(length)
        prompt = PromptEmbeds(
            torch.randn(length, language.hidden_size), at.expand(3, -1) if language.position_axes == 3 else at, length
        )
        params = SamplingParams(max_tokens=40, temperature=0.8 if length == 30 else 0.0)
        rows.append([decoder.admit(prompt, params) for decoder in (plain, replaying)])
    answers, draws = [[], [], []], random.Random(0)
    for step in range(9):
        asked = [i for i in range(3) if draws.random() < 0.8 or not step] or [0]
        drafts = [[draws.randrange(8, 40) for _ in range(draws.randint(0, 4) if step else 0)] for _ in asked]
        trees = [[draws.randrange(-1, i) for i in range(len(d))] if draws.random() < 0.6 else None for d in drafts]
        told = [
            decoder.extend(
                [Extension(rows[i][k], answers[i], d, parents=t) for i, d, t in zip(asked, drafts, trees, strict=True)]
            )
            for k, decoder in enumerate((plain, replaying))
        ]
        assert told[0] == told[1]
        for i, choices in zip(asked, told[0], strict=True):
            answers[i].append(choices[0])
    assert len(replaying.shortcut._passes) > 3  # served by captured shapes, not by the way out
    assert len({token for answer in answers for token in answer}) > 3


class Plain:
    """A weight and a bias in the stored order."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias


def test_one_pass_is_captured_at_a_time(monkeypatch):
    """Stages that are threads of one process capture at once: waiting for the device would end the other's capture."""
    inside, most, lock = [0], [0], threading.Lock()

    def quiet() -> None:
        assert not inside[0]  # "operation not permitted when stream is capturing"

    @contextlib.contextmanager
    def graph(*_: object, **__: object):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        yield
        inside[0] -= 1

    monkeypatch.setattr(torch.cuda, "synchronize", quiet)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    passes = []
    for _ in range(8):
        one = object.__new__(replay.FixedPass)
        one.compute = lambda: ("logits", None)
        passes.append(one)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: one.capture(None), passes))
    assert most[0] == 1 and all(one.graph is not None and one._out == ("logits", None) for one in passes)
