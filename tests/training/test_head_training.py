"""Heads learn: guesses are of the right places, further ones are fed the head's own states, and losses fall."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from toy_heads import (
    BLOCKS,
    END,
    LAYERS,
    VOCAB,
    WIDTH,
    Slow,
    target_states,
    toy_eagle,
    toy_exits,
    toy_medusa,
    toy_prompt,
    toy_target,
)

from cascade_runtime.errors import ConfigError
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.eagle import load_eagle_net
from cascade_runtime.models.exits import load_exits
from cascade_runtime.models.head_folder import EAGLE_KINDS, HEAD_KINDS, bundled_head
from cascade_runtime.models.medusa import load_medusa
from cascade_runtime.training.heads import Batch, HeadConfig, accuracy, guesses, new_head, teach, train_heads
from cascade_runtime.training.pool import HELD_OUT
from cascade_runtime.training.spoken import (
    CHUNK,
    FIRST_CHUNK,
    Said,
    ask,
    let_target_speak,
    read_said,
    save_said,
    training_scenes,
)

EPOCHS = {"medusa": 100.0, "exits": 100.0}


@pytest.fixture(scope="module")
def language():
    return toy_target()


def said_by(language, seed: int, answer: list[int], *, prefix: int = 0) -> tuple[Said, object]:
    """An answer to a prompt that is text from `prefix` on."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB - 1, 6).tolist()
    prompt = toy_prompt(seed, length=prefix + 6, prefix=prefix)
    prompt.embeds[prefix:] = language.embed(ids)
    states = target_states(language, prompt, answer[:-1], (*BLOCKS, LAYERS))[prefix:]
    return Said(torch.tensor(ids + answer), 6, states, prompt.embeds[:prefix]), prompt


@pytest.mark.parametrize("kind", EAGLE_KINDS)
def test_a_further_guess_is_fed_the_heads_own_states_and_the_words_that_came(language, kind) -> None:
    net, slow = toy_eagle(kind), Slow(language, toy_eagle(kind))
    answers = [[3, 9, 4, 1, END], [5, 5, END]]
    both = [said_by(language, seed, answer, prefix=3) for seed, answer in enumerate(answers)]
    weights = language.decoder.embed_tokens.weight, language.head.weight
    found = list(guesses(net, Batch.of([said for said, _ in both]), weights[0], depth=3))
    assert [len(guess.truth) for guess in found] == [4 + 2, 3 + 1, 2]
    for ahead, guess in enumerate(found, 1):
        wanted, truth = [], []
        for (_, prompt), answer in zip(both, answers, strict=True):
            for told in range(1, len(answer) - ahead + 1):  # so many words are known
                wanted.append(slow.logits(prompt, answer[:told], answer[told : told + ahead - 1]))
                truth.append(answer[told + ahead - 1])
        assert guess.ahead == ahead and guess.truth.tolist() == truth
        assert torch.allclose(guess.read @ weights[1].T, torch.stack(wanted), atol=1e-3)


def test_medusas_heads_guess_from_the_state_before_the_targets_own_word(language) -> None:
    answer = [3, 9, 4, END]
    said, prompt = said_by(language, 1, answer)
    states = target_states(language, prompt, answer[:-1], (LAYERS,))
    first, second, third = guesses(toy_medusa(), Batch.of([said]), language.decoder.embed_tokens.weight, depth=9)
    assert (first.truth.tolist(), second.truth.tolist(), third.truth.tolist()) == ([9, 4, END], [4, END], [END])
    assert torch.allclose(second.read, toy_medusa()(states[5:7])[:, 1], atol=1e-5)
    assert torch.allclose(second.state, states[7:9], atol=1e-5)  # where the target itself says what was guessed


