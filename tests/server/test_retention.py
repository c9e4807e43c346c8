"""A real server that keeps rows no longer than it is told to."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from andthen.books.store import open_sqlite
from tests.ledger.making import intent, post, settled
from tests.serving import serving

WAIT_S = 10
DAY_MS = 86_400_000


def test_what_is_too_old_goes_while_the_server_runs_and_what_is_not_stays(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        post(store, [settled(intent(days, started_at_ms=now_ms - days * DAY_MS)) for days in (40, 31, 29)])
        used = store.usage(["day", "key", "model"])
        with serving(tmp_path, settings="[books]\nkeep_requests_days = 30\n") as server:
            deadline = time.monotonic() + WAIT_S
            while [row["id"] for row in store.export("requests")] != ["cmpl-29"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert store.usage(["day", "key", "model"]) == used
            server.complete(max_tokens=1)
            while len(list(store.export("requests"))) != 2:
                assert time.monotonic() < deadline + WAIT_S
                time.sleep(0.05)
