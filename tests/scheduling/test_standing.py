"""The protocol between stages: whatever is lost, late, repeated or forged, the answer is the last stage's own."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.errors import ChannelError
from cascade_runtime.messages import (
    MAX_TREE_DEPTH,
    MAX_WINDOW,
    DraftBlock,
    Grant,
    Verdict,
    acceptors,
    decode,
    encode,
    producer,
)
from cascade_runtime.scheduling.standing import Standing

VOCAB = 5
END = 4


def toy_choice(stage: int, agree: float, prefix: tuple[int, ...], seed: int) -> int:
    """A deterministic model: stage `stage` says the true token with probability about `agree`, else something else."""
    truth = random.Random(f"{seed}/{prefix}").choices(range(VOCAB), weights=[8, 8, 8, 8, 1])[0]
    own = random.Random(f"{seed}/{stage}/{prefix}")
    return truth if own.random() < agree else own.randrange(VOCAB)


class ToyCascade:
    """Stages, and links that lose, repeat and reorder, driven by one random source."""

    def __init__(self, seed: int, stages: int, limit: int, loss: float, window: int = 6) -> None:
        self.rng = random.Random(seed)
        self.seed, self.loss = seed, loss
        self.agree = [self.rng.choice([0.0, 0.5, 0.9]) for _ in range(stages - 1)] + [1.0]
        self.rows = [
            Standing(
                request=1,
                epoch=0,
                stage=k,
                limit=limit,
                vocab_size=VOCAB,
                ends=frozenset({END}),
                window=window if k < stages - 1 else None,
            )
            for k in range(stages)
        ]
        self.down: list[list[bytes]] = [[] for _ in range(stages - 1)]
        self.up: list[list[bytes]] = [[] for _ in range(stages - 1)]
        self.accepted = self.rejected = 0

    def reference(self) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < self.rows[-1].limit and (not tokens or tokens[-1] != END):
            tokens.append(toy_choice(len(self.rows) - 1, 1.0, tuple(tokens), self.seed))
        return tokens

    def step(self) -> None:
        k = self.rng.randrange(len(self.rows))
        self.receive(k)
        row = self.rows[k]
        if not row.blocked and self.rng.random() < 0.7:
            work = row.work(0 if k == 0 else self.rng.randrange(5))
            choices = [
                toy_choice(k, self.agree[k], work.prefix + work.drafts[:j], self.seed)
                for j in range(len(work.drafts) + 1)
            ]
            settled = row.settle(work, choices)
            assert settled is not None
            self.accepted += settled.accepted
            self.rejected += settled.drafted - settled.accepted
            if k == len(self.rows) - 1 and (row.prefix[-1] == END or len(row.prefix) >= row.limit):
                row.finish(len(row.prefix))
        self.publish(k)

    def publish(self, k: int) -> None:
        row, again = self.rows[k], self.rng.random() < 0.2
        block = row.repeat_drafts() if again and k < len(self.rows) - 1 else row.drafts(self.rng.randint(1, 3))
        if block is not None and k < len(self.rows) - 1:
            self.put(self.down[k], block)
        if k > 0:
            verdict = row.repeat_verdict() if again else row.verdict()
            if verdict is not None:
                self.put(self.up[k - 1], verdict)

    def put(self, link: list[bytes], message: DraftBlock | Verdict) -> None:
        if self.rng.random() < self.loss:
            return
        for _ in range(2 if self.rng.random() < self.loss else 1):
            at = len(link) if self.rng.random() > self.loss else self.rng.randint(0, len(link))
            link.insert(at, encode(message))

    def receive(self, k: int) -> None:
        if k > 0 and self.down[k - 1]:
            self.rows[k].on_drafts(decode(self.down[k - 1].pop(0))[0])  # type: ignore[arg-type]
        if k < len(self.up) and self.up[k]:
            self.rows[k].on_verdict(decode(self.up[k].pop(0))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [0.0, 0.3])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_any_schedule_gives_the_targets_own_answer_and_everyone_hears_of_it(stages: int, loss: float) -> None:
    accepted = rejected = 0
    for seed in range(250):
        toy = ToyCascade(seed, stages, limit=12, loss=loss)
        for _ in range(20_000):
            toy.step()
            if all(row.finished for row in toy.rows):
                break
        expected = toy.reference()
        assert [row.prefix for row in toy.rows] == [expected] * stages, seed
        assert all(row.finished for row in toy.rows)
        for mask in toy.rows[-1].stages:
            assert mask >> (stages - 1) == 1  # the target stands by every token, and nobody beyond it exists
        accepted, rejected = accepted + toy.accepted, rejected + toy.rejected
    if stages > 1:
        assert accepted > 100 and rejected > 100  # both sides of the rule were exercised


@pytest.mark.parametrize(("agree", "most_passes"), [((1.0, 1.0), 12), ((0.8, 0.9), 30)])
def test_three_stages_keep_their_speed_after_corrections(agree: tuple[float, float], most_passes: int) -> None:
    """A stage stuck on a wrong prefix would still be right, only slow: the target would decode alone (40 passes)."""
    for seed in range(20):
        toy = ToyCascade(seed, 3, limit=40, loss=0.0, window=12)
        toy.agree = [*agree, 1.0]
        for row in toy.rows:
            row.ends = frozenset()
        passes, need = 0, (0, 2, 4)
        for _ in range(2_000):
            for k, row in enumerate(toy.rows):
                while (k and toy.down[k - 1]) or (k < 2 and toy.up[k]):
                    toy.receive(k)
                if not row.blocked and (k == 0 or len(row.hints) >= need[k] or row.upstream_waits):
                    work = row.work(8 if k else 0)
                    prefixes = [work.prefix + work.drafts[:j] for j in range(len(work.drafts) + 1)]
                    row.settle(work, [toy_choice(k, toy.agree[k], prefix, seed) for prefix in prefixes])
                    passes += k == 2
                    if k == 2 and len(row.prefix) >= row.limit:
                        row.finish(row.limit)
                if k < 2 and (block := row.drafts(need[k + 1])) is not None:
                    toy.put(toy.down[k], block)
                if k and (verdict := row.verdict()) is not None:
                    toy.put(toy.up[k - 1], verdict)
            if all(row.finished for row in toy.rows):
                break
        assert all(row.finished for row in toy.rows)
        assert passes <= most_passes, seed


def standing(**changes: object) -> Standing:
    fields = {
        "request": 1,
        "epoch": 0,
        "stage": 1,
        "limit": 40,
        "vocab_size": 100,
        "ends": frozenset({99}),
        "window": 16,
    }
    return Standing(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_pass_keeps_the_agreeing_run_and_adds_the_own_choice() -> None:
    row = standing()
    row.on_drafts(DraftBlock(1, 0, 0, (10, 11, 12), (1, 1, 1), 0))
    settled = row.settle(row.work(8), [10, 11, 55, 13])
    assert settled is not None and (settled.drafted, settled.accepted, settled.added) == (3, 2, (10, 11, 55))
    assert row.prefix == [10, 11, 55] and row.stages == [0b11, 0b11, 0b10] and row.hints == []
    assert row.verdict() == Verdict(1, 0, 1, 0, (10, 11, 55), (0b11, 0b11, 0b10))
    assert row.verdict() is None


def test_drafts_made_before_a_correction_was_heard_are_dropped() -> None:
    row = standing()
    row.on_drafts(DraftBlock(1, 0, 0, (10, 11), (1, 1), 0))
    row.settle(row.work(8), [10, 55, 0])
    assert row.verdict() is not None
    assert not row.on_drafts(DraftBlock(1, 0, 2, (12, 13), (1, 1), ack=0))  # fits by position, drafted on 10, 11
    assert row.hints == []
    assert row.on_drafts(DraftBlock(1, 0, 2, (12, 13), (1, 1), ack=1))
    assert row.hints == [12, 13]


def test_a_shorter_verdict_is_state_an_older_one_is_not() -> None:
    row = standing(stage=0)
    row.prefix, row.stages = [1, 2, 3, 4, 5], [1] * 5
    assert not row.on_verdict(Verdict(1, 0, 4, 0, (1, 2, 3, 4), (3,) * 4))
    assert row.confirmed == 4
    assert row.on_verdict(Verdict(1, 0, 5, 0, (1, 7), (3, 2)))
    assert row.prefix == [1, 7] and row.confirmed == 2
    assert not row.on_verdict(Verdict(1, 0, 4, 0, (1, 2, 3, 4), (3,) * 4))
    assert row.prefix == [1, 7]


def test_verdicts_reach_back_to_what_was_acknowledged() -> None:
    row = standing(window=None)
    for token in (1, 2):
        row.settle(row.work(0), [token])
        assert row.verdict() is not None
    row.on_drafts(DraftBlock(1, 0, 1, (2,), (1,), ack=1))  # it heard the first verdict only
    row.settle(row.work(0), [3])
    verdict = row.verdict()
    assert verdict is not None and (verdict.base, verdict.tokens) == (1, (2, 3))


def test_a_verdict_that_was_lost_is_said_again_to_a_drafter_that_repeats_itself() -> None:
    row = standing(window=None)
    row.settle(row.work(0), [1])
    assert row.verdict() is not None  # and it is lost
    block = DraftBlock(1, 0, 0, (7, 8), (1, 1), ack=0, finished=True, pace_us=100)
    row.on_drafts(block)
    assert row.verdict() is None  # the two may have crossed
    row.on_drafts(replace(block, pace_us=120))  # its stage has gone on with other rows
    again = row.verdict()
    assert again is not None and (again.seq, again.base, again.tokens) == (2, 0, (1,))
    for _ in range(2):
        assert row.verdict() is None
        row.on_drafts(DraftBlock(1, 0, 1, (8,), (1,), ack=2, finished=True))  # it waits for the next one only
    assert row.verdict() is None


def test_a_repeated_block_that_crosses_its_verdict_is_no_sign_of_a_loss() -> None:
    row = standing(window=None)
    block = DraftBlock(1, 0, 0, (7, 8), (1, 1), ack=0, finished=True)
    row.on_drafts(block)
    row.settle(row.work(2), [7, 8, 9])
    assert row.verdict() is not None
    row.on_drafts(block)
    assert row.verdict() is None


def test_a_drafter_never_runs_past_its_window_or_the_limit() -> None:
    row = standing(stage=0, window=3)
    passes = 0
    while not row.blocked:
        row.settle(row.work(0), [passes])
        passes += 1
    assert passes == 3
    row.on_verdict(Verdict(1, 0, 1, 0, (0, 1), (3, 3)))
    assert row.room == 2
    assert standing(window=None, limit=5).room == 5


def test_end_of_sequence_inside_a_block_ends_the_pass() -> None:
    row = standing(window=None)
    row.on_drafts(DraftBlock(1, 0, 0, (10, 99, 12), (1, 1, 1), 0))
    settled = row.settle(row.work(8), [10, 99, 12, 13])
    assert settled is not None and settled.added == (10, 99) and row.blocked


def test_tokens_outside_the_vocabulary_and_forged_masks_are_cut() -> None:
    row = standing()
    assert row.on_drafts(DraftBlock(1, 0, 0, (10, 100, 3), (0b110, 1, 1), 0))
    assert row.hints == [10] and row.hint_stages == [1]


numbers = st.integers(0, 2**32 - 1)
masked = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 255)), max_size=40)
handles = st.integers(0, 2**63 - 1)
grants = st.builds(Grant, st.integers(0, MAX_WINDOW), st.integers(1, 2**32 - 1), st.booleans())


def tree_of(nodes: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Parents of a tree of so many nodes, some near each other, none deeper than may be."""
    return st.tuples(*(st.integers(-1, min(node - 1, MAX_TREE_DEPTH - 2)) for node in range(nodes)))


