"""The client: what it takes, what it gives back, what it refuses. In process; `tests/cluster` asks the same over
Ray.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.client import AsyncCascadeClient, CascadeClient, to_events
from cascade_runtime.config import SamplingParams
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError, DeadlineExceeded, EventFormatError, InputError, StageError
from cascade_runtime.events import write_events
from cascade_runtime.messages import producer

SAMPLING = SamplingParams(max_tokens=20, temperature=0.8, seed=5)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def client(family: Path) -> Iterator[CascadeClient]:
    with CascadeClient(recipe=toy_recipe(family, ["random", "noisy"])) as client:
        yield client


def test_every_way_to_hand_over_a_recording_is_the_same_recording(tmp_path: Path) -> None:
    events = toy_events()
    write_events(tmp_path / "a.npz", events)
    columns = {"t": events.t, "x": events.x, "y": events.y, "p": events.p}
    structured = np.zeros(len(events), [("t", "i8"), ("x", "u2"), ("y", "u2"), ("p", "u1")])
    for name, column in columns.items():
        structured[name] = column
    sized = {**columns, "width": 128, "height": 96}
    for source in (events, tmp_path / "a.npz", str(tmp_path / "a.npz"), events.to_record_batch(), sized):
        assert to_events(source) == events
    for source in (columns, structured):  # no sensor size: the smallest that holds the events
        loose = to_events(source)
        assert (loose.width, loose.height) == (int(events.x.max()) + 1, int(events.y.max()) + 1)
        assert np.array_equal(loose.t, events.t)


def test_what_event_libraries_hold_is_a_recording() -> None:
    events = toy_events()
    tonic = np.zeros(len(events), [("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "?")])  # as its datasets give them
    for name in ("x", "y", "t", "p"):
        tonic[name] = getattr(events, name)
    assert np.array_equal(to_events(tonic).p, events.p) and np.array_equal(to_events(tonic).t, events.t)
    eventcv = pytest.importorskip("eventcv")
    table = np.stack([tonic[name].astype(np.int64) for name in ("x", "y", "t", "p")], axis=1)
    stream = to_events(eventcv.from_numpy(table, time_unit="us"))
    assert (stream.width, stream.height) == (int(events.x.max()) + 1, int(events.y.max()) + 1)
    for name in ("t", "x", "y", "p"):
        assert np.array_equal(getattr(stream, name), getattr(events, name))


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"also y, p"):
        to_events({"t": [0], "x": [0]})
    with pytest.raises(InputError, match="Events, a path"):
        to_events(3)  # type: ignore[arg-type]
    for nonsense in ({"t": [0], "x": ["a"], "y": [0], "p": [0]}, {"t": [0], "x": [float("nan")], "y": [0], "p": [0]}):
        with pytest.raises(InputError):
            to_events(nonsense)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(EventFormatError):
        to_events(tmp_path / "bad.npz")


def test_sampling_may_be_given_field_by_field(client: CascadeClient) -> None:
    want = client.generate(toy_events(), "What moves?", sampling=SAMPLING)
    fields = {"max_tokens": 20, "temperature": 0.8, "seed": 5}
    assert client.generate(toy_events(), "What moves?", **fields).token_ids == want.token_ids
    *_, streamed = client.stream(toy_events(), "What moves?", sampling=SAMPLING, max_tokens=3)
    assert isinstance(streamed, Answer) and streamed.token_ids == want.token_ids[:3]
    (answer,) = client.generate_many([toy_events()], "What moves?", progress=False, **fields)
    assert isinstance(answer, Answer) and answer.token_ids == want.token_ids
    with pytest.raises(InputError, match=r"max_token: got 3; allowed: sampling, speculate, temperature, .*max_tokens"):
        client.generate(toy_events(), "What moves?", max_token=3)  # type: ignore[call-overload]


def test_the_package_itself_has_what_a_user_starts_with() -> None:
    import cascade_runtime

    assert cascade_runtime.CascadeClient is CascadeClient and cascade_runtime.SamplingParams is SamplingParams
    assert set(cascade_runtime.__all__) <= set(dir(cascade_runtime))
    assert all(getattr(cascade_runtime, name).__name__ == name for name in cascade_runtime.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Client'"):
        cascade_runtime.Client  # noqa: B018


def test_an_answer_says_who_said_what(client: CascadeClient, family: Path) -> None:
    answer = client.generate(toy_events(), "What moves?", sampling=SAMPLING)
    alone = client.generate(toy_events(), "What moves?", sampling=SAMPLING, speculate=False)
    assert answer.token_ids == alone.token_ids and answer.text == alone.text
    assert set(alone.produced_by) == {"target"} and alone.target_passes == len(alone.token_ids)
    assert len(answer.produced_by) == len(answer.accepted_by) == len(answer.pieces) == len(answer.token_ids)
    for mask, by, accepted in zip(answer.masks, answer.produced_by, answer.accepted_by, strict=True):
        assert by == answer.levels[producer(mask)]
        assert by == "target" or accepted[-1] == "target"
    assert answer.produced_by.count("target") <= answer.target_passes
    told = answer.to_dict()
    assert told["token_ids"] == list(answer.token_ids) and told["mode"] == "strict"
    assert [span[1] for span in answer.timings.spans] == ["encode", "dense", "align", "gate"]
    assert answer.gate is not None and len(answer.gate["cosines"]) == 2  # type: ignore[arg-type]
    coloured = answer.colored()
    assert coloured.count("\x1b[0m") == len(answer.pieces)


def test_a_stream_ends_in_its_answer(client: CascadeClient) -> None:
    *pieces, answer = client.stream(toy_events(), "What moves?", sampling=SAMPLING)
    assert isinstance(answer, Answer) and "".join(pieces) == answer.text


def test_leaving_a_stream_spares_the_target_the_rest(client: CascadeClient) -> None:
    transport = client._async._transport
    decoder = transport.engine.levels[-1].decoder  # type: ignore[attr-defined]

    def passes(leave: bool) -> int:
        before = decoder.passes
        stream = client.stream(toy_events(), "What moves?", sampling=SamplingParams(max_tokens=200, ignore_eos=True))
        while not isinstance(next(stream), Answer) and not leave:
            pass
        stream.close()  # type: ignore[attr-defined]
        with transport._turn:  # type: ignore[attr-defined]  # the batch has ended
            return decoder.passes - before

    assert 0 < passes(leave=True) < passes(leave=False)
    assert decoder.free_slots == 4


def test_a_list_shows_its_progress_and_keeps_errors_in_place(
    client: CascadeClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sources = [toy_events(1), str(tmp_path / "missing.npz"), toy_events(2)]
    answers = client.generate(sources, "What moves?", sampling=SAMPLING)
    assert [type(answer) for answer in answers[::2]] == [Answer, Answer]
    assert isinstance(answers[1], InputError)
    assert "3/3" in capsys.readouterr().err
    single = client.generate(toy_events(2), "What moves?", sampling=SAMPLING)
    assert answers[2].token_ids == single.token_ids  # type: ignore[union-attr]
    with pytest.raises(InputError, match="prompts"):
        client.generate(sources, ["one", "two"])


def test_a_request_that_takes_too_long_is_given_up(family: Path) -> None:
    slow = SamplingParams(max_tokens=200, ignore_eos=True)
    recipe = toy_recipe(family, ["noisy"])
    with CascadeClient(recipe=recipe, timeout=0.01) as client, pytest.raises(DeadlineExceeded):
        client.generate(toy_events(), "What?", sampling=slow)


def test_the_async_twin_answers_the_same(family: Path, client: CascadeClient) -> None:
    async def ask() -> list[Answer]:
        async with AsyncCascadeClient(recipe=toy_recipe(family, ["noisy"])) as twin:
            one = await twin.generate(toy_events(), "What moves?", sampling=SAMPLING)
            last = [update async for update in twin.stream(toy_events(), "What moves?", sampling=SAMPLING)][-1]
            return [one, last]  # type: ignore[list-item]

    expected = client.generate(toy_events(), "What moves?", sampling=SAMPLING)
    assert [answer.token_ids for answer in asyncio.run(ask())] == [expected.token_ids] * 2


def test_unknown_targets_and_recipes_are_refused_with_what_there_is(family: Path) -> None:
    with pytest.raises(ConfigError, match="in-process, ray"):
        CascadeClient("slurm", recipe=toy_recipe(family, []))
    with pytest.raises(ConfigError, match="three_level"):
        CascadeClient(recipe="four_level")


def test_closing_ends_calls_that_wait_and_refuses_later_ones(family: Path) -> None:
    client = CascadeClient(recipe=toy_recipe(family, ["noisy"]))
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            client.generate(toy_events(), "What?", sampling=SamplingParams(max_tokens=200, ignore_eos=True))
        except StageError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    client.close()
    thread.join(10)
    assert not thread.is_alive() and "closed" in str(outcome[0])
    with pytest.raises(StageError, match="closed"):
        client.generate(toy_events(), "What?")


def test_closing_twice_is_fine(family: Path) -> None:
    client = CascadeClient(recipe=toy_recipe(family, []))
    client.close()
    client.close()


def test_the_engine_behind_the_client_is_the_reference(client: CascadeClient, family: Path) -> None:
    request = AsyncCascadeClient.request(toy_events(3), "Where?", SAMPLING, True)
    (expected,) = Engine.load(toy_recipe(family, [])).generate([request])
    answer = client.generate(toy_events(3), "Where?", sampling=SAMPLING)
    assert isinstance(expected, Answer) and answer.token_ids == expected.token_ids
