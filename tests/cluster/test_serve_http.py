"""The HTTP server on real Ray Serve, over real sockets: the engine's tokens, and no slot that stays taken."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_bodies import FORM, body_about, chat_body, upload_form
from client.grpc_servers import free_port
from http_server import RECIPE, SLOTS, Server
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest, Piece
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SamplingParams
from cascade_runtime.engine import Engine

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),  # Ray Serve's, of its own config
]
LONG = {"max_tokens": 180, "ignore_eos": True}
ENDLESS = {"max_tokens": 900, "ignore_eos": True}  # to be cancelled
SLOWLY = {"speculate": False}  # seconds on any machine


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def alone(family: Path) -> Engine:
    return Engine.load(toy_recipe(family, []))


@pytest.fixture(scope="module")
def server(ray_cluster: None, family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from ray import serve

    from cluster.serve_app import app

    recipe = tmp_path_factory.mktemp("recipe") / "toy.toml"
    recipe.write_text(RECIPE.format(family=family, slots=SLOTS))
    port, grpc_port = free_port(), free_port()
    serve.start(http_options={"port": port}, logging_config={"log_level": "ERROR", "enable_access_log": False})
    args = {"recipe": str(recipe), "max_queue": "1", "max_body_bytes": "2000000", "max_tokens": "900"}
    serve.run(app(args | {"grpc_port": grpc_port}), name="toy")
    yield Server(port, grpc_port)
    serve.shutdown()


def expected(alone: Engine, recording: int, **sampling: Any) -> Answer:
    (answer,) = alone.generate(
        [GenerateRequest(events=toy_events(recording), question="What moves?", sampling=SamplingParams(**sampling))]
    )
    assert isinstance(answer, Answer)
    return answer


def test_answers_are_the_engines_token_for_token(server: Server, alone: Engine) -> None:
    accepted = rejected = 0
    for seed, sampling in enumerate([{}, {"temperature": 0.7, "seed": 5}, {"temperature": 1.2, "top_k": 9, "seed": 6}]):
        status, answer, headers = server.chat(chat_body(toy_events(seed), **sampling), X_Request_Id=f"mine-{seed}")
        want = expected(alone, seed, **sampling)
        assert status == 200 and headers["x-request-id"] == f"mine-{seed}"
        assert answer["id"] == f"chatcmpl-mine-{seed}" and answer["object"] == "chat.completion"
        choice = answer["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (want.text, want.finish_reason)
        told, usage = answer["cascade"], answer["usage"]
        assert told["token_ids"] == list(want.token_ids) and "".join(told["pieces"]) == want.text
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (want.prompt_tokens, len(want.token_ids))
        assert (
            told["input"] == {"events": 3000, "width": 128, "height": 96, "duration_us": 49_988, "simulated": False}
            or seed
        )
        assert told["gate"]["decision"] in ("accepted", "dense", "rejected", "mixed")
        said = [span["by"] for span in told["spans"] for _ in range(span["start"], span["end"])]
        assert len(said) == len(want.token_ids)
        light = next(stage for stage in told["stages"] if stage["name"] == "light")
        assert (
            said.count("light") == light["produced"] == usage["completion_tokens_details"]["accepted_prediction_tokens"]
        )
        assert {"encoder", "adapter", "light", "target"} <= {span["stage"] for span in told["timeline"]}
        speculation = answer["metrics"]["speculative_decoding"]
        if speculation is None:  # on a busy machine all drafts may come too late for a target as small as this one
            assert not told["edges"][0]["spec_decode_num_drafts"] and set(said) == {"target"}
            continue
        histogram = speculation["acceptance_histogram"]
        assert len(histogram) == speculation["num_spec_tokens"] + 1 and sum(histogram) == speculation["num_spec_steps"]
        assert sum(k * n for k, n in enumerate(histogram)) == speculation["num_accepted_draft_tokens"]
        accepted += speculation["num_accepted_draft_tokens"]
        rejected += usage["completion_tokens_details"]["rejected_prediction_tokens"]
    entry = server.call("GET", "/v1/cascade/requests/mine-2")[1]
    assert (entry["status"], entry["cascade"], entry["usage"]) == ("done", told, usage)
    trace = server.call("GET", "/v1/cascade/requests/mine-2/trace")[1]
    assert {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"} >= {"encoder", "target"}
    for again in range(10):  # until one of the answers has had drafts of both sorts
        if accepted and rejected:
            break
        counts = server.chat(chat_body(toy_events(again)))[1]["usage"]["completion_tokens_details"]
        accepted += counts["accepted_prediction_tokens"]
        rejected += counts["rejected_prediction_tokens"]
    assert accepted and rejected


def test_the_project_s_own_client_gets_the_engine_s_tokens_and_says_who_said_them(
    server: Server, alone: Engine
) -> None:
    sampling = SamplingParams(max_tokens=24, temperature=0.8, seed=3)
    request = GenerateRequest(events=toy_events(4), question="What moves?", sampling=sampling)
    (expected,) = alone.generate([request])
    assert isinstance(expected, Answer)
    with CascadeClient(f"http://127.0.0.1:{server.port}") as client:
        *pieces, answer = client.stream(toy_events(4), "What moves?", sampling=sampling)
        assert isinstance(answer, Answer) and answer.token_ids == expected.token_ids
        assert sum((piece.tokens for piece in pieces if isinstance(piece, Piece)), ()) == answer.token_ids
        assert "".join("".join(piece.words) for piece in pieces if isinstance(piece, Piece)) == answer.text
        assert {span[0] for span in answer.timings.spans} == {"encoder", "adapter", "light", "target"}
        assert answer.edges[0].num_draft_tokens and answer.rejections
        assert client.trace(answer.request_id)["traceEvents"] and client.health().ready
        stream = client.stream(toy_events(4), "What moves?", sampling=SamplingParams(max_tokens=180, ignore_eos=True))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    server.until("vllm:num_requests_running", 0)


def test_the_replica_answers_over_grpc_too(server: Server, alone: Engine) -> None:
    sampling = SamplingParams(max_tokens=24, temperature=0.8, seed=3)
    want = expected(alone, 4, max_tokens=24, temperature=0.8, seed=3)
    with CascadeClient(f"grpc://127.0.0.1:{server.grpc_port}") as client:
        *pieces, answer = client.stream(toy_events(4), "What moves?", sampling=sampling)
        assert isinstance(answer, Answer) and answer.token_ids == want.token_ids and len(pieces) > 1
        assert {span[0] for span in answer.timings.spans} == {"encoder", "adapter", "light", "target"}
        assert server.call("GET", f"/v1/cascade/requests/{answer.request_id}")[1]["status"] == "done"
        with client.session("What moves?", sampling=sampling) as session:
            session.send(toy_events(4))
            reply = next(iter(session))
            assert isinstance(reply.outcome, Answer) and reply.outcome.token_ids == want.token_ids
        stream = client.stream(toy_events(4), "What moves?", sampling=SamplingParams(max_tokens=180, ignore_eos=True))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert client.health().ready
    server.until("vllm:num_requests_running", 0)


def test_a_stream_has_a_chunk_per_round_and_ends_as_openais(server: Server, alone: Engine) -> None:
    want = expected(alone, 3, max_tokens=60, ignore_eos=True)
    body = chat_body(toy_events(3), max_tokens=60, ignore_eos=True, stream=True, stream_options={"include_usage": True})
    status, text, headers = server.chat(body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    opening, *rounds, closing, last = [json.loads(event.removeprefix("data: ")) for event in events]
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in rounds) == want.text
    assert [token for chunk in rounds for token in chunk["cascade"]["token_ids"]] == list(want.token_ids)
    assert 2 < len(rounds) < 60
    ends = [chunk["cascade"]["spans"][-1]["end"] for chunk in rounds]
    starts = [chunk["cascade"]["spans"][0]["start"] for chunk in rounds]
    assert starts == [0, *ends[:-1]] and ends[-1] == 60
    assert closing["choices"][0]["finish_reason"] == "length" and closing["usage"] is None
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 60
    assert last["cascade"]["token_ids"] == list(want.token_ids) and last["metrics"]["speculative_decoding"]
    alone_body = chat_body(toy_events(3), max_tokens=60, ignore_eos=True, stream=True, cascade={"speculate": False})
    *_, last, _, _ = server.chat(alone_body)[1].split("\n\n")
    told = json.loads(last.removeprefix("data: "))
    assert told["cascade"]["token_ids"] == list(want.token_ids) and told["choices"][0]["finish_reason"] == "length"
    assert told["metrics"]["speculative_decoding"] is None and "usage" not in told


def test_a_batch_about_an_upload_is_answered_behind_serve(server: Server, alone: Engine) -> None:
    def made(path: str, body: Any, **headers: str) -> str:
        return server.call("POST", path, body, **headers)[1]["id"]

    drive = upload_form(toy_events(2).to_ipc_bytes(), "drive.arrow", "user_data")
    body = body_about(made("/v1/files", drive, Content_Type=FORM), max_tokens=9)
    rows = "\n".join(json.dumps({"custom_id": name, "url": "/v1/chat/completions", "body": body}) for name in "ab")
    source = made("/v1/files", upload_form(rows.encode(), "in.jsonl", "batch"), Content_Type=FORM)
    asked = {"input_file_id": source, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    name, end = made("/v1/batches", asked), time.monotonic() + 60
    while (batch := server.call("GET", f"/v1/batches/{name}")[1])["status"] != "completed":
        assert time.monotonic() < end, batch
    answers = server.call("GET", f"/v1/files/{batch['output_file_id']}/content")[1].splitlines()
    told = [json.loads(line)["response"]["body"]["cascade"]["token_ids"] for line in answers]
    assert told == [list(expected(alone, 2, max_tokens=9).token_ids)] * 2


def test_one_key_is_one_run_for_all_who_ask_with_it(server: Server) -> None:
    before = server.metric("vllm:request_success_total")
    body = chat_body(temperature=1.0, max_tokens=40)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: server.chat(body, Idempotency_Key="k-1"), range(3)))
    answers.append(server.chat(body, Idempotency_Key="k-1"))
    assert [status for status, *_ in answers] == [200] * 4
    assert all(answer == answers[0][1] for _, answer, _ in answers)
    assert server.metric("vllm:request_success_total") == before + 1
    status, refused, _ = server.chat(chat_body(temperature=0.9), Idempotency_Key="k-1")
    assert (status, refused["error"]["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_json"),
        (b'{"temperature": NaN}', {}, 400, "invalid_json"),
        (b"[" * 100_000, {}, 400, "invalid_json"),
        (b"\xff", {}, 400, "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", {}, 400, "invalid_json"),
        (b"{}", {"Content_Type": "text/plain"}, 415, "unsupported_media_type"),
        (b" " * 2_000_001, {}, 413, "body_too_large"),
        (b"{}", {}, 400, "invalid_value"),
        (chat_body(model="gpt-4"), {}, 404, "model_not_found"),
        (chat_body(text="where " * 1300), {}, 400, "context_length_exceeded"),
        (chat_body("http://127.0.0.1:9/x"), {}, 400, "invalid_value"),
        (chat_body("data:application/x-npz;base64,UEsDBA=="), {}, 400, "media_rejected"),
        (chat_body(), {"X_Request_Id": "a b"}, 400, "invalid_value"),
        (chat_body(), {"Idempotency_Key": "a b"}, 400, "invalid_value"),
        (chat_body(), {"Host": "evil.example"}, 403, "not_local"),
        (chat_body(**ENDLESS, cascade={"deadline_ms": 20}), {}, 504, "deadline_exceeded"),
    ],
)
def test_what_is_wrong_is_said_in_openais_words(
    server: Server, body: Any, headers: dict[str, str], status: int, code: str
) -> None:
    got, refused, told = server.chat(body, **headers)
    assert (got, refused["error"]["code"]) == (status, code)
    assert set(refused["error"]) == {"message", "type", "param", "code", "retryable", "request_id"}
    assert told["x-should-retry"] == "false" and "Traceback" not in refused["error"]["message"]


def test_other_paths_and_methods_are_errors_of_the_same_form(server: Server) -> None:
    for method, path, status in (
        ("POST", "/v1/completions", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models/gpt-4", 404),
        ("GET", "/v1/cascade/requests/unknown", 404),
        ("DELETE", "/v1/cascade/requests/unknown", 404),
        ("GET", "/favicon.ico", 404),
    ):
        got, refused, _ = server.call(method, path)
        assert got == status and refused["error"]["type"] in ("not_found_error", "invalid_request_error")
    (model,) = server.call("GET", "/v1/models")[1]["data"]
    assert (model["id"], model["max_model_len"], model["cascade"]["levels"]) == ("cascade", 1024, ["light", "target"])
    assert server.call("GET", "/v1/models/toy")[1]["id"] == "toy"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slot(server: Server, stream: bool) -> None:
    before = server.metric("cascade:num_requests_cancelled_total")
    for _ in range(5):  # on a busy machine the answer may be there before a look at the metrics is
        client = server.opened(chat_body(**ENDLESS, cascade=SLOWLY, stream=stream))
        if stream:
            got = b""
            while got.count(b"data: ") < 3:
                got += client.recv(4096)
        server.until("vllm:num_requests_running", 1)
        client.close()
        server.until("vllm:num_requests_running", 0)
        if server.metric("cascade:num_requests_cancelled_total") > before:
            break
    assert server.metric("cascade:num_requests_cancelled_total") == before + 1
    server.until("cascade:stage_free_slots", 2 * SLOTS)


def test_a_request_can_be_cancelled_by_its_id(server: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.chat, chat_body(**ENDLESS, cascade=SLOWLY), X_Request_Id="long-1")
        server.until("vllm:num_requests_running", 1)
        assert server.call("GET", "/v1/cascade/requests/long-1")[1]["status"] == "running"
        status, refused, _ = server.chat(chat_body(), X_Request_Id="long-1")
        assert (status, refused["error"]["code"]) == (409, "request_id_in_use")
        assert server.call("POST", "/v1/cascade/requests/long-1/cancel")[1]["cancelled"] is True
        status, refused, _ = asked.result()
    assert (status, refused["error"]["code"]) == (499, "cancelled")
    entry = server.call("GET", "/v1/cascade/requests/long-1")[1]
    assert entry["status"] == "cancelled" and entry["created"] <= entry["ended_at"] <= time.time()
    server.until("cascade:stage_free_slots", 2 * SLOTS)


def test_a_full_server_refuses_at_once_and_answers_what_it_took(server: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.chat(chat_body(**LONG)), range(8)))
    taken = [answer for status, answer, _ in answers if status == 200]
    refused = [(answer, headers) for status, answer, headers in answers if status == 503]
    assert len(taken) >= SLOTS + 1 and refused and len(taken) + len(refused) == 8
    assert len({tuple(answer["cascade"]["token_ids"]) for answer in taken}) == 1
    for answer, headers in refused:
        assert (
            answer["error"]["code"] == "overloaded" and answer["error"]["retryable"] and headers["retry-after"] == "1"
        )
    server.until("cascade:stage_free_slots", 2 * SLOTS)


def _killed_drafter() -> None:
    """End the drafter's process: of this session's cluster, whose raylet is a child of ours."""

    def parent(pid: str) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]

    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                named = (entry / "cmdline").read_bytes().startswith(b"ray::Drafter")
                ours = named and parent(parent(entry.name)) == str(os.getpid())
            except OSError:
                continue
            if ours:
                os.kill(int(entry.name), signal.SIGKILL)


def test_deep_health_sees_a_dead_drafter_which_costs_no_token(server: Server, alone: Engine) -> None:
    status, told, _ = server.call("GET", "/health/deep")
    assert (status, told["status"]) == (200, "ok")
    assert told["stages"] == dict.fromkeys(("controller", "encoder", "adapter", "light", "target"), "ok")
    _killed_drafter()
    end = time.monotonic() + 20
    while (status := server.call("GET", "/health/deep")[0]) == 200 and time.monotonic() < end:
        time.sleep(0.1)
    told = server.call("GET", "/health/deep")[1]
    assert status == 503 and told["stages"]["light"] != "ok" and told["stages"]["target"] == "ok"
    status, ready, _ = server.call("GET", "/ready")
    assert (status, ready["without"]) == (200, ["light"])  # answers can be made
    status, answer, _ = server.chat(chat_body(toy_events(4)))
    assert status == 200 and answer["cascade"]["token_ids"] == list(expected(alone, 4).token_ids)
    assert {span["by"] for span in answer["cascade"]["spans"]} == {"target"}


def test_what_runs_when_the_server_stops_is_answered_first(server: Server, alone: Engine) -> None:
    from ray import serve

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = pool.submit(server.chat, chat_body(**LONG))
        server.until("vllm:num_requests_running", 1)
        deleted = pool.submit(serve.delete, "toy")
        status, answer, _ = asked.result()
        deleted.result()
    assert status == 200 and answer["cascade"]["token_ids"] == list(expected(alone, 0, **LONG).token_ids)
