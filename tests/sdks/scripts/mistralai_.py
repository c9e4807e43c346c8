"""PyPI `mistralai`, at its own address."""

import httpx2
from layout import tokens
from mistralai.client import Mistral
from replay import Fields, play


def mistralai(exchange, transport, heard, said) -> None:
    client = Mistral(exchange.key, client=httpx2.Client(transport=transport))
    api = client.fim if "/fim/" in exchange.url else client.chat
    method = api.stream if exchange.streams else api.complete
    fields = Fields(method, exchange.body, ("retries", "server_url", "timeout_ms", "http_headers"))
    said += fields.against
    told = method(**fields.named)
    for whole in (event.data for event in told) if exchange.streams else [told]:
        heard.whole(whole)
        for choice in whole.choices:
            message = choice.delta if exchange.streams else choice.message
            heard.add(choice.index, text_of(message.content), choice.finish_reason, tokens(choice))
        if whole.usage:
            heard.used(whole.usage.prompt_tokens, whole.usage.completion_tokens)


def text_of(content) -> str:
    if isinstance(content, list):
        return "".join(part.text for part in content if part.type == "text")
    return content or ""


play(mistralai, httpx2)
