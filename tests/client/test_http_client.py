"""The client at an address: the same answers as in process, from a real server in front of a real engine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client.http_servers import cascade_server
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer, Piece, ServedModel
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import AccessError, ConfigError, DeadlineExceeded, InputError, NotFound, PromptTooLong
from cascade_runtime.in_process import InProcess

SAMPLING = SamplingParams(max_tokens=20, temperature=0.8, seed=5)
LONG = SamplingParams(max_tokens=200, ignore_eos=True)
KEY = "sk-test"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def server(family: Path) -> Iterator[tuple[str, InProcess]]:
    with cascade_server(toy_recipe(family, ["random", "noisy"])) as (address, transport):
        yield address, transport


@pytest.fixture(scope="module")
def remote(server: tuple[str, InProcess]) -> Iterator[CascadeClient]:
    with CascadeClient(server[0]) as client:
        yield client


@pytest.fixture(scope="module")
def local(family: Path) -> Iterator[CascadeClient]:
    with CascadeClient(recipe=toy_recipe(family, ["random", "noisy"])) as client:
        yield client


def test_an_answer_from_afar_says_all_that_one_from_here_says(remote: CascadeClient, local: CascadeClient) -> None:
    far = remote.generate(toy_events(), "What moves?", sampling=SAMPLING)
    near = local.generate(toy_events(), "What moves?", sampling=SAMPLING)
    for name in ("text", "token_ids", "pieces", "finish_reason", "levels", "masks", "edges", "mode", "target_passes"):
        assert getattr(far, name) == getattr(near, name), name
    assert far.rejections == near.rejections and far.rejections
    assert near.gate is not None and far.gate is not None and near.gate.items() <= far.gate.items()
    assert [span[:2] for span in far.timings.spans] == [span[:2] for span in near.timings.spans]
    assert 0 < far.timings.ttft_ms <= far.timings.total_ms


def test_without_drafters_the_tokens_are_the_same(remote: CascadeClient) -> None:
    cascade = remote.generate(toy_events(), "What moves?", sampling=SAMPLING)
    alone = remote.generate(toy_events(), "What moves?", sampling=SAMPLING, speculate=False)
    assert alone.token_ids == cascade.token_ids and set(alone.produced_by) == {"target"}


def test_a_stream_from_afar_is_the_stream_from_here(remote: CascadeClient, local: CascadeClient) -> None:
    *far, answer = remote.stream(toy_events(), "What moves?", sampling=SAMPLING)
    *near, _ = local.stream(toy_events(), "What moves?", sampling=SAMPLING)
    assert isinstance(answer, Answer) and "".join(far) == answer.text  # type: ignore[arg-type]
    for name in ("tokens", "masks", "words"):
        pieces = [getattr(piece, name) for piece in far]
        assert pieces == [getattr(piece, name) for piece in near], name
    assert sum((piece.tokens for piece in far if isinstance(piece, Piece)), ()) == answer.token_ids
    assert sum((piece.masks for piece in far if isinstance(piece, Piece)), ()) == answer.masks


def test_many_are_answered_in_order_with_errors_in_place(remote: CascadeClient, local: CascadeClient) -> None:
    sources = [toy_events(1), "missing.npz", toy_events(2), toy_events(3)]
    answers = remote.generate_many(sources, "What moves?", sampling=SAMPLING, concurrency=2, progress=False)
    assert isinstance(answers[1], InputError)
    for index in (0, 2, 3):
        expected = local.generate(sources[index], "What moves?", sampling=SAMPLING)
        assert answers[index].token_ids == expected.token_ids  # type: ignore[union-attr]


def test_leaving_a_stream_from_afar_spares_the_target_the_rest(
    remote: CascadeClient, server: tuple[str, InProcess]
) -> None:
    transport = server[1]
    decoder = transport.engine.levels[-1].decoder

    def passes(leave: bool) -> int:
        before = decoder.passes
        stream = remote.stream(toy_events(), "What moves?", sampling=LONG)
        while not isinstance(next(stream), Answer) and not leave:
            pass
        stream.close()  # type: ignore[attr-defined]
        deadline = time.monotonic() + 20
        while decoder.free_slots < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        return decoder.passes - before

    assert 0 < passes(leave=True) < passes(leave=False)
    assert decoder.free_slots == 4


def test_models_health_and_traces(remote: CascadeClient, local: CascadeClient) -> None:
    levels = ("level0", "level1", "target")
    assert remote.models() == (ServedModel("cascade", levels),) and local.models() == (ServedModel("toy", levels),)
    assert remote.health().ready and local.health().ready
    for client in (remote, local):
        answer = client.generate(toy_events(), "Where?", sampling=SAMPLING)
        told = client.trace(answer.request_id)["traceEvents"]
        slices = [each["name"] for each in told if each["ph"] == "X"]
        assert slices == [what for _, what, _, _ in answer.timings.spans] and slices
        with pytest.raises(NotFound):
            client.trace("never-asked")


def test_what_the_server_refuses_comes_as_the_error_it_is(remote: CascadeClient, family: Path) -> None:
    with pytest.raises(InputError, match="max_tokens") as refused:
        remote.generate(toy_events(), "What?", sampling=SamplingParams(max_tokens=4000))
    assert refused.value.request_id
    with pytest.raises(PromptTooLong) as long:
        remote.generate(toy_events(), "What? " * 400)
    assert long.value.request_id and "positions" in str(long.value)


def test_a_deadline_spans_the_whole_request(server: tuple[str, InProcess]) -> None:
    with CascadeClient(server[0], timeout=0.05) as client, pytest.raises(DeadlineExceeded) as late:
        client.generate(toy_events(), "What?", sampling=LONG)
    assert late.value.request_id


def test_a_server_of_another_name_and_a_shorter_deadline_than_the_client_s_is_asked_all_the_same(family: Path) -> None:
    recipe = toy_recipe(family, [], deadlines={"start_s": 300.0, "request_s": 20.0})
    with (
        cascade_server(recipe, model="street-camera") as (address, _),
        CascadeClient(address, timeout=600.0) as client,
    ):
        assert [model.name for model in client.models()] == ["street-camera"]
        assert client.generate(toy_events(), "What?", sampling=SAMPLING).text
        *_, answer = client.stream(toy_events(), "What?", sampling=SAMPLING)
        assert isinstance(answer, Answer)


def test_a_key_opens_what_is_closed_without(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CASCADE_API_KEY", raising=False)
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    with cascade_server(toy_recipe(family, []), key_digests=(digest,)) as (address, _):
        for wrong in (None, "sk-other"):
            with CascadeClient(address, api_key=wrong) as client, pytest.raises(AccessError, match="API key"):
                client.models()
        with CascadeClient(address, api_key=KEY) as client:
            assert client.generate(toy_events(), "What?", sampling=SAMPLING).text
        monkeypatch.setenv("CASCADE_API_KEY", KEY)
        with CascadeClient(address) as client:
            assert client.models()


@pytest.mark.parametrize(
    ("target", "options", "named"),
    [
        ("http://user:secret@127.0.0.1:8000", {}, "api_key"),
        ("http://", {}, "scheme://host"),
        ("http://127.0.0.1:8000?x=1", {}, "query"),
        ("http://127.0.0.1:notaport", {}, "target"),
        ("gopher://127.0.0.1", {}, "http, https, in-process, ray"),
        ("http://127.0.0.1:8000", {"recipe": "heavy"}, "server has its own"),
        ("http://127.0.0.1:8000", {"api_key": "a\r\nHost: b"}, "printable"),
        ("http://127.0.0.1:8000", {"max_retries": 99}, "max_retries"),
        ("http://127.0.0.1:8000", {"timeout": 0}, "timeout"),
        ("in-process", {"api_key": "k"}, "needs no key"),
    ],
)
def test_addresses_and_options_that_cannot_be_meant_are_refused(target: str, options: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        CascadeClient(target, **options)
    assert "secret" not in str(refused.value)
