"""The tokenizer routes, for the models of the embedded engine."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qs

import msgspec

from andthen.auth.permissions import allows_model, check_model
from andthen.contract.errors import BadRequest, EngineRestarted, ModelNotFound
from andthen.contract.tokenizer import (
    DetokenizeReply,
    TokenizeReply,
    TokenizerInfo,
    parse_detokenize,
    parse_tokenize,
)
from andthen.engine.messages import ModelInfo
from andthen.gateway.context import JSON, RequestContext

_JSON_BYTES = 6
"""A byte of text takes at most so many in JSON: `\\u0041`."""
_ID_BYTES = 32
"""A token id takes at most so many, on a line of its own."""
_REST_BYTES = 16 * 2**10
"""What a body holds beside its text or its ids."""

_encode = msgspec.json.Encoder().encode


async def tokenize(ctx: RequestContext) -> None:
    most = max((_JSON_BYTES * known.longest_piece * (known.context + 1) for known in _known(ctx)), default=0)
    asked = parse_tokenize(await ctx.body(most=most + _REST_BYTES), ctx.services.limits)
    model = _model(ctx, asked.model)
    tokens = await ctx.services.engine.tokenize(
        model.name,
        asked.prompt,
        owner=ctx.key_id or "",
        add_special=asked.add_special_tokens,
        parse_special=asked.parse_special,
    )
    await ctx.reply(200, JSON, _encode(TokenizeReply(tokens)))


async def detokenize(ctx: RequestContext) -> None:
    most = max((_ID_BYTES * known.context for known in _known(ctx)), default=0)
    asked = parse_detokenize(await ctx.body(most=most + _REST_BYTES), ctx.services.limits)
    model = _model(ctx, asked.model)
    text = await ctx.services.engine.detokenize(model.name, asked.tokens, owner=ctx.key_id or "")
    await ctx.reply(200, JSON, _encode(DetokenizeReply(text)))


async def tokenizer_info(ctx: RequestContext) -> None:
    """Of the model that the query names, as `?model=local/NAME`."""
    try:
        named = parse_qs(ctx.query.decode(), max_num_fields=16).get("model")
    except ValueError:
        raise BadRequest("The query can't be read: send `?model=local/NAME`.", param="model") from None
    model = _model(ctx, named[0] if named else None)
    info = TokenizerInfo(model.eos_token, model.bos_token, model.pad_token, model.chat_template)
    await ctx.reply(200, JSON, _encode(info))


def _known(ctx: RequestContext) -> Iterable[ModelInfo]:
    return ctx.services.engine.models.values()


def _model(ctx: RequestContext, name: str | None) -> ModelInfo:
    """The model of this name; without one the first that the key may use."""
    models = ctx.services.engine.models
    if not models:
        raise EngineRestarted("The engine is starting: send the request again.")
    if name is None:
        name = next((known for known in models if allows_model(ctx.key, known)), next(iter(models)))
    if name not in models:
        raise ModelNotFound("There is no such local model: `GET /v1/models` lists the names.", param="model")
    check_model(ctx.key, name)
    return models[name]
