"""A target that drafts with its first blocks: what the slow way drafts, and no trace of it in the target's answers."""

from __future__ import annotations

import random

import pytest
import torch
from toy_heads import END, GREEDY, VOCAB, new_decoder, target_states, toy_exits, toy_prompt, toy_target

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.choice import choose
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.exit_drafter import AHEAD, NEEDED, ExitDrafter
from cascade_runtime.decoding.head_states import Ask
from cascade_runtime.decoding.heads import load_drafter
from cascade_runtime.decoding.row import Extension, PromptEmbeds, Row
from cascade_runtime.models.exits import save_exits

SAMPLED = SamplingParams(temperature=1.1, seed=9, max_tokens=40)


@pytest.fixture(scope="module")
def language():
    return toy_target()


def beside(decoder: Decoder) -> ExitDrafter:
    drafter = ExitDrafter(toy_exits(), decoder)
    decoder.keeps = drafter.keeps
    return drafter


def says(language, number: int, prompt: PromptEmbeds, tokens: list[int], answered: int, sampling=GREEDY) -> int:
    """What an exit says after prompt and tokens, of which `answered` come before the token in the answer."""
    exits = toy_exits()
    state = target_states(language, prompt, tokens, (exits.blocks[number],))[-1:]
    return choose(language.logits(exits.read(number, state)), [sampling], [answered])[0]


def slow(language, prompt: PromptEmbeds, answer: list[int], most: int, sampling=GREEDY) -> list[int]:
    """HiSpec's algorithm 1, everything computed anew."""
    tentative: list[int] = []
    while len(tentative) < min(NEEDED, most) and END not in tentative:
        drafted: list[int] = []
        for _ in range(AHEAD):
            before = [*answer, *tentative, *drafted]
            drafted.append(says(language, 0, prompt, before, len(before), sampling))
        kept: list[int] = []
        for guess in [*drafted, None]:
            before = [*answer, *tentative, *kept]
            kept.append(says(language, 1, prompt, before, len(before), sampling))
            if kept[-1] in (END,) or kept[-1] != guess:
                break
        tentative += kept
    return tentative[:most]


def answers(decoder: Decoder, drafter: ExitDrafter, rows: list[Row], passes: int) -> list[list[int]]:
    """Rows that are drafted for and looked at together."""
    told: list[list[int]] = [[] for _ in rows]
    for _ in range(passes):
        chains = [tree.tokens for tree in drafter.propose([Ask(row, 9, 9) for row in rows])]
        asked = [Extension(row, answer, chain) for row, answer, chain in zip(rows, told, chains, strict=True)]
        for row, answer, chain, chosen in zip(rows, told, chains, decoder.extend(asked), strict=True):
            right = 0
            while right < len(chain) and chain[right] == chosen[right]:
                right += 1
            answer += [*chain[:right], chosen[right]]
            drafter.observe(row, answer)
    return told


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_drafts_are_hispecs_whatever_was_drafted_before(language, sampling) -> None:
    decoder, rng = new_decoder(language), random.Random(3)
    drafter = beside(decoder)
    rows = [decoder.admit(toy_prompt(seed, length=7 + seed), sampling) for seed in range(3)]
    told: list[list[int]] = [[] for _ in rows]
    lengths, corrected = set(), 0
    for turn in range(8):
        for row, answer in zip(rows, told, strict=True):
            wrong = [rng.randrange(VOCAB - 1) for _ in range(rng.randrange(4))]
            parents = [-1] * len(wrong) if turn % 3 == 2 else None  # a tree leaves its nodes in the slot
            answer.append(decoder.extend([Extension(row, answer, wrong, parents=parents)])[0][0])
            drafter.observe(row, answer)
        most = rng.randrange(1, 9)
        found = drafter.propose([Ask(row, 9, most) for row in rows])
        for row, answer, tree in zip(rows, told, found, strict=True):
            wanted = slow(language, row.prompt, answer, most, sampling)
            assert tree.tokens == wanted and tree.parents == [*range(-1, len(wanted) - 1)]
            lengths.add(len(wanted))
            first = says(language, 0, row.prompt, answer, len(answer), sampling)
            corrected += bool(wanted) and wanted[0] != first
    assert len(lengths) > 3 and corrected > 3


