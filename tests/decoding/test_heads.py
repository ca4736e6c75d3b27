"""Drafters beside a target: what they propose is what the slow way computes, whatever was drafted and rolled back."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from toy_heads import (
    BLOCKS,
    END,
    GREEDY,
    LAYERS,
    VOCAB,
    Slow,
    new_decoder,
    paths,
    target_states,
    toy_eagle,
    toy_medusa,
    toy_prompt,
    toy_target,
)

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.choice import choose
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.eagle_drafter import EagleDrafter
from cascade_runtime.decoding.head_states import Ask
from cascade_runtime.decoding.heads import MedusaDrafter, load_drafter
from cascade_runtime.decoding.row import Extension, Row, States
from cascade_runtime.errors import InputError
from cascade_runtime.models.eagle import EagleHead, save_eagle
from cascade_runtime.models.medusa import save_medusa

KINDS = ("eagle", "eagle3", "hivis", "msd", "vispec", "dream")


@pytest.fixture(scope="module")
def language():
    return toy_target()


def beside(decoder: Decoder, kind: str, *, width: int = 3, deepest: int = 5):
    """A drafter beside a decoder, as `load_drafter` sets it up."""
    if kind == "medusa":
        drafter = MedusaDrafter(toy_medusa(), decoder.language)
    else:
        head, cache = EagleHead(toy_eagle(kind)), decoder.cache
        drafter = EagleDrafter(
            head, decoder.language, slots=cache.slots, max_len=cache.max_len, width=width, deepest=deepest
        )
        drafter._cache.held[0].normal_()
        drafter._states.normal_()
    decoder.keeps = drafter.keeps
    return drafter


def step(decoder: Decoder, drafter, row: Row, answer: list[int], drafts=(), parents=None) -> int:
    """One pass; `answer` grows by what was right of the drafts and by the target's own token. How many were right."""
    (chosen,) = decoder.extend([Extension(row, answer, drafts, parents=parents)])
    before, node = len(answer), -1
    while True:
        answer.append(chosen[node + 1])
        above = parents if parents is not None else [i - 1 for i in range(len(drafts))]
        node = next((i for i, t in enumerate(drafts) if above[i] == node and t == answer[-1]), None)
        if node is None:
            break
    drafter.observe(row, answer)
    return len(answer) - before - 1


def rows_at(decoder: Decoder, drafter, counts, *, sampling: SamplingParams = GREEDY) -> list[tuple[Row, list[int]]]:
    """Rows with so many tokens answered, one pass each."""
    made = []
    for seed, count in enumerate(counts):
        row, answer = decoder.admit(toy_prompt(seed, length=7 + seed), sampling), []
        for _ in range(count):
            step(decoder, drafter, row, answer)
        made.append((row, answer))
    return made


@pytest.mark.parametrize("keeps", [(LAYERS,), BLOCKS, (1, LAYERS)])
def test_a_decoder_keeps_the_states_of_a_pass(language, keeps) -> None:
    decoder = new_decoder(language)
    decoder.keeps = keeps
    rows = [decoder.admit(toy_prompt(seed, prefix=0), GREEDY) for seed in range(2)]
    decoder.extend([Extension(row, [], [3, 4]) for row in rows])
    decoder.extend([Extension(rows[1], [3, 9], [5]), Extension(rows[0], [3, 4, 8])])
    for row, tokens, start in ((rows[0], [3, 4, 8], 11), (rows[1], [3, 9, 5], 10)):
        wanted = target_states(language, row.prompt, tokens, keeps)
        assert row.states.start == start
        assert torch.allclose(row.states.values, wanted[start:], atol=1e-4)


