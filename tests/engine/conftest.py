from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.asking import Asker, Plain, asking


@pytest.fixture(scope="session")
def asker() -> Iterator[Asker]:
    with asking() as one:
        yield one


@pytest.fixture(scope="session")
def plain() -> Plain:
    return Plain()
