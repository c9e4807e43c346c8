"""What every test stands on: guards, properties that are drawn alike each time, and a real server to ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.serving import Server, serving

pytest_plugins = ["tests.guards"]

settings.register_profile("house", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("house")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only ask it things."""
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running
