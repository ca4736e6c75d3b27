"""Drafts from the edge: the answers are the target's own, whatever the box drafts, and its drafts are used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from edge.edge_ends import Wire, box, core, hello
from threaded_pipeline import threaded_pipeline
from toy_family import edge_recipe, toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.edge.newest import Newest
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError, FeatureSpaceError, RemoteError
from cascade_runtime.messages import DraftBlock, Verdict, encode
from cascade_runtime.proto import edge_pb2, edge_pb2_grpc
from cluster.edge import drafter as drafting
from cluster.edge.box import EdgeBox
from cluster.edge.seeing import seeing_of
from cluster.threaded import ThreadedTransport

QUESTION = "What moves?"
EVENTS = toy_events(2, count=6000, span_us=240_000)
SAMPLINGS = (SamplingParams(max_tokens=16), SamplingParams(temperature=0.8, seed=11, max_tokens=16))
PATIENT = {"start_s": 300.0, "upstream_s": 10.0}  # on a busy machine too, no verifier goes on without drafts
HASTY = {"start_s": 300.0, "upstream_s": 0.02}
WINDOWS = 5
# Everybody sees the toy adapter's features, so that an identical drafter says what the target says.
ALIGNED = {"cascade": {"mode": "aligned"}, "gate": {"policy": "predicted", "accept": -1.0, "reject": -1.0}}


class Pipe:
    """A recipe, and the pipeline that a core of it asks."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.seeing = recipe, seeing_of(recipe)
        self.transport = ThreadedTransport(recipe)
        self.relay = self.transport.stages["level0"]

    def core(self, **changes: Any) -> Any:
        return core(self.transport, replace(self.seeing, **changes), relay=self.relay)

    def box(self, port: int, sampling: SamplingParams, **changes: Any) -> EdgeBox:
        given = {"cut": "drafts", "recipe": self.recipe, "question": QUESTION, "sampling": sampling}
        return box(port, EVENTS, **{**given, **changes})


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toys"))


def alone(family: Path, **tables: Any) -> list[list[tuple[int, ...]]]:
    """The tokens of every window, by the target alone in this process; by sampling."""
    engine, windows = Engine.load(toy_recipe(family, [], **tables)), list(windows_of(EVENTS, 50_000))
    found = []
    for sampling in SAMPLINGS:
        asked = [GenerateRequest(events=each.events, question=QUESTION, sampling=sampling) for each in windows]
        found.append([answer.token_ids for answer in engine.generate(asked) if isinstance(answer, Answer)])
    assert [len(each) for each in found] == [WINDOWS, WINDOWS] and found[0] != found[1]
    return found


@pytest.fixture(scope="module")
def wanted(family: Path) -> list[list[tuple[int, ...]]]:
    """Of the recipes of `patient` and `hasty`."""
    return alone(family, **ALIGNED)


def pipe_of(recipe: Recipe) -> Iterator[Pipe]:
    pipe = Pipe(recipe)
    yield pipe
    asyncio.run(pipe.transport.close())


@pytest.fixture(scope="module")
def patient(family: Path) -> Iterator[Pipe]:
    yield from pipe_of(edge_recipe(family, ["noisy"], PATIENT, **ALIGNED))


@pytest.fixture(scope="module")
def hasty(family: Path) -> Iterator[Pipe]:
    yield from pipe_of(edge_recipe(family, ["identical"], HASTY, **ALIGNED))


async def replies_of(edge: EdgeBox, report: Any = lambda reply: None) -> list[Any]:
    replies: list[Any] = []

    def heard(reply: Any) -> None:
        replies.append(reply)
        report(reply)

    await asyncio.wait_for(edge.run(heard), 120)
    return replies


def tokens(replies: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(reply.outcome.answer.token_ids) for reply in replies]


def total(replies: list[Any], what: str) -> int:
    return sum(getattr(reply.outcome, what) for reply in replies)


