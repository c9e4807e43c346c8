"""A page in a real Chromium, and what a reader does on it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import log
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect, sync_playwright

WAIT_MS = 15_000

# A browser that speaks to nobody on its own account, and runs as whoever runs the tests.
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    assert found, "the page is tested in Chromium, and none is here: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=_QUIET)
        yield browser
        browser.close()


class Reader:
    """Somebody at a page, who notes what the page does that it should not."""

    def __init__(self, page: Page, url: str, key: str) -> None:
        self.page = page
        self.url = url
        self.key = key
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._watch)

    def _hear(self, message: ConsoleMessage) -> None:
        # The browser itself notes every answer that is no 2xx; refusals that a test provokes are not the page's fault.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def _watch(self, request: Request) -> None:
        if not request.url.startswith(self.url):
            self.complaints.append(f"asked for {request.url}")

    def open(self) -> None:
        """The page, with the key entered and the models listed."""
        self.page.goto(self.url)
        self.page.get_by_label("key", exact=True).fill(self.key)
        expect(self.page.get_by_label("model", exact=True)).not_to_be_empty()

    @property
    def text(self) -> Locator:
        return self.page.get_by_label("Your text")

    @property
    def tokens(self) -> Locator:
        return self.page.locator("#ink .token")

    @property
    def card(self) -> Locator:
        return self.page.locator("#card")

    @property
    def problem(self) -> Locator:
        return self.page.get_by_role("alert")

    def set(self, **values: object) -> None:
        for name, value in values.items():
            control = self.page.get_by_label(name, exact=True)
            if not control.is_visible():
                control.locator("xpath=ancestor::details/summary").click()
            if isinstance(value, bool):
                control.set_checked(value)
            else:
                control.fill(str(value))

    def run(self) -> None:
        self.page.get_by_role("button", name=re.compile("^Run")).click()

    def done(self) -> None:
        expect(self.page.locator("#status")).to_contain_text("Done", timeout=WAIT_MS)

    def ways(self) -> list[tuple[str, str]]:
        """What the card offers: each token, its white space made visible, with its share."""
        rows = self.card.locator("li:not(:has(.rest)) .way").all()
        return [(row.locator("code").inner_text(), row.locator("span").inner_text()) for row in rows]


def visible(text: str) -> str:
    """A token as the page writes it."""
    return text.replace(" ", "␣").replace("\n", "↵")


def shades(choice: dict[str, Any]) -> list[float]:
    """How strongly each stretch is shaded: 0 for certain, 1 for one in a thousand or less."""
    logprobs = choice["logprobs"]
    together: dict[int, float] = {}
    for offset, logprob in zip(logprobs["text_offset"], logprobs["token_logprobs"], strict=True):
        together[offset] = together.get(offset, 0.0) + logprob
    return [min(1.0, -logprob / log(1000)) for logprob in together.values()]


def stretches(choice: dict[str, Any]) -> list[str]:
    """A choice's text as its tokens divide it, tokens of one character together; offsets count from the prompt's
    start."""
    offsets = choice["logprobs"]["text_offset"]
    start = offsets[0]
    edges = [*sorted(set(offsets)), start + len(choice["text"])]
    return [choice["text"][a - start : b - start] for a, b in pairwise(edges) if b > a]