def test_exits_guess_the_targets_own_word_from_the_blocks_below_it(language) -> None:
    answer = [3, 9, 4, END]
    said, prompt = said_by(language, 1, answer)
    exits = toy_exits()
    read = target_states(language, prompt, answer[:-1], (*exits.blocks, LAYERS))
    said = Said(said.ids, said.asked, read, said.seen)
    first, second = guesses(exits, Batch.of([said]), language.decoder.embed_tokens.weight, depth=9)
    assert first.truth.tolist() == second.truth.tolist() == answer
    assert torch.allclose(first.read, exits.read(0, read[5:, :WIDTH]), atol=1e-5)
    assert torch.allclose(second.read, exits.read(1, read[5:, WIDTH : 2 * WIDTH]), atol=1e-5)
    assert torch.equal(second.state, read[5:, -WIDTH:])


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_head_learns_what_follows_what(language, kind) -> None:
    """Answers that count: a head sees it within some seconds, an untrained one does not."""
    said = []
    for seed in range(30):
        said.append(said_by(language, seed, [(seed + 3 * i) % (VOCAB - 1) for i in range(8)])[0])
    torch.manual_seed(0)
    head = new_head(kind, language)
    weights = language.decoder.embed_tokens.weight, language.head.weight
    # The target is random and does not say these answers: what it would say is put in the place of what it does.
    states = torch.linalg.pinv(language.head.weight).T * 40
    if kind == "exits":  # which are not told the last word: the blocks that they read say it
        read = {id(s): states[s.ids[:-1]].repeat(1, 2) for s in said}
    else:
        read = {id(s): s.states[:, :-WIDTH] for s in said}
    said = [Said(s.ids, s.asked, torch.cat([read[id(s)], states[s.ids[1:]]], 1), s.seen) for s in said]
    before = accuracy(head, said, *weights, depth=2)
    config = HeadConfig(epochs=EPOCHS.get(kind, 36.0), batch=24, learning_rate=1e-2, report_every=1000)
    told: list[str] = []
    teach(kind, head, said[6:], language, config, progress=told.append)
    after = accuracy(head, said[:6], *weights, depth=2)
    assert after[0][1] > (0.8 if kind == "exits" else 0.9) and before[0][1] < 0.3
    assert after[0][1] <= after[0][2] <= after[0][4]
    assert told and kind in told[-1]
    if kind in ("eagle3", "hivis"):
        assert after[1][1] > 0.8


def test_what_the_target_says_comes_with_the_states_of_its_places(tmp_path) -> None:
    assert FIRST_CHUNK > 60 and FIRST_CHUNK + 1_000 * 1024 // CHUNK < HELD_OUT
    maps, questions = zip(*training_scenes(2, questions_each=3, seed=1), strict=True)
    assert [len(each) for each in questions] == [3, 3]
    model = load_checkpoint(family_path("light"))
    language = model.language
    questions = list(islice(ask(model, zip(maps, questions, strict=True)), 4))
    said = let_target_speak(model, iter(questions), keeps=(0, 1), slots=3)
    assert len(said) == 4
    for one in said:
        asked = next(q for q in questions if q.ids == one.ids[: one.asked].tolist())
        answer = one.ids[one.asked :].tolist()
        assert answer[-1] in language.eos_token_ids and 10 < len(answer) < 70
        choices = language.logits(one.states[one.asked - 1 :, -language.hidden_size :].float()).argmax(-1)
        assert choices.tolist() == answer  # the states are those of the places they stand for
        assert len(one.states) == len(one.ids) - 1 and len(asked.ids) == one.asked
    save_said(said, tmp_path / "answers.safetensors")
    for one, read in zip(said, read_said(tmp_path / "answers.safetensors"), strict=True):
        assert torch.equal(one.seen, read.seen) and len(one.seen) > 8
        assert torch.equal(one.ids, read.ids) and torch.equal(one.states, read.states) and one.asked == read.asked


def test_an_unknown_kind_is_refused(tmp_path, language) -> None:
    for refused in (lambda: train_heads("hydra", tmp_path), lambda: new_head("hydra", language)):
        with pytest.raises(ConfigError, match="hydra"):
            refused()


def test_the_bundled_heads_know_heavys_next_words() -> None:
    """On scenes held out from all training; the figures are those of `python -m benchmarks.heads`."""
    from cascade_runtime.evaluation.simulated import draw_exam

    model = load_checkpoint(family_path("heavy"))
    exam, language = draw_exam(3, questions_each=2, seed=4), model.language
    scenes = [(exam.maps[i], [q.text for q in exam.questions if q.scene == i]) for i in range(3)]
    said = let_target_speak(model, ask(model, scenes), keeps=(2, 10, 17, 20), slots=6)
    weights = language.decoder.embed_tokens.weight, language.head.weight
    exits = load_exits(bundled_head("exits"), language)
    spoken = let_target_speak(model, ask(model, scenes), keeps=(*exits.blocks, 20), slots=6)
    draft, middle = accuracy(exits, spoken, *weights, depth=2)
    assert exits.layers == (3, 5) and draft[1] > 0.95 and middle[1] > 0.95
    for kind in HEAD_KINDS[:-1]:
        least = 0.6 if kind == "medusa" else 0.85
        head = (load_medusa if kind == "medusa" else load_eagle_net)(bundled_head(kind), language)
        found = accuracy(head, said, *weights, depth=3)
        assert found[0][1] > least and found[2][4] > least
