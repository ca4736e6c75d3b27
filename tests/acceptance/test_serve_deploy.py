"""The application as Ray Serve's own commands know it: `serve deploy` of a YAML file, again with other arguments while
people ask, `serve status`, `serve shutdown`, and `serve run`, on a cluster that `ray start` has started with a token.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from acceptance.ray_head import RayHead
from acceptance.served import Served, free_port, messages

from cascade_runtime.client import CascadeClient
from cascade_runtime.errors import CascadeError
from cascade_runtime.training.scenes import simulate_scene

pytestmark = pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1")
PATIENCE_S = 300.0
BODY = {"messages": messages(), "max_tokens": 24}
QUESTION = messages()[0]["content"][1]["text"]


@pytest.fixture(scope="module")
def port() -> int:
    """Of Serve, which listens where the first deployment on a cluster wanted it to."""
    return free_port()


def written(folder: Path, port: int, *overrides: str, **deployment: Any) -> str:
    """A Serve configuration in a file."""
    patience = "deadlines.start_s=600"  # a busy machine is not a broken one
    application = {
        "name": "cascade",
        "route_prefix": "/",
        "import_path": "cluster.serve_app:app",
        "args": {"recipe": "light_heavy", "overrides": [patience, *overrides], **deployment.pop("args", {})},
    }
    if deployment:
        application["deployments"] = [{"name": "Cascade", **deployment}]
    path = folder / "cascade.yaml"
    path.write_text(
        yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]})
    )
    return str(path)


def slots(server: Served) -> int | None:
    """Of the pipeline that answers now; None where none does."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
        return json.loads(server.get("/v1/models")[1])["data"][0]["cascade"]["slots"]
    return None


def until_slots(server: Served, number: int | None) -> None:
    end = time.monotonic() + PATIENCE_S
    while (now := slots(server)) != number:
        assert time.monotonic() < end, now
        time.sleep(0.2)


class Asking:
    """Two who ask over HTTP, and two over gRPC where there is a port, without pause and without a second try."""

    def __init__(self, server: Served, grpc_port: int | None) -> None:
        self._server, self._grpc_port = server, grpc_port
        self._over = threading.Event()
        self.answers: list[tuple[float, str, list[int]]] = []  # when, over what, token ids
        self.failures: list[Any] = []
        kinds = [self._http] * 2 + [self._grpc] * (2 if grpc_port else 0)
        self._threads = [threading.Thread(target=kind) for kind in kinds]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def more(self, number: int) -> None:
        """Wait for so many answers."""
        wanted, end = len(self.answers) + number, time.monotonic() + PATIENCE_S
        while len(self.answers) < wanted and not self.failures:
            assert time.monotonic() < end
            time.sleep(0.05)

    def longest_gap_s(self, over: str) -> float:
        """Between two answers, one after the other."""
        at = sorted(when for when, how, _ in self.answers if how == over)
        return max(later - sooner for sooner, later in itertools.pairwise(at))

    def _http(self) -> None:
        while not self._over.is_set():
            try:
                status, told = self._server.chat(BODY)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(repr(error))
                continue
            if status == 200:
                self.answers.append((time.monotonic(), "http", told["cascade"]["token_ids"]))
            else:
                self.failures.append((status, told))

    def _grpc(self) -> None:
        events = simulate_scene(seed=9).events
        with CascadeClient(f"grpc://127.0.0.1:{self._grpc_port}") as client:  # asks again where that is safe
            while not self._over.is_set():
                try:
                    answer = client.generate(events, QUESTION, max_tokens=BODY["max_tokens"])
                    self.answers.append((time.monotonic(), "grpc", list(answer.token_ids)))
                except CascadeError as error:
                    self.failures.append(repr(error))


