"""PyPI `cohere`, at its own address."""

import httpx
from cohere import ClientV2
from cohere.v2.client import V2Client
from replay import Fields, play


def cohere(exchange, transport, heard, said) -> None:
    client = ClientV2(exchange.key, httpx_client=httpx.Client(transport=transport), max_retries=0)
    method = client.chat_stream if exchange.streams else client.chat
    typed = V2Client.chat_stream if exchange.streams else V2Client.chat
    fields = Fields(typed, {name: value for name, value in exchange.body.items() if name != "stream"})
    said += fields.against
    rest = {"additional_body_parameters": fields.rest} if fields.rest else None
    told = method(**fields.named, request_options=rest)
    if exchange.streams:
        for event in told:
            heard.whole(event)
            hear_event(event, heard)
    else:
        heard.whole(told)
        for block in told.message.content or []:
            heard.add(text=block.text if block.type == "text" else None)
        heard.add(reason=told.finish_reason, tokens=tokens(told.logprobs or []))
        hear_usage(told.usage, heard)


def hear_event(event, heard) -> None:
    match event.type:
        case "content-delta":
            logprobs = getattr(event, "logprobs", None)
            heard.add(text=event.delta.message.content.text, tokens=tokens([logprobs] if logprobs else []))
        case "message-end":
            heard.add(reason=event.delta.finish_reason)
            hear_usage(event.delta.usage, heard)


def tokens(items) -> list:
    return [(item.text, item.logprobs[0]) for item in items if item.logprobs and len(item.logprobs) == 1]


def hear_usage(usage, heard) -> None:
    if usage is not None and usage.tokens is not None:
        heard.used(usage.tokens.input_tokens, usage.tokens.output_tokens, usage.cached_tokens)


play(cohere, httpx)