def test_answers_are_the_targets_and_what_the_edge_drafted_is_in_them(patient: Pipe, wanted: Any) -> None:
    async def test() -> None:
        async with patient.core() as (made, port):
            for sampling, want in zip(SAMPLINGS, wanted, strict=True):
                edge = patient.box(port, sampling, ahead=2)
                replies = await replies_of(edge)
                assert tokens(replies) == want
                assert total(replies, "drafted") > 0 and total(replies, "accepted") > 0
                assert edge.drafter is not None
                assert (edge.drafter.counts.drafted_windows, edge.drafter.counts.refused_verdicts) == (WINDOWS, 0)
                masks = [mask for reply in replies for mask in reply.outcome.answer.masks]
                assert sum(mask & 1 for mask in masks) == total(replies, "accepted")
            read = made.metrics.registry.get_sample_value
            assert read("cascade:edge_draft_tokens_total", {"what": "accepted"}) > 0
            assert read("cascade:edge_draft_messages_total", {"what": "taken"}) > 0

    asyncio.run(test())


def test_a_level_between_edge_and_target_verifies_first_and_the_gate_refuses_what_it_likes(family: Path) -> None:
    """Mode strict: the target sees what no edge does, and the edge's drafter is mostly wrong."""

    async def test(pipe: Pipe) -> None:
        async with pipe.core() as (_, port):
            replies = await replies_of(pipe.box(port, SAMPLINGS[1], ahead=2))
            assert tokens(replies) == alone(family)[1]
            assert all(reply.outcome.answer.levels == ["level0", "level1", "target"] for reply in replies)
            assert total(replies, "drafted") > 0

    for pipe in pipe_of(edge_recipe(family, ["noisy", "identical"], {**PATIENT, "upstream_s": 2.0})):
        asyncio.run(test(pipe))


def test_a_cut_of_the_link_changes_no_answer_and_drafting_goes_on(patient: Pipe, wanted: Any) -> None:
    async def test() -> None:
        async with patient.core() as (_, port), Wire(port) as wire:
            edge = patient.box(wire.port, SAMPLINGS[0], ahead=1)
            replies = await replies_of(edge, lambda reply: wire.cut() if reply.outcome.number == 1 else None)
            assert edge.link.counts.links >= 2
        assert tokens(replies) == wanted[0]
        assert total(replies[2:], "accepted") > 0

    asyncio.run(test())


class Lying(Newest):
    """Says other tokens than were drafted."""

    def put(self, window: int, message: DraftBlock | Verdict) -> bool:
        return super().put(window, replace(message, tokens=tuple((7 * t + 3) % 300 for t in message.tokens)))


class Silent(Newest):
    """Says nothing."""

    def put(self, window: int, message: DraftBlock | Verdict) -> bool:
        return False