def test_a_decoder_that_keeps_nothing_keeps_nothing(language) -> None:
    decoder = new_decoder(language)
    row = decoder.admit(toy_prompt(0), GREEDY)
    decoder.extend([Extension(row, [])])
    assert row.states is None
    with pytest.raises(InputError, match=r"Decoder\.keeps"):
        beside(new_decoder(language), "eagle").observe(row, [1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_what_the_slow_way_drafts(language, kind) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder, kind, width=1)
    rows, slow = rows_at(decoder, drafter, (1, 4, 2)), Slow(language, toy_eagle(kind))
    found = drafter.propose([Ask(row, budget=4, depth=4) for row, _ in rows])
    for (row, answer), tree in zip(rows, found, strict=True):
        path: list[int] = []
        worth = 0.0
        while len(path) < 4 and END not in path:
            log_probs = slow.log_probs(row.prompt, answer, path)
            worth += float(log_probs.max())
            path.append(int(log_probs.argmax()))
            assert tree.values[len(path) - 1] == pytest.approx(worth, abs=1e-3)
        assert tree.tokens == path and tree.parents == [*range(-1, len(path) - 1)]
    assert len({tuple(tree.tokens) for tree in found}) > 1


def every_path(slow: Slow, row: Row, answer: list[int], width: int, depth: int) -> dict[tuple[int, ...], float]:
    """EAGLE-2's tree before its last choice of nodes, by its definition."""
    found: dict[tuple[int, ...], float] = {}
    layer: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(depth):
        best = sorted((path for path in layer if END not in path), key=lambda path: -layer[path])[:width]
        children = {}
        for path in best:
            values, tokens = slow.log_probs(row.prompt, answer, list(path)).topk(width)
            children |= {
                (*path, token): layer[path] + value
                for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
            }
        found |= children
        layer = children
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "budget", "depth"), [(3, 8, 4), (2, 40, 3), (4, 5, 5), (3, 1, 3)])
def test_a_tree_holds_the_nodes_of_the_largest_products(language, kind, width, budget, depth) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder, kind, width=width)
    rows, slow = rows_at(decoder, drafter, (3, 1)), Slow(language, toy_eagle(kind))
    found = drafter.propose([Ask(row, budget, depth) for row, _ in rows])
    for (row, answer), tree in zip(rows, found, strict=True):
        worth = every_path(slow, row, answer, width, depth)
        best = sorted(worth, key=lambda path: -worth[path])[:budget]
        assert set(paths(tree)) == set(best)
        assert all(paths(tree)[path] == pytest.approx(worth[path], abs=1e-3) for path in best)
    assert budget <= 5 or any(parent != i - 1 for tree in found for i, parent in enumerate(tree.parents))


def test_rows_may_ask_for_different_trees_and_for_none(language) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder, "eagle")
    (a, _), (b, _), (c, _) = rows_at(decoder, drafter, (2, 2, 2))
    asks = [Ask(a, 6, 2), Ask(b, 0, 3), Ask(c, 9, 5)]
    together = drafter.propose(asks)
    assert [len(tree) for tree in together] == [6, 0, 9]
    for one, tree in zip(asks, together, strict=True):
        (alone,) = drafter.propose([one])
        assert (alone.tokens, alone.parents) == (tree.tokens, tree.parents)
        assert alone.values == pytest.approx(tree.values, abs=1e-4)
    with pytest.raises(InputError, match="budget"):
        Ask(a, -1, 2)


def test_medusa_holds_the_paths_of_the_largest_products(language) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder, "medusa")
    rows = rows_at(decoder, drafter, (1, 3))
    found = drafter.propose([Ask(row, 20, 9) for row, _ in rows])
    for (row, answer), tree in zip(rows, found, strict=True):
        state = target_states(language, row.prompt, answer[:-1], (LAYERS,))[-1:]
        heads = language.logits(toy_medusa()(state)[0]).log_softmax(-1)
        worth = {}
        for depth in (1, 2, 3):
            for path in itertools.product(range(VOCAB), repeat=depth):
                if END not in path[:-1]:
                    worth[path] = sum(float(heads[i, token]) for i, token in enumerate(path))
        best = sorted(worth, key=lambda path: -worth[path])[:20]
        assert set(paths(tree)) == set(best)
        assert all(paths(tree)[path] == pytest.approx(worth[path], abs=1e-3) for path in best)


