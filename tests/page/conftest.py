from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.page.browsing import Reader, chromium
from tests.server.running import Running, running
from tests.serving import Server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not for the whole session: Playwright's loop runs in this thread, and no other could beside it.
    with chromium() as opened:
        yield opened


@pytest.fixture
def reader(browser: Browser, server: Server) -> Iterator[Reader]:
    """At the page of the real server."""
    with browser.new_context(reduced_motion="reduce") as context:
        somebody = Reader(context.new_page(), server.url, server.key)
        yield somebody
        assert somebody.complaints == []


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("scripted")) as engine:
        yield engine


@pytest.fixture
def at_scripted(browser: Browser, scripted: Running) -> Iterator[Reader]:
    """At the page of a server whose engine does what the prompt says."""
    with browser.new_context(reduced_motion="reduce") as context:
        somebody = Reader(context.new_page(), f"http://127.0.0.1:{scripted.port}", scripted.key)
        yield somebody
        assert somebody.complaints == []