@pytest.mark.parametrize("kind", [Lying, Silent])
def test_a_drafter_that_lies_or_is_silent_changes_no_answer(
    patient: Pipe, hasty: Pipe, wanted: Any, kind: type[Newest], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = patient if kind is Lying else hasty
    monkeypatch.setattr(drafting, "Newest", kind)

    async def test() -> None:
        async with pipe.core() as (_, port):
            replies = await replies_of(pipe.box(port, SAMPLINGS[1]))
            assert tokens(replies) == wanted[1]
            assert (total(replies, "drafted") > 0) == (kind is Lying)
            assert total(replies, "accepted") <= 2 * WINDOWS  # of all that was drafted

    asyncio.run(test())


class Crewed:
    """Stages that can be started anew, as a transport and as the handle of whatever relay there is."""

    def __init__(self, controller: Any) -> None:
        self.controller, self.crew, self.started = controller, controller.crew, 0

    async def run(self, requests: Any, timeout_s: float | None, stream: bool, concurrency: int = 1) -> Any:
        yield 0, await asyncio.to_thread(self.controller.generate, requests[0], timeout_s)

    def start(self, method: str, *args: Any) -> Any:
        return self.crew.handles["level0"].start(method, *args)

    def result(self, reference: Any, timeout_s: float) -> Any:
        return self.crew.handles["level0"].result(reference, timeout_s)

    def restart(self) -> None:
        """The target dies in the middle of whatever it does."""
        self.crew.kill("target", None)
        self.crew.start("target")
        self.started += 1
        self.crew.resume("target", self.started)
        self.crew.wire("level0", "target", 1)


def test_a_target_that_is_started_anew_changes_no_answer_and_edges_draft_on(
    family: Path, hasty: Pipe, wanted: Any
) -> None:
    """Of a relay that is, see `tests/acceptance/test_edge_drafts_on_ray.py`."""

    deadlines = {"start_s": 300.0, "upstream_s": 2.0}  # the window inside waits in vain, the next ones do not
    recipe = edge_recipe(family, ["identical"], deadlines, **ALIGNED)

    async def test(crewed: Crewed) -> None:
        async with core(crewed, hasty.seeing, relay=crewed) as (_, port):
            restarts: list[asyncio.Future[None]] = []

            def report(reply: Any) -> None:
                if reply.outcome.number == 1:
                    restarts.append(asyncio.ensure_future(asyncio.to_thread(crewed.restart)))

            edge = hasty.box(port, SAMPLINGS[1], ahead=1)
            replies = await replies_of(edge, report)
            await restarts[0]
            again = await replies_of(hasty.box(port, SAMPLINGS[1]))
        assert tokens(replies) == tokens(again) == wanted[1]
        assert total(again, "accepted") > 0

    with threaded_pipeline(recipe) as controller:
        asyncio.run(test(Crewed(controller)))


def test_windows_of_a_drafter_that_has_died_or_has_no_slot_are_answered_without(hasty: Pipe, wanted: Any) -> None:
    one_slot = replace(hasty.recipe, cascade=replace(hasty.recipe.cascade, slots=1))

    async def test() -> None:
        async with hasty.core() as (_, port):
            edge = hasty.box(port, SAMPLINGS[0], ahead=1)
            replies = await replies_of(edge, lambda reply: edge.drafter.stage.stop())  # type: ignore[union-attr]
            assert tokens(replies) == wanted[0]
            assert edge.drafter is not None and edge.drafter.counts.undrafted_windows == WINDOWS - 1
            assert total(replies[1:], "drafted") == 0

            edge = hasty.box(port, SAMPLINGS[0], recipe=one_slot, ahead=WINDOWS)
            assert tokens(await replies_of(edge)) == wanted[0]
            assert edge.drafter is not None and edge.drafter.counts.undrafted_windows > 0

    asyncio.run(test())


def block(window: int, *ids: int, **changes: Any) -> DraftBlock:
    fields = {"request": window, "epoch": 0, "base": 0, "tokens": ids, "stages": (1,) * len(ids), "ack": 0}
    return DraftBlock(**{**fields, **changes})


FORGED = {
    "of another session's window": encode(block(0, 5, 6, 7)),
    "of no window": encode(block(2**63, 5)),
    "of another epoch": encode(block(0, 5, epoch=3)),
    "a tree": encode(block(0, 5, 6, parents=(-1, -1))),
    "a verdict": encode(Verdict(0, 0, 1, 0, (5,), (1,))),
    "too long a block": encode(block(0, *range(1025))),
    "no frame": b"\x01noise",
    "an empty frame": b"",
    "an oversize frame": bytes(70_000),
}


def test_what_a_hostile_edge_drafts_is_refused_counted_and_changes_no_answer(patient: Pipe, wanted: Any) -> None:
    async def test() -> None:
        async with patient.core() as (made, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = edge_pb2_grpc.EdgeLinkStub(channel)
            hostile = stub.Link(timeout=60)
            await hostile.write(hello(cut="drafts", session=b"hostile" + bytes(9)))
            assert "drafts" in (await hostile.read()).welcome.cuts

            async def forge() -> None:
                while True:
                    for frame in FORGED.values():
                        await hostile.write(edge_pb2.FromEdge(drafts=frame))
                    await asyncio.sleep(0.01)

            forging = asyncio.create_task(forge())
            replies = await replies_of(patient.box(port, SAMPLINGS[1]))
            forging.cancel()
            assert tokens(replies) == wanted[1] and total(replies, "accepted") > 0
            (status,) = (await stub.Status(edge_pb2.StatusRequest())).sessions
            assert (status.session, status.draft_blocks) == (b"hostile\0".hex(), 0)
            assert status.refused_drafts >= len(FORGED)
            read = made.metrics.registry.get_sample_value
            assert read("cascade:edge_draft_messages_total", {"what": "refused"}) >= len(FORGED)
            hostile.cancel()

    asyncio.run(test())


@pytest.mark.parametrize("name", FORGED)
def test_each_forged_frame_is_refused_once(hasty: Pipe, name: str) -> None:
    async def test() -> None:
        async with hasty.core() as (made, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = edge_pb2_grpc.EdgeLinkStub(channel).Link(timeout=20)
            await call.write(hello(cut="drafts"))
            await call.read()
            await call.write(edge_pb2.FromEdge(drafts=FORGED[name]))
            await call.write(edge_pb2.FromEdge(pulse=edge_pb2.Pulse(now_ns=1)))
            await call.read()  # the pulse's echo: all before it was heard
            (session,) = made._sessions.values()
            assert session.status().refused_drafts == 1
            call.cancel()

    asyncio.run(test())


def test_an_edge_of_another_cut_may_not_draft(hasty: Pipe) -> None:
    async def test() -> None:
        async with hasty.core() as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = edge_pb2_grpc.EdgeLinkStub(channel).Link(timeout=20)
            await call.write(hello(cut="features"))
            await call.read()
            await call.write(edge_pb2.FromEdge(drafts=encode(block(0, 5))))
            assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(test())


@pytest.mark.parametrize("cut", ["raw", "frames", "features", "drafts"])
def test_only_for_the_cut_drafts_the_target_waits_for_them(
    patient: Pipe, wanted: Any, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Any = patient.transport.stages["target"].stage
    admit, expected = target._admit, list[bool]()

    def noting(admission: Any) -> None:
        expected.append(admission.expect_drafts)
        admit(admission)

    monkeypatch.setattr(target, "_admit", noting)

    async def test() -> None:
        async with patient.core() as (_, port):
            before = patient.relay.stage.stats()["passes"]
            replies = await replies_of(patient.box(port, SAMPLINGS[0], cut=cut, ahead=2))
            assert tokens(replies) == wanted[0]
            assert expected == [cut == "drafts"] * WINDOWS
            assert (total(replies, "accepted") > 0) == (cut == "drafts")
            assert (patient.relay.stage.stats()["passes"] > before) == (cut == "drafts")
            assert not target.rows and not patient.relay.stage.rows

    asyncio.run(test())


def test_a_core_of_other_tokens_or_features_is_told_apart_before_anything_is_drafted(hasty: Pipe) -> None:
    mine = hasty.seeing.drafter
    assert mine is not None
    wrong = {
        "vocab_size": replace(mine, vocab_size=mine.vocab_size + 1),
        "tokenizer": replace(mine, tokenizer="another"),
        "ends": replace(mine, ends=(1, 2, 3)),
        "space": replace(mine, space="another tower's"),
    }

    async def test() -> None:
        edge = hasty.box(1, SAMPLINGS[0])
        edge._load_models()
        assert edge.drafter is not None
        for name, theirs in wrong.items():
            with pytest.raises((ConfigError, FeatureSpaceError), match=rf"drafter\.{name}.*the core's"):
                edge.drafter.facts.check(theirs)
        edge.drafter.close()
        async with hasty.core(drafter=wrong["vocab_size"]) as (_, port):
            with pytest.raises(ConfigError, match=r"drafter\.vocab_size"):
                await replies_of(hasty.box(port, SAMPLINGS[0]))
        async with core(hasty.transport, seeing_of(plain_of(hasty.recipe))) as (_, port):
            with pytest.raises(RemoteError, match=r"'drafts'; allowed.*raw, frames, features$"):
                await replies_of(hasty.box(port, SAMPLINGS[0]))

    asyncio.run(test())


def plain_of(recipe: Recipe) -> Recipe:
    """Its drafter at the core."""
    return replace(recipe, stages=(replace(recipe.stages[0], drafter="model"), *recipe.stages[1:]))