@pytest.mark.parametrize("kind", ["medusa", *KINDS])
def test_drafting_after_roll_backs_equals_drafting_anew(language, kind) -> None:
    """Random drafts, chains and trees, right and wrong; answers that are taken back; three rows in turns."""
    rng = random.Random(5)
    decoder = new_decoder(language)
    drafter = beside(decoder, kind)
    rows = rows_at(decoder, drafter, (1, 1, 1))
    right = wrong = back = 0
    for turn in range(40):
        row, answer = rows[turn % 3]
        if len(answer) > 26:
            continue
        if len(answer) > 3 and rng.random() < 0.25:  # a heavier level has overruled the last tokens
            del answer[rng.randrange(1, len(answer)) :]
            answer.append(rng.randrange(VOCAB - 1))
            back += 1
        truth = list(answer)
        plain = new_decoder(language, 1)
        own = plain.admit(row.prompt, GREEDY)
        for _ in range(3):
            truth += plain.extend([Extension(own, truth)])[0]
        ahead = truth[len(answer) :]
        wrongly = [rng.randrange(VOCAB) for _ in range(3)]
        drafts = [wrongly[0], ahead[0], ahead[1] if rng.random() < 0.5 else wrongly[1], wrongly[2]]
        parents = [-1, -1, 1, 0]
        if rng.random() < 0.4:
            drafts, parents = [ahead[0], ahead[1] if rng.random() < 0.5 else wrongly[0], wrongly[1]], None
        drafter.propose([Ask(one, 7, 4) for one, _ in rows])  # what was drafted before must not be seen after
        accepted = step(decoder, drafter, row, answer, drafts, parents)
        right, wrong = right + accepted, wrong + (accepted < 2)
        fresh_decoder = new_decoder(language, 1)
        fresh = beside(fresh_decoder, kind)
        again = fresh_decoder.admit(row.prompt, GREEDY)
        fresh_decoder.extend([Extension(again, answer[:-1])])
        fresh.observe(again, answer)
        (mine,), (theirs,) = drafter.propose([Ask(row, 7, 4)]), fresh.propose([Ask(again, 7, 4)])
        assert len(mine) == 7 and (mine.tokens, mine.parents) == (theirs.tokens, theirs.parents)
        assert mine.values == pytest.approx(theirs.values, abs=1e-3)
    assert right > 10 and wrong > 5 and back > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_in_parts_and_a_shared_prefix_change_nothing(language, kind) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder, kind)
    first, second = (replace(toy_prompt(4), embeds=toy_prompt(4).embeds.clone()) for _ in range(2))
    second.embeds[second.prefix_length :] += 1.0
    slow, found = Slow(language, toy_eagle(kind)), []
    for prompt in (first, second):
        row, answer = decoder.admit(prompt, GREEDY), list[int]()
        assert row.held == (prompt.prefix_length if prompt is second else 0)
        while row.prompt_left:
            (chosen,) = decoder.extend([Extension(row, [], prompt=2)])
            answer += chosen
            drafter.observe(row, answer)
        (tree,) = drafter.propose([Ask(row, 1, 1)])
        wanted = slow.log_probs(prompt, answer, [])
        assert tree.tokens == [int(wanted.argmax())]
        assert tree.values[0] == pytest.approx(float(wanted.max()), abs=1e-3)
        found.append(wanted)
    assert not torch.allclose(*found)


@pytest.mark.parametrize("kind", ["medusa", "eagle"])
def test_a_sampled_request_is_drafted_with_the_noise_it_is_chosen_with(language, kind) -> None:
    firsts = set()
    for seed in range(6):
        sampling = SamplingParams(temperature=1.3, top_k=9, seed=seed, max_tokens=40)
        decoder = new_decoder(language)
        drafter = beside(decoder, kind)
        ((row, answer),) = rows_at(decoder, drafter, (2,), sampling=sampling)
        if kind == "medusa":
            state = target_states(language, row.prompt, answer[:-1], (LAYERS,))[-1:]
            logits = language.logits(toy_medusa()(state)[:, 0])
        else:
            logits = Slow(language, toy_eagle(kind)).logits(row.prompt, answer, [])[None]
        (tree,) = drafter.propose([Ask(row, 1, 1)])
        assert tree.tokens == choose(logits, [sampling], [len(answer)])
        firsts.add(tree.tokens[0] == int(logits.argmax()))
    assert firsts == {True, False}


