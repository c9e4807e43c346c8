"""The tokenizer routes, for the models of the embedded engine."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qs

import msgspec

from andthen.contract.errors import BadRequest, EngineRestarted, ModelNotFound
from andthen.contract.tokenizer import (
    DetokenizeReply,
    TokenizeReply,
    TokenizerInfo,
    parse_detokenize,
    parse_tokenize,
)
from andthen.engine.messages import ModelInfo
from andthen.server.access import allows_model, check_model
from andthen.server.http import JSON, Exchange
from andthen.server.services import Services

_JSON_BYTES = 6
"""A byte of text takes at most so many in JSON: `\\u0041`."""
_ID_BYTES = 32
"""A token id takes at most so many, on a line of its own."""
_REST_BYTES = 16 * 2**10
"""What a body holds beside its text or its ids."""

_encode = msgspec.json.Encoder().encode


async def tokenize(services: Services, exchange: Exchange) -> None:
    most = max((_JSON_BYTES * known.longest_piece * (known.context + 1) for known in _known(services)), default=0)
    asked = parse_tokenize(await exchange.body(most=most + _REST_BYTES), services.limits)
    model = _model(services, exchange, asked.model)
    tokens = await services.engine.tokenize(
        model.name,
        asked.prompt,
        owner=exchange.key_id or "",
        add_special=asked.add_special_tokens,
        parse_special=asked.parse_special,
    )
    await exchange.reply(200, JSON, _encode(TokenizeReply(tokens)))


async def detokenize(services: Services, exchange: Exchange) -> None:
    most = max((_ID_BYTES * known.context for known in _known(services)), default=0)
    asked = parse_detokenize(await exchange.body(most=most + _REST_BYTES), services.limits)
    model = _model(services, exchange, asked.model)
    text = await services.engine.detokenize(model.name, asked.tokens, owner=exchange.key_id or "")
    await exchange.reply(200, JSON, _encode(DetokenizeReply(text)))


async def tokenizer_info(services: Services, exchange: Exchange) -> None:
    """Of the model that the query names, as `?model=local/NAME`."""
    try:
        named = parse_qs(exchange.query.decode(), max_num_fields=16).get("model")
    except ValueError:
        raise BadRequest("The query can't be read: send `?model=local/NAME`.", param="model") from None
    model = _model(services, exchange, named[0] if named else None)
    info = TokenizerInfo(model.eos_token, model.bos_token, model.pad_token, model.chat_template)
    await exchange.reply(200, JSON, _encode(info))


def _known(services: Services) -> Iterable[ModelInfo]:
    return services.engine.models.values()


def _model(services: Services, exchange: Exchange, name: str | None) -> ModelInfo:
    """The model of this name; without one the first that the key may use."""
    models = services.engine.models
    if not models:
        raise EngineRestarted("The engine is starting: send the request again.")
    if name is None:
        name = next((known for known in models if allows_model(exchange.key, known)), next(iter(models)))
    if name not in models:
        raise ModelNotFound("There is no such local model: `GET /v1/models` lists the names.", param="model")
    check_model(exchange.key, name)
    return models[name]
