"""Slots equal the plain forward of the library's own model, pixels to logits, whatever the batch and its history."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cascade_runtime.errors import ConfigError, InputError
from cascade_runtime.models import SlotCache

ANSWER = 10


@dataclass
class Row:
    """One request: its prompt, the tokens it ends with, and the logits seen at each position."""

    slot: int
    embeds: torch.Tensor
    positions: torch.Tensor
    next_position: int
    tokens: list[int]
    ids: torch.Tensor
    length: int = 0
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def total(self):
        return len(self.embeds) + len(self.tokens)


class Bench:
    """Rows of one model over one cache full of left-over numbers."""

    def __init__(self, pair, frames, video_inputs, *, seed=0, rows=3):
        self.model, self.library = pair
        self.language = self.model.language
        self.random = random.Random(seed)
        self.cache = self.language.new_cache(rows + 2, 256)
        torch.manual_seed(seed)
        for tensor in self.cache.held:
            tensor.normal_()
        self.video_inputs = video_inputs
        self.rows = []
        for index, slot in enumerate(self.random.sample(range(rows + 2), rows)):
            self.rows.append(self._row(slot, frames[: 1 + index % len(frames)]))

    def _row(self, slot, frames):
        model = self.model
        pixels = model.pixels(frames)
        question = "What moves?" + " Slowly?" * self.random.randint(0, 3)
        prompt = model.prompts.build(question, num_visual=None, frames=pixels.frames, grid=pixels.grid)
        embeds = model.embed_prompt(prompt, model.projector.project(model.vision.encode(pixels)))
        tokens = [self.random.randrange(8, self.language.vocab_size) for _ in range(ANSWER)]
        row = Row(slot, embeds, prompt.position_ids, prompt.next_position, tokens, prompt.input_ids)
        row.pixels = pixels
        return row

    def stretch(self, row, start, count, *, noise=False):
        """Embeddings and positions of `count` tokens from position `start`; noise: other tokens than the row's own."""
        prompt = len(row.embeds)
        answer = [self.random.randrange(8, self.language.vocab_size) for _ in row.tokens] if noise else row.tokens
        embeds = torch.cat([row.embeds, self.language.embed(answer)])[start : start + count]
        tail = torch.arange(len(row.tokens)) + row.next_position
        tail = tail.expand(3, -1) if row.positions.dim() == 2 else tail
        assert prompt + len(answer) == row.total
        return embeds, torch.cat([row.positions, tail], dim=-1)[..., start : start + count]

    def feed(self, rows, counts, *, noise=False, shift=0, slots=None, cache=None):
        """One ragged pass, in groups at random; remembers logits at the positions it fed (unless noise)."""
        fed = [self.stretch(row, row.length, count, noise=noise) for row, count in zip(rows, counts, strict=True)]
        cuts = [0, *(i for i in range(1, len(rows)) if self.random.random() < 0.5), len(rows)]
        hidden = self.language.forward(
            torch.cat([embeds for embeds, _ in fed]),
            slots=[row.slot for row in rows] if slots is None else slots,
            starts=[row.length for row in rows],
            counts=counts,
            positions=torch.cat([positions for _, positions in fed], dim=-1) + shift,
            cache=self.cache if cache is None else cache,
            groups=[b - a for a, b in itertools.pairwise(cuts)],
        )
        logits = iter(self.language.logits(hidden))
        for row, count in zip(rows, counts, strict=True):
            for offset in range(count):
                each = next(logits)
                if not noise:
                    row.seen[row.length + offset] = each
            row.length += count

    def prefill(self, chunk=1000):
        for row in self.rows:
            while row.length < len(row.embeds):
                self.feed([row], [min(chunk, len(row.embeds) - row.length)])

    def agrees(self, row, *, tolerance=1e-5):
        """Whether every logit seen equals the library's plain forward on pixels and ids, and chooses the same token."""
        ids = torch.cat([row.ids, torch.tensor(row.tokens)])
        with torch.inference_mode():
            plain = self.library(**self.video_inputs(self.model, row.pixels, ids)).logits[
                0, :, : self.language.vocab_size
            ]
        at = sorted(row.seen)
        ours, theirs = torch.stack([row.seen[i] for i in at]), plain[at]
        close = bool(((ours - theirs).abs() <= tolerance * theirs.abs().clamp(min=1)).all())
        return close and bool((ours.argmax(-1) == theirs.argmax(-1)).all())


