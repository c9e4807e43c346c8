from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.running import Running, running

# Bounds small enough that a test can pass them.
SETTINGS = """
body_bytes = 100_000
header_bytes = 8192
header_timeout_s = 0.8
body_stall_s = 0.8
write_stall_s = 1.0
stream_open_after_s = 0.6
stream_silence_s = 0.4
cors_origins = ["https://page.example"]
"""


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with running(tmp_path_factory.mktemp("scripted"), SETTINGS) as server:
        yield server
