"""What a wire holds of a reply has a bound, and what it sends without a key is no header for one."""

from __future__ import annotations

import pytest

from andthen.contract.errors import UpstreamGarbled
from andthen.contract.request import CompletionRequest
from andthen.wire import anthropic_messages, cohere, ollama
from andthen.wire.base import Target, Wire

TARGET = Target(vendor="Example", address="http://127.0.0.1:8080", model="m")
REQUEST = CompletionRequest(model="example/m", prompts=("Once",))
MODULES = (anthropic_messages, cohere, ollama)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("streams", [False, True])
def test_a_reply_without_end_is_given_up(module: object, streams: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("andthen.wire.whole.MAX_REPLY_BYTES", 2**20)
    monkeypatch.setattr("andthen.wire.ollama.MAX_REPLY_BYTES", 2**20)
    monkeypatch.setattr("andthen.wire.sse.MAX_EVENT_BYTES", 2**20)
    wire: Wire = module.Language()  # type: ignore[attr-defined]
    decoder = wire.decoder(REQUEST, TARGET, streams=streams)
    with pytest.raises(UpstreamGarbled, match="too long"):
        for _ in range(20):
            decoder.feed(b"x" * 2**16)


@pytest.mark.parametrize("module", MODULES)
def test_a_server_without_a_key_is_asked_without_one(module: object) -> None:
    wire: Wire = module.Language()  # type: ignore[attr-defined]
    call = wire.encode(REQUEST, TARGET, streams=False)
    assert not {"authorization", "x-api-key"} & {*dict(call.headers)}