def test_a_row_of_which_nothing_is_known_gets_no_drafts(language) -> None:
    for kind in ("medusa", "eagle"):
        decoder = new_decoder(language, 1)
        drafter = beside(decoder, kind)
        row = decoder.admit(toy_prompt(0), GREEDY)
        assert len(drafter.propose([Ask(row, 4, 3)])[0]) == 0
        decoder.extend([Extension(row, [], prompt=5)])
        drafter.observe(row, [])
        assert len(drafter.propose([Ask(row, 4, 3)])[0]) == 0
        answer = list[int]()
        step(decoder, drafter, row, answer)
        assert len(drafter.propose([Ask(row, 4, 3)])[0]) == 4
        decoder.release(row)
        other = decoder.admit(toy_prompt(1), GREEDY)
        assert other.slot == row.slot and len(drafter.propose([Ask(other, 4, 3)])[0]) == 0
        drafter.forget(other)  # knows nothing of it: the old row's stays
        assert len(drafter.propose([Ask(row, 4, 3)])[0]) == 4
        drafter.forget(row)
        assert len(drafter.propose([Ask(row, 4, 3)])[0]) == 0


def test_a_pass_that_was_not_observed_is_an_error(language) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder, "eagle")
    ((row, answer),) = rows_at(decoder, drafter, (2,))
    for _ in range(2):
        answer += decoder.extend([Extension(row, answer)])[0]
    with pytest.raises(InputError, match="not observed"):
        drafter.observe(row, answer)


@pytest.mark.parametrize("kind", ["msd", "vispec"])
def test_a_row_whose_numbers_broke_is_looked_at_anew(language, kind) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder, kind)
    ((row, answer),) = rows_at(decoder, drafter, (2,))
    (wanted,) = drafter.propose([Ask(row, 6, 3)])
    good = row.states
    row.states = States(good.start, torch.full_like(good.values, torch.nan))
    drafter.observe(row, answer)
    (spoilt,) = drafter.propose([Ask(row, 6, 3)])
    row.states = good
    drafter.observe(row, answer)
    (again,) = drafter.propose([Ask(row, 6, 3)])
    assert len(spoilt) == 0
    assert again.tokens == wanted.tokens and again.values == pytest.approx(wanted.values, abs=1e-3)


@pytest.mark.parametrize("kind", ["medusa", *KINDS])
def test_numbers_that_are_not_finite_end_with_their_row(language, kind) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder, kind)
    (bad, _), (good, answer) = rows_at(decoder, drafter, (2, 2))
    (wanted,) = drafter.propose([Ask(good, 6, 3)])
    bad.states = States(bad.states.start, torch.full_like(bad.states.values, torch.nan))
    drafter.observe(bad, [*bad.tokens, 1])
    spoilt, kept = drafter.propose([Ask(bad, 6, 3), Ask(good, 6, 3)])
    assert len(spoilt) == 0 and kept.tokens == wanted.tokens
    drafter.forget(bad)
    decoder.release(bad)
    again = decoder.admit(toy_prompt(1, length=8), GREEDY)
    assert again.slot == bad.slot
    decoder.extend([Extension(again, answer[:-1])])
    drafter.observe(again, answer)
    (tree,) = drafter.propose([Ask(again, 6, 3)])
    assert tree.tokens == wanted.tokens and tree.values == pytest.approx(wanted.values, abs=1e-3)


def test_a_folder_becomes_a_drafter_whose_target_keeps_what_it_reads(language, tmp_path) -> None:
    save_medusa(toy_medusa(), tmp_path / "medusa")
    for kind, keeps in (("medusa", (LAYERS,)), ("eagle", (LAYERS,)), ("eagle3", BLOCKS)):
        if kind != "medusa":
            save_eagle(toy_eagle(kind), tmp_path / kind)
        decoder = new_decoder(language)
        loaded = load_drafter(tmp_path / kind, decoder, width=3)
        assert decoder.keeps == loaded.keeps == keeps
        ((row, answer),) = rows_at(decoder, loaded, (2,))
        other = new_decoder(language)
        made = beside(other, kind)
        ((mine, same),) = rows_at(other, made, (2,))
        assert answer == same
        assert loaded.propose([Ask(row, 1, 1)])[0].tokens == made.propose([Ask(mine, 1, 1)])[0].tokens
