"""A drafter sees what its recipe says and no more: which patches, where they stand; and no answer depends on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from threaded_pipeline import threaded_pipeline
from toy_family import toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.config import Recipe, SamplingParams, Sees, load_recipe
from cascade_runtime.decoding.attention_scores import attention_scores, evenly, two_stages
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import Extension
from cascade_runtime.decoding.sight import compress, patch_events
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError, FeatureSpaceError, PromptTooLong
from cascade_runtime.events import Events
from cascade_runtime.models.compressor import OPTIONS, Compressor, load_compressor, save_compressor
from cascade_runtime.models.family import read_model
from cascade_runtime.models.visual_layout import VisualLayout
from cascade_runtime.vision.features import VisualFeatures

GREEDY = SamplingParams(max_tokens=16)
EVERY = ("events:5", "uniform:25%", "attention:6", "pool:4", "conv", "resampler", "elastic", "text")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy family whose drafter has a compressor that chooses by the question."""
    family = write_toy_family(tmp_path_factory.mktemp("family"))
    torch.manual_seed(5)
    compressor = Compressor(256)
    with torch.no_grad():
        for value in compressor.parameters():
            value.add_(0.05 * torch.randn_like(value))
    compressor.gate.bias.data.zero_()
    compressor.gate.weight.data.mul_(1000)
    save_compressor(compressor, family / "noisy")
    return family


def recipe(family: Path, sees: str, **cascade: object) -> Recipe:
    """noisy, which `sees`, -> target."""
    plain = toy_recipe(family, ["noisy"], [4], cascade=cascade)
    return replace(plain, stages=(replace(plain.stages[0], sees=sees), plain.target))


def drafter(family: Path, sees: str) -> Level:
    made = recipe(family, sees)
    return Level.load(made.stages[0], made.cascade)


def squares(*filled: tuple[int, int, int, int]) -> Events:
    """Events in (half of the window, row, column, count) of a 4 x 4 grid of a 128 x 96 sensor, 40 ms in all."""
    t, x, y = [0, 39_999], [0, 127], [0, 95]  # both corners, so that the window is what it is
    for half, row, column, count in filled:
        t += np.linspace(20_000 * half + 100, 20_000 * half + 19_000, count).astype(int).tolist()
        x += [32 * column + 5] * count
        y += [24 * row + 7] * count
    order = np.argsort(t, kind="stable")
    columns = (np.array(c)[order] for c in (t, x, y))
    t_, x_, y_ = columns
    return Events(
        t_.astype(np.int64), x_.astype(np.uint16), y_.astype(np.uint16), np.ones(len(t), np.uint8), width=128, height=96
    )


SCENE = squares((0, 1, 2, 50), (0, 3, 3, 40), (1, 0, 0, 90), (1, 2, 1, 30))


@pytest.fixture(scope="module")
def seen(family: Path) -> VisualFeatures:
    """Features of SCENE with the counts that `events` asks for."""
    features = Engine.load(recipe(family, "events:1")).front_end.see(SCENE).features[0]
    assert features is not None
    return features


def places(level: Level, question: str, features: VisualFeatures) -> list[int]:
    """Which visual positions a prompt shows, by their position ids."""
    whole = level.model.prompts.build(question, num_visual=33, frames=2)
    start = int(whole.visual_mask.int().argmax())
    prompt = level.prompt(question, features)
    return [int(p) - start for p in prompt.positions if start <= int(p) < start + 33]


# -- the recipe's word ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "method", "of_32", "of_6272"),
    [("events:64", "events", 32, 64), ("attention:10%", "attention", 4, 628), ("uniform:1", "uniform", 1, 1)],
)
def test_k_is_a_number_or_a_share_of_the_patches(text: str, method: str, of_32: int, of_6272: int) -> None:
    sees = Sees.parse(text)
    assert (sees.method, sees.kept(32), sees.kept(6272)) == (method, of_32, of_6272)


NOT_SEEN = "|some|events|events:0|events:-1|events:101%|events:1.5|events:64 |text:3|all:|pool:5|pool:1|pool:4%|pool"


@pytest.mark.parametrize("text", [*NOT_SEEN.split("|"), "uniform:9999999", "events:\u0664"])
def test_any_other_word_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"stages\.light\.sees.*events, uniform"):
        load_recipe("light_heavy", [f'stages.light.sees="{text}"'])


def test_a_word_is_a_string() -> None:
    with pytest.raises(ConfigError, match=r"stages\.light\.sees: got 3"):
        load_recipe("light_heavy", ["stages.light.sees=3"])