@st.composite
def messages(draw: st.DrawFn) -> DraftBlock | Verdict:
    body = draw(masked)
    tokens, stages = tuple(token for token, _ in body), tuple(mask for _, mask in body)
    request, epoch, base, number, end = draw(handles), draw(numbers), draw(numbers), draw(numbers), draw(st.booleans())
    if draw(st.booleans()):
        parents = draw(st.none() | tree_of(len(tokens)))
        return DraftBlock(request, epoch, base, tokens, stages, number, end, draw(numbers), parents=parents)
    return Verdict(request, epoch, number, base, tokens, stages, end, draw(grants))


@given(st.lists(messages(), min_size=1, max_size=5))
def test_messages_survive_their_bytes_alone_and_in_a_frame(said: list[DraftBlock | Verdict]) -> None:
    assert [decode(encode(message)) for message in said] == [[message] for message in said]
    assert decode(b"".join(map(encode, said))) == said


@settings(max_examples=300)
@given(st.binary(max_size=80), st.lists(messages(), max_size=2), st.integers(0, 100))
def test_hostile_frames_are_refused_or_well_formed(noise: bytes, said: list[DraftBlock | Verdict], cut: int) -> None:
    for frame in (noise, b"".join(map(encode, said)) + noise, b"".join(map(encode, said))[:-cut]):
        try:
            found = decode(frame)
        except ChannelError:
            continue
        assert found and b"".join(map(encode, found)) == frame


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "header"),
        (encode(DraftBlock(1, 0, 0, (5, 6), (1, 1), 0))[:-1], "2 tokens"),
        (encode(DraftBlock(1, 0, 0, (5,), (0,), 0)), "nobody"),
        (b"\x03" + encode(DraftBlock(1, 0, 0, (5,), (1,), 0))[1:], "kind 3"),
        (encode(Verdict(1, 0, 1, 0, (), (), grant=Grant(block=0))), "blocks of 0"),
        (encode(DraftBlock(1, 0, 0, (5,) * 8193, (1,) * 8193, 0)), "8193 tokens"),
        (encode(DraftBlock(1, 0, 0, (5, 6), (1, 1), 0, parents=(-1, 0)))[:-1], "6 bytes"),
        (encode(DraftBlock(1, 0, 0, (5, 6), (1, 1), 0, parents=(0, 0))), "token 0 of a tree follows token 0"),
        (encode(DraftBlock(1, 0, 0, (5, 6), (1, 1), 0, parents=(-1, 2))), "token 1 of a tree follows token 2"),
        (encode(DraftBlock(1, 0, 0, (5,) * 64, (1,) * 64, 0, parents=(-1,) * 64)), "64 tokens.*allowed: 63"),
        (encode(DraftBlock(1, 0, 0, (5,) * 33, (1,) * 33, 0, parents=tuple(range(-1, 32)))), "33 tokens one after"),
        (b"\x02\x04" + encode(Verdict(1, 0, 1, 0, (5,), (1,)))[2:] + b"\x00", "a verdict that branches"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said(frame: bytes, says: str) -> None:
    with pytest.raises(ChannelError, match=says):
        decode(frame)


def test_masks_name_the_producer_and_the_acceptors() -> None:
    assert producer(0b110) == 1 and acceptors(0b110) == (2,)
    assert producer(0b101) == 0 and acceptors(0b101) == (2,)
