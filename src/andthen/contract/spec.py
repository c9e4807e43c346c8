"""The OpenAPI document, made from the table of fields, the tree of errors and the structs that are sent.

Every constraint in it is one that the parser holds. What JSON Schema can't say, such as `best_of` ≥ `n`, stands in the
fields' descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from andthen.contract import errors, listing, response, tokenizer, usage
from andthen.contract.errors import AndthenError
from andthen.contract.fields import DETOKENIZE_FIELDS, TOKENIZE_FIELDS, Field, completion_fields
from andthen.contract.limits import Limits

Json = dict[str, Any]

COMPLETIONS = ("/v4/beta/completions", "/v5/completions", "/v1/completions")
MODELS = ("/v4/beta/models", "/v1/models")
USAGE = ("/v4/beta/usage",)
DAYS: Json = {
    "name": "days", "in": "query", "description": "Of how many days, today included; 31 if left out.",
    "schema": {"type": "integer", "minimum": 1, "maximum": usage.DAYS_MAX},
}  # fmt: skip
"""A parameter of the routes that tell what was used."""

_STRUCTS = (
    response.CompletionReply,
    response.CompletionChunk,
    response.ErrorReply,
    tokenizer.TokenizeReply,
    tokenizer.DetokenizeReply,
    tokenizer.TokenizerInfo,
    listing.ModelCard,
    listing.ModelList,
    listing.Health,
    listing.Readiness,
    usage.UsageReply,
)
_KEY: list[Json] = [{"apiKey": []}, {"bearer": []}]
WITH_KEY = (errors.InvalidApiKey, errors.PermissionDenied)
_ANYWHERE = (errors.HeadersTooLarge, errors.InternalError, errors.ShuttingDown)
WITH_BODY = (
    errors.BadRequest,
    errors.InvalidJson,
    errors.RequestTimeout,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
)
_BY_THE_ENGINE = (errors.NoCapacity, errors.EngineRestarted)

_EXAMPLES: Json = {
    "text": {"model": "local/tale", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.7, "seed": 1},
    "stream": {
        "model": "local/tale",
        "prompt": "Once upon a time",
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "score": {"model": "local/tale", "prompt": "Once upon a time", "max_tokens": 0, "echo": True, "logprobs": 1},
    "choices": {"model": "local/tale", "prompt": ["Once", "There was"], "n": 2, "best_of": 3, "stop": ["\n"]},
}


def _json_text(schema: str) -> Json:
    return {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{schema}"},
    }


# Before OpenAPI 3.2 a stream's schema is that of each event.
_EVENT: Json = {
    "description": "Chunks, then `[DONE]`. After an error in the stream the connection breaks off.",
    "type": "object",
    "required": ["data"],
    "anyOf": [
        {"properties": {"data": _json_text("CompletionChunk")}},
        {"properties": {"data": {"const": "[DONE]"}}},
        {"properties": {"event": {"const": "error"}, "data": _json_text("ErrorReply")}, "required": ["event"]},
    ],
}


def openapi(
    limits: Limits, *, version: str, structs: Sequence[type[msgspec.Struct]] = (), paths: Json | None = None
) -> Json:
    """The document, an OpenAPI 3.1 object.

    Args:
        limits: the bounds that hold on this server.
        version: of the package.
        structs: what else is sent or taken.
        paths: the server's own routes, beside the contract's.
    """
    _, components = msgspec.json.schema_components((*_STRUCTS, *structs), ref_template="#/components/schemas/{name}")
    for schema in components.values():
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].split())
    components["ErrorDetail"]["properties"]["type"]["enum"] = _distinct("type")
    components["ErrorDetail"]["properties"]["code"]["enum"] = _distinct("code")
    components["CompletionRequest"] = body_schema(completion_fields(limits))
    components["TokenizeRequest"] = body_schema(TOKENIZE_FIELDS)
    components["DetokenizeRequest"] = body_schema(DETOKENIZE_FIELDS)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "andthen",
            "version": version,
            "description": "A text goes in; what comes next goes out.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths() | (paths or {}),
        "components": {
            "schemas": components,
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": _KEY,
    }


def body_schema(fields: Sequence[Field]) -> Json:
    """The JSON Schema of a body made of these fields."""
    return {
        "type": "object",
        "required": [field.name for field in fields if field.required],
        "properties": {field.name: _field_schema(field) for field in fields},
    }


def _field_schema(field: Field) -> Json:
    schema = dict(field.shape.schema)
    if field.nullable:
        if "anyOf" in schema:
            schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]
        else:
            schema["type"] = [schema["type"], "null"]
    schema["description"] = field.text + (" (Extension.)" if field.extension else "")
    return schema | ({} if field.default is None else {"default": field.default})


def _paths() -> Json:
    paths: Json = {path: {"post": _complete(path)} for path in COMPLETIONS}
    for path in MODELS:
        paths[path] = {"get": _list_models(path)}
        paths[path + "/{vendor}/{model}"] = {"get": _show_model(path)}
    for path in USAGE:
        told = json_reply("UsageReply", "The sums of its days, and what is left of its budgets.")
        refusals = (errors.BadRequest, *WITH_KEY, errors.LedgerUnavailable)
        paths[path] = {"get": operation("usage", "What this key has used", told, refusals) | {"parameters": [DAYS]}}
    for root in (*COMPLETIONS, ""):
        paths[root + "/tokenize"] = {"post": _tokenize(root)}
        paths[root + "/detokenize"] = {"post": _detokenize(root)}
        paths[root + "/tokenizer_info"] = {"get": _tokenizer_info(root)}
    health = json_reply("Health", "The process lives.")
    ready = json_reply("Readiness", "Completions are taken.")
    metrics = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    page = {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}}
    document = {"description": "This document.", "content": {"application/json": {"schema": {"type": "object"}}}}
    paths["/healthz"] = {"get": operation("live", "Is the process alive?", health, (), security=[])}
    paths["/readyz"] = {
        "get": operation("ready", "Would a completion be taken?", ready, (errors.EngineRestarted,), security=[])
    }
    paths["/metrics"] = {"get": operation("metrics", "Counters of all workers and the engine", metrics, WITH_KEY)}
    paths["/openapi.json"] = {"get": operation("openapi", "This document", document, (), security=[])}
    paths["/docs"] = {"get": operation("docs", "This document, to read", page, (), security=[])}
    paths["/"] = {"get": operation("page", "A page to try completions on", page, (), security=[])}
    return paths


_IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Of one's own choice, a UUID say. The work goes on when the client leaves, and the same request "
    "with it gets the same reply, billed once.",
    "schema": {"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
}


def _complete(path: str) -> Json:
    done = json_reply(
        "CompletionReply", "The choices; with `stream: true` server-sent events, each a `CompletionChunk`."
    )
    done["content"]["text/event-stream"] = {"schema": _EVENT}
    done["headers"] = {
        "x-request-id": _header("The reply's `id`."),
        "x-andthen-plan": _header("What became of each field, such as `n=native, stop=native`."),
        "x-andthen-ignored": _header("Names of unknown fields, percent-encoded."),
        "x-andthen-cache": _header(
            "Where replies are kept: `hit`, the reply was made before (`age` tells when) and costs nothing; `miss`; or "
            "`bypass`, it was not looked for."
        ),
    }
    done["headers"]["idempotent-replayed"] = _header("`true`: the reply was made for an earlier request.")
    refusals = (
        *WITH_BODY,
        errors.UnsupportedParameter,
        errors.ContextLengthExceeded,
        errors.IdempotencyConflict,
        *WITH_KEY,
        errors.ModelNotAllowed,
        errors.ModelNotFound,
        errors.RateLimited,
        errors.BudgetExceeded,
        errors.LimitsUnavailable,
        errors.LedgerUnavailable,
        *_BY_THE_ENGINE,
        *errors.UpstreamError.__subclasses__(),
    )
    made = operation(_name("complete", path), "Complete a text", done, refusals, body="CompletionRequest")
    content = made["requestBody"]["content"]["application/json"]
    content["examples"] = {name: {"value": body} for name, body in _EXAMPLES.items()}
    made["parameters"] = [_IDEMPOTENCY_KEY]
    return made


def _list_models(path: str) -> Json:
    done = json_reply("ModelList", "The models that this key may use.")
    return operation(_name("listModels", path), "List models", done, (*WITH_KEY, *_BY_THE_ENGINE))


def _show_model(path: str) -> Json:
    done = json_reply("ModelCard", "The model and what becomes of each field on it.")
    refusals = (*WITH_KEY, errors.ModelNotAllowed, errors.ModelNotFound, *_BY_THE_ENGINE)
    made = operation(_name("showModel", path), "Describe a model", done, refusals)
    made["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in ("vendor", "model")
    ]
    made["parameters"][1]["description"] = "May hold more slashes."
    return made


_TOKENIZER_REFUSALS = (*WITH_KEY, errors.ModelNotAllowed, errors.ModelNotFound, *_BY_THE_ENGINE)


def _tokenize(root: str) -> Json:
    return operation(
        _name("tokenize", root),
        "The token ids of a text",
        json_reply("TokenizeReply", "The ids."),
        (*WITH_BODY, *_TOKENIZER_REFUSALS),
        body="TokenizeRequest",
    )


def _detokenize(root: str) -> Json:
    return operation(
        _name("detokenize", root),
        "The text of token ids",
        json_reply("DetokenizeReply", "The text."),
        (*WITH_BODY, *_TOKENIZER_REFUSALS),
        body="DetokenizeRequest",
    )


def _tokenizer_info(root: str) -> Json:
    done = json_reply("TokenizerInfo", "The special tokens and the chat template.")
    name, summary = _name("tokenizerInfo", root), "The special tokens of a model"
    refusals = (errors.BadRequest, *_TOKENIZER_REFUSALS)
    made = operation(name, summary, done, refusals)
    made["parameters"] = [
        {
            "name": "model",
            "in": "query",
            "description": "A local model; absent or empty: the first.",
            "schema": {"type": "string"},
        }
    ]
    return made


def operation(
    name: str,
    summary: str,
    done: Json,
    refusals: Sequence[type[AndthenError]],
    *,
    security: Sequence[Json] = _KEY,
    body: str | None = None,
) -> Json:
    """An operation that answers with `done`, or with one of `refusals`; `body` names the schema of what it takes."""
    made: Json = {
        "operationId": name,
        "summary": summary,
        "security": security,
        "responses": {"200": done} | _refusals((*refusals, *_ANYWHERE)),
    }
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body}"}
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return made


def _refusals(kinds: Sequence[type[AndthenError]]) -> Json:
    """By status; each says which codes it may have, and when."""
    replies: Json = {}
    for kind in sorted(kinds, key=lambda kind: kind.status):
        said = f"`{kind.code}`: {kind.__doc__}"
        known = replies.get(str(kind.status))
        if known is None:
            replies[str(kind.status)] = json_reply("ErrorReply", said)
        else:
            known["description"] += " " + said
    for reply in replies.values():
        reply["headers"] = {"x-should-retry": _header("Whether the same request may succeed later.")}
    return replies


def json_reply(schema: str, description: str) -> Json:
    """A reply in JSON, of a schema of this name."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _header(description: str) -> Json:
    return {"description": description, "schema": {"type": "string"}}


def _name(verb: str, path: str) -> str:
    """An operation's id, one for each path that leads there."""
    return verb + "".join(part.title() for part in path.split("/"))


def _distinct(attribute: str) -> list[str]:
    return sorted({getattr(kind, attribute) for kind in errors.tree()})