def test_the_target_sees_everything_and_so_does_who_looks_with_no_model() -> None:
    with pytest.raises(ConfigError, match=r"stages\.heavy\.sees.*function of what the target sees"):
        load_recipe("light_heavy", ["stages.heavy.sees=text"])
    with pytest.raises(ConfigError, match=r"stages\.heavy\.sees"):
        load_recipe("heavy", ["stages.heavy.sees=events:4"])
    with pytest.raises(ConfigError, match=r"stages\.lookup\.sees.*no model looks"):
        load_recipe("lookup_heavy", ["stages.lookup.sees=text"])
    with pytest.raises(ConfigError, match=r"encoder\.sees"):
        load_recipe("light_heavy", ["encoder.sees=text"])
    emulated = Path(__file__).parents[2] / "benchmarks" / "recipes" / "emulated_5_25_100.toml"
    with pytest.raises(ConfigError, match=r"sees.*no model looks"):
        load_recipe(emulated, [f"stages.{load_recipe(emulated).stages[0].name}.sees=text"])


# -- which patches -------------------------------------------------------------------------------------------------


def test_the_busiest_patches_stay_in_their_order_and_at_their_positions(family: Path, seen: VisualFeatures) -> None:
    expected = {1: [16], 2: [6, 16], 3: [6, 15, 16], 4: [6, 15, 16, 25]}
    for keep, patches in expected.items():  # half * 16 + row * 4 + column; 32 is the newline, which stays
        assert places(drafter(family, f"events:{keep}"), "What moves?", seen) == [*patches, 32]


def test_counts_are_those_of_the_events(seen: VisualFeatures) -> None:
    counts = patch_events(seen, VisualLayout((2, 4, 4), trailing=1))
    expected = np.zeros(32)
    expected[[6, 15, 16, 25]] = 50, 40, 90, 30
    expected[0] += 1
    expected[31] += 1
    assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize("accept", [-1.0, 1.0])
@pytest.mark.parametrize("policy", ["full", "predicted"])
def test_dense_and_aligned_features_know_the_same_of_the_events(family: Path, accept: float, policy: str) -> None:
    made = recipe(family, "events:2")
    gate = replace(made.gate, accept=accept, reject=-1.0, policy=policy)
    looked = Engine.load(replace(made, gate=gate)).front_end.see(SCENE)
    for features in looked.features:
        assert features is not None and features.density is not None
        assert float(features.density.sum()) == len(SCENE)


def test_features_that_do_not_know_where_the_events_lie_are_refused(family: Path, seen: VisualFeatures) -> None:
    with pytest.raises(FeatureSpaceError, match=r"features\.density"):
        drafter(family, "events:2").prompt("What?", replace(seen, density=None))


def test_nobody_counts_where_nobody_asks(family: Path) -> None:
    looked = Engine.load(recipe(family, "uniform:2")).front_end.see(SCENE)
    assert all(features is not None and features.density is None for features in looked.features)


def test_even_spacing_takes_the_middle_of_each_share(family: Path, seen: VisualFeatures) -> None:
    assert evenly(32, 4).tolist() == [4, 12, 20, 28]
    assert evenly(5, 5).tolist() == [0, 1, 2, 3, 4] and evenly(7, 0).tolist() == []
    assert places(drafter(family, "uniform:4"), "What moves?", seen) == [4, 12, 20, 28, 32]


def test_two_stages_hold_forty_per_cent_and_then_spread() -> None:
    scores = torch.tensor([0.05, 0.3, 0.05, 0.05, 0.15, 0.05, 0.05, 0.1, 0.1, 0.1])
    assert two_stages(scores, 5).tolist() == [1, 2, 4, 6, 8]  # 1 and 4 hold .45; then of 0 2 3 5 6 7 8 9 each third's
    assert two_stages(scores, 1).tolist() == [1]  # fewer may stay than hold the mass
    assert two_stages(scores, 10).tolist() == list(range(10))


def test_scores_are_the_attention_that_the_library_computes(family: Path, seen: VisualFeatures) -> None:
    level = drafter(family, "attention:3")
    whole = level.model.prompts.build("What moves here?", num_visual=33, frames=2)
    embeds = level.model.embed_prompt(whole, level.model.projector.project(seen.tensor()))
    model, _ = read_model(family / "noisy")
    model.model.language_model.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = model.model.language_model(inputs_embeds=embeds[None], output_attentions=True).attentions
    first = int(whole.visual_mask.nonzero()[-1]) + 1
    expected = torch.stack(attention)[:, 0, :, first:].mean((0, 1, 2))
    found = attention_scores(level.model.language, embeds, whole.position_ids, first)
    assert torch.allclose(found, expected, atol=1e-6)
    assert float(found.sum()) == pytest.approx(1.0)
    start = first - 33
    kept = two_stages(expected[start : start + 32], 3).tolist()
    assert places(level, "What moves here?", seen) == [*kept, 32]


