"""The page as a person meets it, in a real Chromium in front of a real server with the bundled family.

Skipped where there is no browser. To run it: apt-get install chromium; pip install playwright; then

    python -m pytest tests/acceptance                  SHOTS=directory keeps a picture of every stage of it
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from client.http_servers import Stats, cascade_server

from benchmarks.page_picture import asked
from cascade_runtime.config import load_recipe
from cascade_runtime.in_process import InProcess
from cascade_runtime.metrics import EdgeCounters

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
SHOTS = os.environ.get("SHOTS")
PATIENCE_MS = 60_000
QUESTION = "What is moving? <img src=x onerror=document.title='owned'>"


def engine_stats(transport: InProcess) -> Stats:
    """What stages say of themselves, told by the engine's levels."""
    busy = dict.fromkeys(range(len(transport.engine.levels)), 0.0)

    def timed(number: int, extend: Any) -> Any:
        def call(*args: Any) -> Any:
            begun = time.monotonic()
            try:
                return extend(*args)
            finally:
                busy[number] += time.monotonic() - begun

        return call

    for number, level in enumerate(transport.engine.levels):
        level.decoder.extend = timed(number, level.decoder.extend)  # type: ignore[method-assign]

    def stats() -> dict[str, dict[str, Any]]:
        decoders = [level.decoder for level in transport.engine.levels]
        return {
            name: {
                "name": name,
                "busy_s": busy[number],
                "active_rows": decoder.cache.slots - decoder.free_slots,
                "slots": decoder.cache.slots,
                "passes": decoder.passes,
                "tokens_fed": decoder.tokens_fed,
                "edge": EdgeCounters(name).to_dict(),
            }
            for number, (name, decoder) in enumerate(zip(transport.engine.recipe.cascade.levels, decoders, strict=True))
        }

    return stats


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, InProcess]]:
    with cascade_server(load_recipe("three_level"), engine_stats) as (address, transport):
        yield address, transport


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """One tab, its complaints, and the elements by their id."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else 0)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def at(self, name: str) -> Any:
        return self.page.locator(f"#{name}")

    def ready(self) -> Visit:
        self.at("film").wait_for()
        return self

    def shot(self, name: str) -> None:
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)

    def answers(self) -> list[str]:
        """The texts of the answers, from their tokens only."""
        script = "node => [...node.querySelectorAll('.token')].map(t => [...t.childNodes].filter(n => n.nodeType === 3)"
        return [
            node.evaluate(script + ".map(n => n.data).join('')).join('')") for node in self.page.locator(".one").all()
        ]


@pytest.fixture
def visit(browser: Any, server: tuple[str, InProcess]) -> Iterator[Visit]:
    visit = Visit(browser, server[0])
    yield visit
    visit.page.close()


def test_asking_and_comparing(visit: Visit, server: tuple[str, InProcess]) -> None:
    visit.ready().at("compare").check()
    visit.at("go").click()
    visit.at("verdict").wait_for()
    assert visit.at("verdict").inner_text().startswith("Identical: all ")
    cascade, alone = visit.answers()
    assert cascade == alone and len(cascade) > 40
    said = visit.page.locator(".one").nth(0).locator(".token.l0")
    assert said.count() > 10 and said.first.locator(".dot.at2").count() == 1
    assert visit.page.locator(".one").nth(1).locator(".token:not(.l2)").count() == 0
    assert "passes of heavy" in visit.page.locator(".counters").first.inner_text()
    assert visit.page.locator("#lanes rect.bar").count() >= 3
    ghosts = visit.page.locator(".ghost")
    assert ghosts.count() and not ghosts.first.is_visible()
    visit.at("refused").check()
    assert ghosts.first.is_visible()
    ghosts.first.hover()
    assert visit.at("told").inner_text().startswith("Refused draft")
    visit.shot("compared")
    assert not visit.complaints


def test_the_readme_s_picture_is_taken_of_a_question_that_was_compared(
    browser: Any, server: tuple[str, InProcess]
) -> None:
    first, second = asked(browser, server[0], 2)  # after one that warmed up
    for ask in (first, second):
        assert ask.tokens > 30 and ask.cascade_ms > 0 and ask.png.startswith(b"\x89PNG")
        assert ask.ratio == ask.alone_ms / ask.cascade_ms
    assert first.png != second.png  # each its own: they tell their times


def test_a_picture_is_refused_where_there_is_no_answer(browser: Any) -> None:
    with cascade_server(load_recipe("heavy"), max_tokens=8) as (address, _), pytest.raises(ValueError, match="max_tok"):
        asked(browser, address, 1)


@contextmanager
def slowed(decoder: Any, seconds: float) -> Iterator[None]:
    """Every pass takes so much longer."""
    extend = decoder.extend

    def slowly(*args: Any) -> Any:
        time.sleep(seconds)
        return extend(*args)

    decoder.extend = slowly
    try:
        yield
    finally:
        decoder.extend = extend


def test_tokens_come_one_after_another_and_stop_means_stop(visit: Visit, server: tuple[str, InProcess]) -> None:
    decoder = server[1].engine.levels[-1].decoder
    with slowed(decoder, 0.4):
        visit.ready().at("go").click()
        visit.page.locator(".text .token").first.wait_for()
        assert visit.page.locator(".caret").count() == 1 and visit.at("go").is_disabled()
        assert visit.page.locator("#lanes rect.bar").count() > 0  # ticks, while it goes on
        visit.page.locator("#lanes rect.load.l2").first.wait_for()  # heavy is busy
        busy = visit.page.locator("#stages tr").filter(has_text="heavy").locator("td.busy")
        busy.wait_for()
        assert busy.inner_text().startswith("busy ")
        visit.shot("streaming")
        visit.at("stop").click()
        visit.page.get_by_text("Stopped.").wait_for()
        passes, end = decoder.passes, time.monotonic() + 20
        while decoder.free_slots < decoder.cache.slots and time.monotonic() < end:
            time.sleep(0.05)
        assert decoder.free_slots == decoder.cache.slots and decoder.passes <= passes + 2
        assert visit.at("go").is_enabled() and visit.at("problem").is_hidden()
        assert visit.page.locator("#stages td.busy").count() == 0 and visit.page.locator("#stages tr").count() == 4


def test_a_bad_file_is_refused_in_words_and_the_next_one_is_taken(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04<b>nonsense</b>")
    visit.ready().at("file").set_input_files(tmp_path / "bad.npz")
    visit.at("problem").wait_for()
    assert visit.at("problem").inner_text().startswith("bad.npz was not taken. recording: ")
    assert visit.page.locator("#samples [aria-pressed=true]").count() == 1  # what was there still is
    visit.shot("bad_file")
    rows = "t,x,y,p\n" + "".join(f"{t * 10},{t % 30},{t % 20},{t % 2}\n" for t in range(3000))
    (tmp_path / "good.csv").write_text(rows)
    visit.at("file").set_input_files(tmp_path / "good.csv")
    visit.page.get_by_text("3,000 events").wait_for()
    assert visit.at("problem").is_hidden()


def test_a_large_recording_travels_once_and_is_forgotten_when_another_takes_its_place(
    visit: Visit, tmp_path: Path
) -> None:
    rows = "".join(f"{t * 10},{t * 7 % 300},{t * 3 % 200},{t % 2}\n" for t in range(100_000))
    (tmp_path / "large.csv").write_text("t,x,y,p\n" + rows)
    sent: list[tuple[str, str, int]] = []
    visit.ready().page.on(
        "request",
        lambda told: sent.append((told.method, told.url.partition("/v1/")[2], len(told.post_data_buffer or b""))),
    )
    visit.at("file").set_input_files(tmp_path / "large.csv")
    visit.page.get_by_text("100,000 events").wait_for()
    visit.at("compare").check()
    visit.at("go").click()
    visit.at("verdict").wait_for()
    uploads = [each for each in sent if each[:2] == ("POST", "files")]
    bodies = [size for method, path, size in sent if method == "POST" and path != "files"]
    assert len(uploads) == 1 and len(bodies) == 3 and max(bodies) < 1000  # its pictures, and two questions
    with visit.page.expect_response(lambda told: told.request.method == "DELETE") as deleted:
        visit.page.locator("#samples button").nth(1).click()
    assert deleted.value.json()["deleted"]
    assert visit.at("problem").is_hidden() and not visit.complaints


def test_both_are_asked_the_same_whatever_is_chosen_meanwhile(visit: Visit, server: tuple[str, InProcess]) -> None:
    decoder = server[1].engine.levels[-1].decoder
    with slowed(decoder, 0.1):
        visit.ready().at("compare").check()
        visit.at("go").click()
        visit.page.locator(".text .token").first.wait_for()
        visit.page.locator("#samples button").nth(1).click()
        visit.at("question").fill("Is anything moving?")
        visit.page.locator("#samples button[aria-pressed=true]", has_text="Shapes").wait_for()
        assert visit.at("stop").is_enabled() and visit.at("verdict").is_hidden()  # it still goes on
        visit.at("verdict").wait_for()
    assert visit.at("verdict").inner_text().startswith("Identical: all ")


def test_a_large_recording_is_sent_whole_where_the_server_keeps_no_files(visit: Visit, tmp_path: Path) -> None:
    rows = "".join(f"{t * 10},{t * 7 % 300},{t * 3 % 200},{t % 2}\n" for t in range(100_000))
    (tmp_path / "large.csv").write_text("t,x,y,p\n" + rows)
    visit.ready().page.route("**/v1/files", lambda route: route.fulfill(status=404, json={}))
    visit.at("file").set_input_files(tmp_path / "large.csv")
    visit.page.get_by_text("100,000 events").wait_for()
    assert visit.at("problem").is_hidden()


def test_text_from_outside_stays_text(visit: Visit) -> None:
    visit.ready().at("question").fill(QUESTION)
    visit.at("go").click()
    visit.page.locator(".counters div").first.wait_for()
    assert visit.page.title().startswith("Cascade")
    assert visit.page.locator(".answer img").count() == 0
    assert not visit.complaints


def test_the_keyboard_is_enough(visit: Visit) -> None:
    visit.ready().at("question").focus()
    visit.page.keyboard.press("Enter")
    visit.page.locator(".counters div").first.wait_for()
    visit.page.locator(".text .token").first.focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowRight")
    assert visit.at("told").inner_text().startswith("Token 3 ")
    visit.at("scrub").focus()
    before = visit.at("when").inner_text()
    visit.page.keyboard.press("End")
    assert visit.at("when").inner_text() != before or visit.at("scrub").input_value() == "23"


def test_a_phone_shows_all_of_it(browser: Any, server: tuple[str, InProcess]) -> None:
    visit = Visit(browser, server[0], viewport={"width": 360, "height": 740}, has_touch=True).ready()
    visit.at("go").tap()
    visit.page.locator(".counters div").first.wait_for()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
    visit.shot("phone")
    visit.page.close()


def test_a_server_with_keys_asks_for_one(browser: Any) -> None:
    digest = hashlib.sha256(b"sk-test").hexdigest()
    with cascade_server(load_recipe("heavy"), key_digests=(digest,), model="street-camera") as (address, _):
        visit = Visit(browser, address)
        visit.page.get_by_text("An API key is needed.").wait_for()
        visit.at("key").fill("sk-test")
        visit.page.keyboard.press("Tab")
        visit.ready().at("go").click()
        visit.page.locator(".counters div").first.wait_for()
        assert visit.at("server").inner_text().startswith("street-camera: heavy")
        visit.page.close()
