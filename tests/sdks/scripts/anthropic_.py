"""PyPI `anthropic`, at its own address."""

import httpx2
from anthropic import Anthropic
from replay import Fields, play


def anthropic(exchange, transport, heard, said) -> None:
    http = httpx2.Client(transport=transport)
    address = exchange.url.removesuffix("/v1/messages")
    client = Anthropic(api_key=exchange.key, base_url=address, http_client=http, max_retries=0)
    method = client.messages.create
    fields = Fields(method, exchange.body, ("extra_headers", "extra_query", "extra_body", "timeout"))
    said += fields.against
    told = method(**fields.named, extra_body=fields.rest)
    if exchange.streams:
        for event in told:
            heard.whole(event)
            hear_event(event, heard)
    else:
        heard.whole(told)
        for block in told.content:
            heard.add(text=block.text if block.type == "text" else None)
        heard.add(reason=told.stop_reason)
        hear_usage(told.usage, heard)


def hear_event(event, heard) -> None:
    match event.type:
        case "message_start":
            hear_usage(event.message.usage, heard)
        case "content_block_start" if event.content_block.type == "text":
            heard.add(text=event.content_block.text)
        case "content_block_delta" if event.delta.type == "text_delta":
            heard.add(text=event.delta.text)
        case "message_delta":
            heard.add(reason=event.delta.stop_reason)
            hear_usage(event.usage, heard)


def hear_usage(usage, heard) -> None:
    """A stream's later numbers replace its earlier ones, one by one."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    for name in names:
        if (count := getattr(usage, name, None)) is not None:
            heard.counts[name] = count
    details = getattr(usage, "output_tokens_details", None)
    prompt = sum(heard.counts.get(name, 0) for name in names[:3])
    cached = heard.counts.get("cache_read_input_tokens")
    heard.used(prompt, heard.counts.get("output_tokens"), cached, getattr(details, "thinking_tokens", None))


play(anthropic, httpx2)