def test_it_is_deployed_and_deployed_again_without_a_failed_request(head: RayHead, port: int, tmp_path: Path) -> None:
    server = Served(port)
    head.run("serve", "deploy", written(tmp_path, port, "cascade.slots=2"), "-a", head.dashboard)
    until_slots(server, 2)
    status, told = server.chat(BODY)
    assert status == 200 and told["cascade"]["recipe"] == "light_heavy"
    expected = told["cascade"]["token_ids"]
    with Asking(server, None) as asking:
        asking.more(10)
        changed = written(tmp_path, port, "cascade.slots=3", "cascade.num_draft_tokens=[4]")
        head.run("serve", "deploy", changed, "-a", head.dashboard)
        until_slots(server, 3)
        asking.more(10)
    print(f"\none pipeline after the other: nobody was answered for {asking.longest_gap_s('http'):.1f} s", end="")
    assert not asking.failures
    assert all(tokens == expected for *_, tokens in asking.answers)
    server.until(lambda: server.metric("cascade:stage_free_slots") == 2 * 3)  # the stages are the new recipe's as well
    told = yaml.safe_load(head.run("serve", "status", "-a", head.dashboard))
    assert told["applications"]["cascade"]["status"] == "RUNNING"


def test_with_room_for_two_nobody_waits_and_grpc_goes_on(head: RayHead, port: int, tmp_path: Path) -> None:
    server, grpc_port = Served(port), free_port()
    surge: dict[str, Any] = {"max_surge_percent": 100, "args": {"grpc_port": grpc_port}}
    head.run("serve", "deploy", written(tmp_path, port, "cascade.slots=2", **surge), "-a", head.dashboard)
    until_slots(server, 2)
    _until_listening(grpc_port)
    expected = server.chat(BODY)[1]["cascade"]["token_ids"]
    with Asking(server, grpc_port) as asking:
        asking.more(20)
        surge["args"] = {"grpc_port": grpc_port}
        head.run("serve", "deploy", written(tmp_path, port, "cascade.slots=4", **surge), "-a", head.dashboard)
        until_slots(server, 4)
        asking.more(20)
        _until_one(head)
        asking.more(20)
    gaps = {over: round(asking.longest_gap_s(over), 1) for over in ("http", "grpc")}
    print(f"\nthe new pipeline first: longest time without an answer, s: {gaps}", end="")
    assert not asking.failures
    assert all(tokens == expected for *_, tokens in asking.answers)


RESTART = """
import sys

import ray
from ray import serve

ray.init(sys.argv[1], logging_level="ERROR")  # "auto" would be whichever Ray of this machine was started last
handle = serve.get_deployment_handle("Cascade", "cascade")
print(sum(seconds > 0 for seconds in handle.restart.remote("light", "heavy").result(timeout_s=200)))
"""


def test_stages_are_started_anew_one_by_one_without_a_failed_request(head: RayHead, port: int) -> None:
    """As an operator who holds the deployment's handle would."""
    server = Served(port)
    before = stage_processes(head)
    expected = server.chat(BODY)[1]["cascade"]["token_ids"]
    with Asking(server, None) as asking:
        asking.more(5)
        told = head.run("python", "-c", RESTART, head.address)
        asking.more(5)
    assert told.split()[-1] == "2"
    assert not asking.failures
    assert all(tokens == expected for *_, tokens in asking.answers)
    after = stage_processes(head)
    assert {name for name in before if before[name] != after[name]} == {"Drafter", "Target"}


def test_a_replica_that_dies_costs_its_clients_a_reconnect(head: RayHead, port: int) -> None:
    """One streams and one waits for the whole answer: both get it from the replica that Serve starts in its place."""
    events = simulate_scene(seed=9).events
    asked: dict[str, Any] = {"max_tokens": 96, "speculate": False}
    with CascadeClient(f"http://127.0.0.1:{port}", max_retries=5, timeout=PATIENCE_S) as client:
        expected = client.generate(events, QUESTION, **asked)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stream = client.stream(events, QUESTION, **asked)
            pieces = [next(stream)]
            whole = pool.submit(client.generate, events, QUESTION, **asked)
            time.sleep(0.3)
            (replica,) = [pid for pid, name in processes_of(head) if name.startswith("ServeReplica:cascade:Cascade")]
            os.kill(replica, signal.SIGKILL)
            *rest, answer = stream
        again = whole.result()
    assert "".join([*pieces, *rest]) == answer.text == expected.text
    assert answer.token_ids == again.token_ids == expected.token_ids
    assert replica not in [pid for pid, _ in processes_of(head)]