@pytest.fixture
def bench(pair, frames, video_inputs):
    return lambda **kwargs: Bench(pair, frames, video_inputs, **kwargs)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_any_history_of_ragged_blocks_and_rollbacks_gives_the_plain_forward(bench, seed):
    run = bench(seed=seed)
    run.prefill(chunk=run.random.choice([5, 17, 1000]))
    while any(row.length < row.total for row in run.rows):
        ready = [row for row in run.rows if row.length < row.total]
        rows = run.random.sample(ready, run.random.randint(1, len(ready)))
        counts = [run.random.randint(1, min(4, row.total - row.length)) for row in rows]
        if run.random.random() < 0.4:  # drafts that turn out wrong: fed, then forgotten by lowering the length
            before = [row.length for row in rows]
            run.feed(rows, counts, noise=True)
            for row, length in zip(rows, before, strict=True):
                row.length = length
            continue
        run.feed(rows, counts)
        for row in rows:
            if run.random.random() < 0.2:
                row.length = run.random.randint(len(row.embeds), row.length)
    for row in run.rows:
        assert len(row.seen) == row.total
        assert run.agrees(row)


def test_one_by_one_equals_blocks(bench):
    one, block = bench(seed=3), bench(seed=3)
    for run, size in ((one, 1), (block, 5)):
        run.prefill()
        for _ in range(0, ANSWER, size):
            run.feed(run.rows, [size] * len(run.rows))
    for a, b in zip(one.rows, block.rows, strict=True):
        assert one.agrees(a)
        assert block.agrees(b)
        for position, logits in a.seen.items():
            assert torch.allclose(logits, b.seen[position], atol=1e-5, rtol=1e-5)


def test_a_slot_used_before_gives_the_same_as_a_fresh_one(bench):
    run = bench(seed=5)
    run.prefill()
    first, second = run.rows[:2]
    run.feed([first], [ANSWER])
    second.slot, second.length, second.seen = first.slot, 0, {}
    while second.length < second.total:
        run.feed([second], [min(7, second.total - second.length)])
    assert run.agrees(second)


class Unmasked(SlotCache):
    """A cache whose mask hides nothing, to see whether the comparison notices."""

    def _group(self, *args):
        return replace(super()._group(*args), mask=None)


@pytest.mark.parametrize("fault", ["none", "position by one", "left-over visible", "wrong slot"])
def test_the_comparison_notices_every_fault(bench, fault):
    run = bench(seed=11)
    language = run.language
    if fault == "left-over visible":
        shape = {"layers": language.num_layers, "slots": run.cache.slots, "max_len": run.cache.max_len}
        unmasked = Unmasked(**shape, heads=language.heads, kv_heads=language.kv_heads, head_dim=language.head_dim)
        unmasked.held = run.cache.held
    run.prefill()
    rows = sorted(run.rows, key=lambda row: row.length)[:: len(run.rows) - 1]  # the shortest and the longest
    short, long = rows
    assert short.length < long.length
    run.random.random = lambda: 1.0  # one group
    for _ in range(ANSWER - 1):
        if fault == "left-over visible":
            run.feed([short, long], [1, 1], cache=unmasked)
        elif fault == "wrong slot":
            run.feed(rows, [1, 1], slots=[long.slot, short.slot])
        else:
            run.feed(rows, [1, 1], shift=1 if fault == "position by one" else 0)
    assert run.agrees(short) is (fault == "none")


def test_the_mask_is_the_rule_and_absent_only_where_it_hides_nothing():
    cache = SlotCache(layers=1, slots=3, max_len=8, heads=4, kv_heads=2, head_dim=4, dtype=torch.bfloat16)

    def mask(*rows, groups=None):
        cache.place(*map(list, zip(*rows, strict=True)), groups)
        return [group.mask for group in cache._groups]

    assert mask((1, 4, 1)) == [None]
    assert mask((2, 4, 1), (0, 4, 1)) == [None]
    assert mask((2, 2, 1), (0, 1, 1), groups=[1, 1]) == [None, None]
    no = -torch.inf
    (ragged,) = mask((2, 2, 1), (0, 1, 1))
    assert ragged.dtype == torch.bfloat16
    assert ragged.tolist() == [[[[0, 0, 0]] * 2], [[[0, 0, no]] * 2]]  # twice: two query heads share a key head
    assert mask((1, 1, 2))[0].tolist() == [[[[0, 0, no], [0, 0, 0]] * 2]]


