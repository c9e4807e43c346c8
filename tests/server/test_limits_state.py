"""What a server says of where its keys' limits are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.books.limiting import free_port, redis_of_its_own
from tests.server.running import running


@pytest.mark.parametrize("workers", [1, 2])
def test_without_redis_a_machine_counts_for_itself(tmp_path: Path, workers: int) -> None:
    with running(tmp_path / "home", f"workers = {workers}\ndrain_s = 0.5") as server:
        server.until(server.ready, "it is ready")
        assert server.ask("GET", "/readyz").json == {"status": "ok", "limits": "ok"}
        assert server.stop() == 0


def test_redis_may_be_gone_from_the_start_and_come_later(tmp_path: Path) -> None:
    port = free_port()
    settings = f'drain_s = 0.5\n[books]\nredis = "redis://:passw0rd@127.0.0.1:{port}/0"\nredis_gone = "open"'
    with running(tmp_path / "home", settings) as server:
        server.until(server.ready, "it is ready all the same")
        assert server.ask("GET", "/readyz").json["limits"] == "uncounted"
        assert len(server.events("redis_gone")) == 1
        with redis_of_its_own(tmp_path, port, "--requirepass", "passw0rd"):
            server.until(lambda: server.ask("GET", "/readyz").json["limits"] == "ok", "Redis is there")
        assert len(server.events("redis_back")) == 1
        assert "passw0rd" not in server.log
        assert server.stop() == 0