# -- fewer made of them --------------------------------------------------------------------------------------------


def test_pooling_averages_squares_of_one_frame() -> None:
    layout = VisualLayout((2, 3, 4), trailing=1)
    values = torch.arange(24.0)[None, :, None]
    tokens, at = compress(Sees.parse("pool:4"), layout, values, None)
    assert tokens.flatten().tolist() == [2.5, 4.5, 8.5, 10.5, 14.5, 16.5, 20.5, 22.5]  # the last row alone
    assert at.tolist() == [0, 2, 8, 10, 12, 14, 20, 22]


def test_untrained_conv_and_resampler_average_what_they_read() -> None:
    layout, values = VisualLayout((1, 2, 4), leading=1), torch.arange(8.0)[None, :, None].expand(-1, -1, 4)
    compressor = Compressor(4).requires_grad_(False)
    tokens, at = compress(Sees.parse("conv"), layout, values, compressor)
    assert torch.allclose(tokens[0, :, 0], torch.tensor([1.0, 4.0, 20 / 3]))  # 0 1 2, 3 4 5, 6 7 7
    assert at.tolist() == [2, 5, 8]
    compressor.queries.zero_()
    tokens, at = compress(Sees.parse("resampler"), layout, values, compressor)
    assert torch.allclose(tokens, torch.full((1, 2, 4), 3.5)) and at.tolist() == [3, 7]


@pytest.mark.parametrize(
    ("sees", "visual"), [("pool:16", 3), ("conv", 12), ("resampler", 3), ("text", 0), ("events:9", 10)]
)
def test_the_cache_really_is_shorter(family: Path, seen: VisualFeatures, sees: str, visual: int) -> None:
    level, full = drafter(family, sees), drafter(family, "all")
    rows = [each.admit("What moves?", seen, GREEDY) for each in (level, full)]
    for each, row in zip((level, full), rows, strict=True):
        each.decoder.extend([Extension(row, [])])
    assert rows[1].held - rows[0].held == 33 - visual
    assert full.decoder.tokens_fed - level.decoder.tokens_fed == 33 - visual
    assert rows[0].prompt.next_position == rows[1].prompt.next_position  # the answer stands where it always stands
    assert rows[0].prompt.positions[-1] == rows[1].prompt.positions[-1]


def test_a_stage_that_sees_less_may_hold_shorter_slots(family: Path, seen: VisualFeatures) -> None:
    made = recipe(family, "text")
    short, full = (
        Level.load(replace(made.stages[0], max_len=each, sees=sees), made.cascade)
        for each, sees in ((64, "text"), (0, "all"))
    )
    assert 4 * short.decoder.cache.nbytes == full.decoder.cache.nbytes
    with pytest.raises(PromptTooLong):
        Level.load(replace(made.stages[0], max_len=64), made.cascade).admit("What? " * 12, seen, GREEDY)
    long = SamplingParams(max_tokens=230)  # its last positions are beyond any of the cascade's
    with pytest.raises(PromptTooLong, match="256"):
        Level.load(made.stages[0], made.cascade).admit("What?", seen, long)
    engines = [
        Engine.load(replace(made, stages=(replace(made.stages[0], max_len=each), made.target))) for each in (0, 80)
    ]
    answers = [engine.generate(toy_requests(6, seed=4)) for engine in engines]
    for one, other in zip(*answers, strict=True):
        assert isinstance(one, Answer) and isinstance(other, Answer)
        assert one.token_ids == other.token_ids
    assert any(other.edges[0].num_accepted_tokens for other in answers[1] if isinstance(other, Answer))


@pytest.mark.parametrize("change", ["stages.light.max_len=8", "stages.light.max_len=2048", "encoder.max_len=64"])
def test_slots_of_impossible_length_are_refused(change: str) -> None:
    with pytest.raises(ConfigError, match="max_len"):
        load_recipe("light_heavy", [change])


def test_text_alone_is_what_is_left_of_a_blind_drafter(family: Path, seen: VisualFeatures) -> None:
    level, other = drafter(family, "text"), replace(seen, data=seen.data + 1)
    one, two = level.prompt("What moves?", seen), level.prompt("What moves?", other)
    assert torch.equal(one.embeds, two.embeds) and one.prefix == ""


# -- the gate, and what questions share ----------------------------------------------------------------------------