def processes_of(head: RayHead) -> list[tuple[int, str]]:
    """Ray's workers of this cluster: process and what it is, without "ray::"."""
    found: list[tuple[int, str]] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (named := (entry / "cmdline").read_bytes()).startswith(b"ray::"):
                ours = head.env["RAY_AUTH_TOKEN"].encode() in (entry / "environ").read_bytes()
                found += [(int(entry.name), named[5:].split(b"\0")[0].decode())] if ours else []
    return found


def stage_processes(head: RayHead) -> dict[str, int]:
    """By class; a name goes on with what the process is at."""
    return {re.split(r"[.:]", name)[0]: pid for pid, name in processes_of(head)}


def test_a_wrong_recipe_leaves_the_reason_to_be_read(head: RayHead, port: int, tmp_path: Path) -> None:
    head.run("serve", "deploy", written(tmp_path, port, "cascade.slots=none"), "-a", head.dashboard)
    end = time.monotonic() + PATIENCE_S
    while True:
        told = yaml.safe_load(head.run("serve", "status", "-a", head.dashboard))["applications"]["cascade"]
        if told["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            break
        assert time.monotonic() < end, told
        time.sleep(1.0)
    assert "slots" in json.dumps(told)
    assert Served(port).chat(BODY)[0] == 200  # what was there still answers


def test_it_is_shut_down_and_leaves_no_actor(head: RayHead, port: int) -> None:
    head.run("serve", "shutdown", "-y", "-a", head.dashboard)
    until_slots(Served(port), None)
    query = ("list", "actors", "--address", head.dashboard, "--filter", "state=ALIVE", "--format", "json")
    end = time.monotonic() + PATIENCE_S
    while "No resource in the cluster" not in (actors := head.run("ray", *query)):
        assert time.monotonic() < end, actors
        time.sleep(1.0)


def test_serve_run_starts_the_same(head: RayHead, port: int, tmp_path: Path) -> None:
    """With arguments on the command line, where Serve listens at its usual port; then with the file."""
    usual = 8000
    expected: list[int] = []
    with CascadeClient(recipe="light_heavy") as client:
        expected = list(client.generate(simulate_scene(seed=9).events, QUESTION, max_tokens=24).token_ids)
    starts = [((written(tmp_path, port, "cascade.slots=2"),), port)]
    if _free(usual):
        overrides = "overrides=cascade.slots=2,cascade.num_draft_tokens=[4]"
        starts.append((("cluster.serve_app:app", "recipe=light_heavy", overrides), usual))
    for arguments, where in starts:
        server = Served(where)
        with head.running("serve", "run", *arguments, "--address", head.address):
            until_slots(server, 2)
            assert server.chat(BODY)[1]["cascade"]["token_ids"] == expected
        until_slots(server, None)


def _free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return one.connect_ex(("127.0.0.1", port)) != 0


def _until_listening(port: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while _free(port):
        assert time.monotonic() < end
        time.sleep(0.2)


def _until_one(head: RayHead) -> None:
    """Until the replica of before has gone."""
    end = time.monotonic() + PATIENCE_S
    while True:
        told = yaml.safe_load(head.run("serve", "status", "-a", head.dashboard))["applications"]["cascade"]
        if told["deployments"]["Cascade"]["replica_states"] == {"RUNNING": 1}:
            return
        assert time.monotonic() < end, told
        time.sleep(1.0)
