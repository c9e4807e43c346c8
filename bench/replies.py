"""What a vendor answers, prepared: for each language one whole reply, and the pieces of a stream of 100 chunks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable

import msgspec
from msgspec import Struct

CHUNKS = 100
"""Of a stream, each with one word."""
_WORDS = tuple(f" word{number % 10}" for number in range(CHUNKS))
_TEXT = "".join(_WORDS)
_PROMPT_TOKENS = 120
_USAGE = {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": CHUNKS, "total_tokens": _PROMPT_TOKENS + CHUNKS}

_json = msgspec.json.encode


class Prepared(Struct, frozen=True):
    """The bodies of a vendor's replies."""

    whole: bytes
    pieces: tuple[bytes, ...]
    """Of a stream, as they are written: one for each chunk, with others around them."""
    media_type: str = "text/event-stream"
    """Of the stream."""


def _sse(values: Iterable[dict[str, object]], *, named: bool = False, end: bytes = b"") -> tuple[bytes, ...]:
    """Values as events, with their types as names where `named`."""
    frames = []
    for value in values:
        name = f"event: {value['type']}\n".encode() if named else b""
        frames.append(name + b"data: " + _json(value) + b"\n\n")
    return (*frames, end) if end else tuple(frames)


def _openai(kind: str, prefix: str, choice: Callable[[str, str | None], dict[str, object]]) -> Prepared:
    head = {"id": f"{prefix}-9f2c5b7a1e", "object": kind, "created": 1790000000, "model": "draft-1"}
    whole = {**head, "choices": [choice(_TEXT, "length")], "usage": _USAGE}
    chunks: list[dict[str, object]] = [{**head, "choices": [choice(word, None)], "usage": None} for word in _WORDS]
    ends = [{**head, "choices": [choice("", "length")], "usage": None}, {**head, "choices": [], "usage": _USAGE}]
    return Prepared(_json(whole), _sse([*chunks, *ends], end=b"data: [DONE]\n\n"))


def _openai_completions() -> Prepared:
    return _openai(
        "text_completion", "cmpl", lambda text, end: {"index": 0, "text": text, "logprobs": None, "finish_reason": end}
    )


def _openai_chat() -> Prepared:
    def choice(text: str, end: str | None) -> dict[str, object]:
        said = {"role": "assistant", "content": text}
        return {"index": 0, "message": said, "delta": said, "logprobs": None, "finish_reason": end}

    return _openai("chat.completion.chunk", "chatcmpl", choice)


def _anthropic_messages() -> Prepared:
    usage = {"input_tokens": _PROMPT_TOKENS, "output_tokens": CHUNKS}
    message = {"id": "msg_01", "type": "message", "role": "assistant", "model": "draft-1", "usage": usage}
    whole = {**message, "content": [{"type": "text", "text": _TEXT}], "stop_reason": "max_tokens"}
    events: list[dict[str, object]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in _WORDS
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": CHUNKS}},
        {"type": "message_stop"},
    ]
    return Prepared(_json(whole), _sse(events, named=True))


def _gemini() -> Prepared:
    usage = {"promptTokenCount": _PROMPT_TOKENS, "totalTokenCount": _PROMPT_TOKENS}

    def response(text: str, end: str | None) -> dict[str, object]:
        candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
        ending, counted = ({"finishReason": end}, {"candidatesTokenCount": CHUNKS}) if end else ({}, {})
        return {"candidates": [candidate | ending], "usageMetadata": usage | counted, "modelVersion": "draft-1"}

    chunks = [response(word, None) for word in _WORDS[:-1]]
    return Prepared(_json(response(_TEXT, "MAX_TOKENS")), _sse([*chunks, response(_WORDS[-1], "MAX_TOKENS")]))


def _cohere() -> Prepared:
    usage = {"tokens": {"input_tokens": _PROMPT_TOKENS, "output_tokens": CHUNKS}}
    whole = {
        "id": "c14c80c3",
        "finish_reason": "MAX_TOKENS",
        "message": {"role": "assistant", "content": [{"type": "text", "text": _TEXT}]},
        "usage": usage,
    }
    events: list[dict[str, object]] = [
        {"type": "message-start", "id": "c14c80c3", "delta": {"message": {"role": "assistant", "content": []}}},
        *(
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"type": "text", "text": word}}}}
            for word in _WORDS
        ),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "MAX_TOKENS", "usage": usage}},
    ]
    return Prepared(_json(whole), _sse(events, named=True))


def _bedrock_converse() -> Prepared:
    usage = {"inputTokens": _PROMPT_TOKENS, "outputTokens": CHUNKS, "totalTokens": _PROMPT_TOKENS + CHUNKS}
    whole = {
        "output": {"message": {"role": "assistant", "content": [{"text": _TEXT}]}},
        "stopReason": "max_tokens",
        "usage": usage,
    }
    pieces = (
        _aws_event("messageStart", {"role": "assistant"}),
        *(_aws_event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}}) for word in _WORDS),
        _aws_event("messageStop", {"stopReason": "max_tokens"}),
        _aws_event("metadata", {"usage": usage}),
    )
    return Prepared(_json(whole), pieces, "application/vnd.amazon.eventstream")


def _aws_event(kind: str, value: dict[str, object]) -> bytes:
    """A message of AWS's event stream: lengths, checksum, headers, payload, checksum."""
    headers = b""
    for name, text in ((":event-type", kind), (":content-type", "application/json"), (":message-type", "event")):
        headers += struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(text)) + text.encode()
    payload = _json(value)
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


def _mistral_fim() -> Prepared:
    return _openai_chat()


def _ollama() -> Prepared:
    counts = {"prompt_eval_count": _PROMPT_TOKENS, "eval_count": CHUNKS}
    head = {"model": "draft-1", "created_at": "2026-11-23T12:00:00.000000Z"}
    end = {"done": True, "done_reason": "length", "total_duration": 1_000_000_000, **counts}
    lines = [*({**head, "response": word, "done": False} for word in _WORDS), {**head, "response": "", **end}]
    pieces = tuple(_json(line) + b"\n" for line in lines)
    return Prepared(_json({**head, "response": _TEXT, **end}), pieces, "application/x-ndjson")


LANGUAGES: dict[str, Callable[[], Prepared]] = {
    "openai_completions": _openai_completions,
    "openai_chat": _openai_chat,
    "anthropic_messages": _anthropic_messages,
    "gemini": _gemini,
    "cohere": _cohere,
    "bedrock_converse": _bedrock_converse,
    "mistral_fim": _mistral_fim,
    "ollama": _ollama,
}
"""By the languages' names; mistral_chat is openai_chat's reply over again."""