@pytest.mark.parametrize("slots", [[1], [1, 2], [2, 1], [0, 2]])
@pytest.mark.parametrize("groups", [None, "each"])
def test_attending_writes_real_tokens_alone_and_is_the_formula(slots, groups):
    cache = SlotCache(layers=1, slots=4, max_len=6, heads=4, kv_heads=2, head_dim=3)
    cache.held[0].normal_()
    starts, counts = [3, 1][: len(slots)], [2, 1][: len(slots)]
    mixed = torch.randn(sum(counts), (4 + 2 * 2) * 3)
    expected, rows = cache.held[0].clone(), iter(mixed)
    wanted = []
    for slot, start, count in zip(slots, starts, counts, strict=True):
        for position in range(start, start + count):
            row = next(rows)
            queries = row[:12].view(4, 3)
            expected[slot, position] = row[12:].view(2, 2, 3)
            keys, values = expected[slot, : position + 1].unbind(1)  # (seen, 2, 3) each
            for head, query in enumerate(queries):
                weights = (keys[:, head // 2] @ query / 3**0.5).softmax(0)
                wanted.append(weights @ values[:, head // 2])
    cache.place(slots, starts, counts, groups and [1] * len(slots))
    found = cache.attend(0, mixed)
    assert torch.equal(cache.held[0], expected)
    assert torch.allclose(found, torch.cat(wanted).view(-1, 12), atol=1e-6)
    in_place = all(isinstance(group.rows, slice) for group in cache._groups)
    assert in_place is (groups is not None or slots in ([1], [1, 2]))


def test_what_does_not_fit_a_slot_is_refused(pair):
    language = pair[0].language
    cache = language.new_cache(2, 8)
    with pytest.raises(InputError, match="row end"):
        cache.place([0], [6], [3])
    with pytest.raises(InputError, match="slots"):
        cache.place([1, 1], [0, 0], [1, 1])
    with pytest.raises(InputError, match="slot"):
        cache.place([2], [0], [1])
    with pytest.raises(ConfigError, match="max_len"):
        language.new_cache(1, language.max_positions + 1)
    for token in (language.vocab_size, -1):
        with pytest.raises(InputError, match="token_ids"):
            language.embed([0, token])


def test_a_greedy_loop_over_slots_is_generate_on_pixels(pair, frames, video_inputs):
    model, library = pair
    pixels = model.pixels(frames)
    prompt = model.prompts.build("Which way?", num_visual=None, frames=pixels.frames, grid=pixels.grid)
    embeds = model.embed_prompt(prompt, model.projector.project(model.vision.encode(pixels)))
    language, cache = model.language, model.language.new_cache(3, 256)
    positions, length, tokens = prompt.position_ids, 0, []
    while len(tokens) < 24:
        hidden = language.forward(
            embeds, slots=[1], starts=[length], counts=[len(embeds)], positions=positions, cache=cache
        )
        length += len(embeds)
        tokens.append(int(language.logits(hidden[-1:]).argmax()))
        embeds = language.embed(tokens[-1:])
        at = torch.tensor([prompt.next_position + len(tokens) - 1])
        positions = at.expand(3, 1) if language.position_axes == 3 else at
    beyond = list(range(language.vocab_size, library.get_output_embeddings().weight.shape[0]))
    inputs = video_inputs(model, pixels, prompt.input_ids)
    theirs = library.generate(
        **inputs,
        max_new_tokens=24,
        min_new_tokens=24,
        do_sample=False,
        suppress_tokens=[*beyond, *language.eos_token_ids],
    )[0, len(prompt.input_ids) :].tolist()
    assert not set(theirs) & set(beyond)
    assert len(set(theirs)) > 2
    upto = next((i for i, token in enumerate(tokens) if token in language.eos_token_ids), len(tokens))
    assert upto >= 4
    assert tokens[:upto] == theirs[:upto]


def test_bytes_are_those_of_the_tensors(pair):
    language = pair[0].language
    cache = language.new_cache(3, 31)
    assert cache.nbytes == 3 * 31 * language.kv_bytes_per_token
    assert language.weight_bytes == pair[0].weight_bytes["language"]


def test_all_blocks_a_part_at_a_time_are_a_whole_pass(pair) -> None:
    """Of every family, M-RoPE's three positions a token among them."""
    language = pair[0].language
    torch.manual_seed(3)
    at = torch.tensor([0, 1, 2, 3, 0, 1])
    if language.position_axes > 1:
        at = torch.stack([at, at * 2, at + 1])
    where = {"slots": [2, 0], "starts": [0, 0], "counts": [4, 2], "positions": at}
    embeds, depth = torch.randn(6, language.hidden_size), len(language.blocks)
    assert depth > 1
    whole = language.forward(embeds, cache=language.new_cache(3, 16), **where)
    cache = language.new_cache(3, 16)
    middle = language.through(embeds, range(1), cache=cache, **where)
    assert not torch.allclose(middle, embeds)
    rest = language.through(middle, range(1, depth), cache=cache, **where)
    torch.testing.assert_close(language.norm(rest), whole, rtol=1e-5, atol=1e-5)