def test_what_was_drafted_is_never_seen_by_the_target(language) -> None:
    """Also where the next drafts are those that stood in the slot before the exits wrote over them."""
    decoder, plain = new_decoder(language), new_decoder(language)
    drafter = beside(decoder)
    rows = [decoder.admit(toy_prompt(seed, length=7 + seed), GREEDY) for seed in range(3)]
    told = answers(decoder, drafter, rows, 8)
    for seed, answer in enumerate(told):
        row, truth = plain.admit(toy_prompt(seed, length=7 + seed), GREEDY), list[int]()
        while len(truth) < len(answer):
            truth += plain.extend([Extension(row, truth)])[0]
        assert answer == truth
    row, answer = rows[0], told[0]
    old = [(token + 1) % VOCAB for token in answer[-4:]]
    decoder.extend([Extension(row, answer, old)])
    drafter.propose([Ask(row, 9, 9)])
    (again,) = decoder.look([Extension(row, [*answer, *old], asked=1)])
    plain = new_decoder(language)
    (wanted,) = plain.look([Extension(plain.admit(row.prompt, GREEDY), [*answer, *old], asked=1)])
    assert torch.allclose(again, wanted, atol=1e-3)


def test_who_gets_no_drafts(language) -> None:
    decoder = new_decoder(language, 1)
    drafter = beside(decoder)
    row = decoder.admit(toy_prompt(0), GREEDY)
    assert not len(drafter.propose([Ask(row, 9, 9)])[0])  # nothing is known of it
    decoder.extend([Extension(row, [], prompt=5)])
    drafter.observe(row, [])
    assert not len(drafter.propose([Ask(row, 9, 9)])[0])
    answer = decoder.extend([Extension(row, [])])[0]
    drafter.observe(row, answer)
    assert not len(drafter.propose([Ask(row, 0, 9)])[0]) and not len(drafter.propose([Ask(row, 9, 0)])[0])
    assert len(drafter.propose([Ask(row, 9, 9)])[0])
    drafter.observe(row, [(answer[0] + 1) % VOCAB, 3])  # the slot holds another answer
    assert not len(drafter.propose([Ask(row, 9, 9)])[0])
    drafter.observe(row, answer)
    while len(row.prompt) + len(answer) + AHEAD < decoder.cache.max_len:
        answer += decoder.extend([Extension(row, answer)])[0]
        drafter.observe(row, answer)
        assert row.held + len(drafter.propose([Ask(row, 9, 9)])[0]) <= decoder.cache.max_len
    answer += decoder.extend([Extension(row, answer)])[0]
    drafter.observe(row, answer)
    assert not len(drafter.propose([Ask(row, 9, 9)])[0])  # no room is left for a turn
    drafter.forget(row)
    assert not len(drafter.propose([Ask(row, 9, 9)])[0])


def test_numbers_that_are_not_finite_end_with_their_row(language) -> None:
    decoder = new_decoder(language)
    drafter = beside(decoder)
    rows = [decoder.admit(toy_prompt(seed), GREEDY) for seed in range(2)]
    told = answers(decoder, drafter, rows, 1)
    (_, wanted) = drafter.propose([Ask(row, 9, 9) for row in rows])
    decoder.cache.held[1][rows[0].slot, 2] = torch.nan
    spoilt, kept = drafter.propose([Ask(row, 9, 9) for row in rows])
    assert not len(spoilt) and kept.tokens == wanted.tokens
    assert rows[0].poisoned and not rows[1].poisoned
    (chosen,) = decoder.extend([Extension(rows[0], told[0])])  # rebuilt from its prompt
    plain = new_decoder(language)
    assert [chosen] == plain.extend([Extension(plain.admit(toy_prompt(0), GREEDY), told[0])])


def test_a_folder_becomes_a_drafter_that_needs_no_states(language, tmp_path) -> None:
    save_exits(toy_exits(), tmp_path)
    decoder = new_decoder(language)
    loaded = load_drafter(tmp_path, decoder)
    assert isinstance(loaded, ExitDrafter) and decoder.keeps == ()
    row = decoder.admit(toy_prompt(0), GREEDY)
    answer = decoder.extend([Extension(row, [])])[0]
    loaded.observe(row, answer)
    assert row.states is None
    assert len(loaded.propose([Ask(row, 9, 9)])[0]) >= 1
