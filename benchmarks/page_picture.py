"""The README's picture: the page of a server, after a question that was compared with the target alone.

    cascade serve three_level --port 8000
    python -m benchmarks.page_picture [URL] [--asks 7] [-o benchmarks/results/page.png]

A real Chromium opens the page, takes the first sample, asks the page's own question once to warm up and then so many
times, and keeps the picture whose ratio is the median: neither the best ask nor the worst. Every ask is the cascade,
then the target alone; both find their prompt's prefix in the cache, as anybody's second question about a recording
does. The ratios, and one last line of JSON. Where an answer differs from the target's own it fails.

Needs Chromium and its driver: apt-get install chromium; pip install playwright.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

URL = "http://127.0.0.1:8000"
FRAME = "9"  # of the sample's film: one with something to see
PATIENCE_MS = 120_000
_VERDICT = re.compile(r"Identical: all (\d+) tokens, .* \((\d+) ms and (\d+) ms")


@dataclass(frozen=True)
class Ask:
    """One question, compared: milliseconds to the whole answer as the page saw them, and its picture (PNG)."""

    tokens: int
    cascade_ms: float
    alone_ms: float
    png: bytes

    @property
    def ratio(self) -> float:
        return self.alone_ms / self.cascade_ms


def median_ask(asks: Sequence[Ask]) -> Ask:
    """The one in the middle by its ratio; of an even number the lower one of both."""
    return sorted(asks, key=lambda ask: ask.ratio)[(len(asks) - 1) // 2]


def asked(browser: Any, url: str, number: int) -> list[Ask]:
    """So many asks on one page, after one that warms up. Raises `ValueError` where an answer is not the target's."""
    page = browser.new_page(viewport={"width": 1080, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    page.locator("#film").wait_for()
    page.locator("#compare").check()
    page.locator("#refused").check()
    asks = [_ask(page) for _ in range(1 + number)]
    page.close()
    return asks[1:]


def _ask(page: Any) -> Ask:
    page.locator("#go").click()
    page.locator("#stop:disabled").wait_for()
    told = page.locator("#problem:visible, #verdict:visible").first.inner_text()
    found = _VERDICT.match(told)
    if found is None:
        raise ValueError(told)
    page.locator("#trace").wait_for()
    page.locator("#scrub").fill(FRAME)  # ends the film
    page.mouse.move(5, 5)  # else a token under the mouse tells its story
    return Ask(int(found[1]), float(found[2]), float(found[3]), page.screenshot(full_page=True))


def main(argv: list[str] | None = None) -> int:
    """Ask, tell, and write the picture of the median."""
    parser = argparse.ArgumentParser(prog="benchmarks.page_picture", description="The page at its median ratio.")
    parser.add_argument("url", nargs="?", default=URL, metavar="URL", help=f"of a server that runs ({URL})")
    parser.add_argument("--asks", type=int, default=7, metavar="N", help="an odd number: the median is one of them")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "page.png")
    args = parser.parse_args(argv)
    if args.asks < 1 or args.asks % 2 == 0:
        parser.error(f"--asks {args.asks}: an odd number of at least 1")

    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        asks = asked(browser, args.url, args.asks)
        browser.close()
    kept = median_ask(asks)
    args.out.write_bytes(kept.png)
    for ask in asks:
        mark = "  <- kept" if ask is kept else ""
        print(f"{ask.cascade_ms:8.0f} ms {ask.alone_ms:8.0f} ms alone {ask.ratio:8.2f}x{mark}")
    ratios = [round(ask.ratio, 2) for ask in asks]
    told = {"benchmark": "page_picture", "ratios": ratios, "kept": round(kept.ratio, 2), "tokens": kept.tokens}
    print(json.dumps(told | {"load": round(os.getloadavg()[0], 1)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
