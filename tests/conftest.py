"""What every test stands on: guards, properties that are drawn alike each time, and a real server to ask."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from andthen.vendors.rows import vendors
from tests.serving import Server, serving

pytest_plugins = ["tests.guards"]

settings.register_profile("house", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("house")

for row in vendors().values():  # keys of whoever runs the tests switch no vendor on
    for variable in row.key_variable.split():
        os.environ.pop(variable.removesuffix("?"), None)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only ask it things."""
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running
