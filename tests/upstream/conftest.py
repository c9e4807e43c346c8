"""Real servers that stand upstream of a real server, all on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving import Server, serving
from tests.upstream.llama_server import LlamaServer, llama_server


@pytest.fixture(scope="session")
def llama() -> Iterator[LlamaServer]:
    with llama_server() as running:
        yield running


@pytest.fixture(scope="session")
def outer(llama: LlamaServer, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server before llama-server, spoken to in three languages, and before another andthen."""
    settings = f"""
[vendors.llamacpp]
address = "{llama.url}/v1"

[models."team/chat"]
address = "{llama.url}/v1"
language = "openai_chat"
model = "tale"

[models."team/chat".takes]
n = false # of several choices it tells the usage of one alone

[models."team/scanned"]
vendor = "llamacpp"
model = "tale"
takes = {{ stop = false }}

[models."team/messages"]
address = "{llama.url}/v1"
language = "anthropic_messages"
model = "tale"

[vendors.andthen]
address = "{server.url}/v1"
key = "{server.key}"

[models."team/tale"]
vendor = "andthen"
model = "{server.model}"
"""
    with serving(tmp_path_factory.mktemp("outer"), settings=settings) as running:
        yield running