def test_the_gate_chooses_by_the_question_and_only_like_choices_share_a_prefix(
    family: Path, seen: VisualFeatures
) -> None:
    level = drafter(family, "elastic")
    questions = [f"{word} {rest}?" for word, rest in itertools.product(("What", "Where", "How fast"), "abcd")]
    lengths: dict[str, set[int]] = {}
    for question in questions:
        prompt = level.prompt(question, seen)
        lengths.setdefault(prompt.prefix, set()).add(prompt.prefix_length)
        whole = level.model.prompts.build(question, num_visual=33, frames=2)
        stop = int(whole.visual_mask.nonzero()[-1]) + 1
        assert level.sight is not None and level.sight.compressor is not None
        embeds = level.model.embed_prompt(whole, level.model.projector.project(seen.tensor()))
        option = OPTIONS[level.sight.compressor.choose(embeds[stop:])]
        alone = drafter(family, option).prompt(question, seen)
        assert torch.equal(prompt.embeds, alone.embeds) and torch.equal(prompt.positions, alone.positions)
    assert len(lengths) > 1 and all(len(each) == 1 for each in lengths.values())


def test_questions_that_see_other_patches_share_nothing_and_like_ones_do(family: Path, seen: VisualFeatures) -> None:
    level = drafter(family, "attention:3")
    asked = [f"{word} moves {where}?" for word in ("What", "Who") for where in ("up", "down", "left", "there", "fast")]
    by_sight: dict[tuple[int, ...], set[str]] = {}
    for question in asked:
        by_sight.setdefault(tuple(places(level, question, seen)), set()).add(level.prompt(question, seen).prefix)
    assert len(by_sight) > 1
    assert all(len(prefixes) == 1 for prefixes in by_sight.values())
    assert len(set.union(*by_sight.values())) == len(by_sight)
    events = drafter(family, "events:3")
    assert len({events.prompt(question, seen).prefix for question in asked}) == 1


def test_a_drafter_without_a_compressor_cannot_be_asked_for_one(family: Path, tmp_path: Path) -> None:
    for file in (family / "noisy").iterdir():
        if file.name != "compressor.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    place = replace(recipe(family, "conv").stages[0], checkpoint=str(tmp_path))
    with pytest.raises(ConfigError, match=r"compressor\.safetensors.*no such file"):
        Level.load(place, recipe(family, "conv").cascade)
    save_compressor(Compressor(128), tmp_path)
    with pytest.raises(ConfigError, match="embeddings of 256 numbers"):
        load_compressor(tmp_path, 256, torch.device("cpu"), torch.float32)
    (tmp_path / "compressor.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ConfigError, match=r"compressor\.safetensors"):
        Level.load(place, recipe(family, "conv").cascade)


# -- the answer ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(family: Path) -> list[tuple[int, ...]]:
    answers = Engine.load(toy_recipe(family, [])).generate(toy_requests(10, seed=4))
    return [answer.token_ids for answer in answers if isinstance(answer, Answer)]


@pytest.fixture(scope="module")
def engine(family: Path) -> Iterator[Engine]:
    yield Engine.load(recipe(family, "elastic"))


@pytest.mark.parametrize("sees", EVERY)
def test_answers_are_the_targets_own_whatever_the_drafter_sees(
    family: Path, engine: Engine, reference: list[tuple[int, ...]], sees: str
) -> None:
    engine.levels[0] = drafter(family, sees)
    answers = [answer for answer in engine.generate(toy_requests(10, seed=4)) if isinstance(answer, Answer)]
    assert [answer.token_ids for answer in answers] == reference
    assert not any(answer.notes for answer in answers)
    accepted, drafted = (
        sum(getattr(edge, name) for answer in answers for edge in answer.edges)
        for name in ("num_accepted_tokens", "num_draft_tokens")
    )
    assert 0 < accepted < drafted


@pytest.mark.parametrize("sees", ["events:5", "elastic", "text"])
def test_stages_as_actors_say_the_same(family: Path, reference: list[tuple[int, ...]], sees: str) -> None:
    with threaded_pipeline(recipe(family, sees)) as controller:
        answers = [controller.generate(request) for request in toy_requests(10, seed=4)]
        assert [answer.token_ids for answer in answers] == reference
        assert not any(answer.notes for answer in answers)
        assert sum(edge.num_accepted_tokens for answer in answers for edge in answer.edges) > 0
        fed = [stage.level.decoder.tokens_fed for stage in controller.language]
        assert fed[0] > 0 and all(stage.stats()["free_slots"] == 4 for stage in controller.language)
