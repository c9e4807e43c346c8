"""Whatever one key asks for, another key's short requests are answered soon. How soon, `tests/soak` measures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import uvloop

from tests.greedy import KINDS, Greedy, besieged, waits
from tests.serving import Server, andthen, serving

COUNT = 4
WITHIN_S = 10.0
"""Generous: other tests may want the machine. It was never answered, or after a minute, when one key could hold all."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("fair")) as server:
        server.complete(max_tokens=1)
        yield server


@pytest.fixture(scope="module")
def other_key(server: Server) -> str:
    return andthen("keys", "create", "--name", "other", home=server.home).strip()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_another_key_is_answered(server: Server, other_key: str, kind: Greedy) -> None:
    async def run() -> None:
        async with besieged(server, server.key, kind):
            await waits(server, other_key, COUNT, WITHIN_S)

    uvloop.run(run())
