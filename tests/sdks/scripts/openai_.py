"""PyPI `openai`, at whatever address is asked."""

import httpx2
from layout import ask
from openai import OpenAI
from replay import play


def openai(exchange, transport, heard, said) -> None:
    http = httpx2.Client(transport=transport)
    address = exchange.url.removesuffix("/completions").removesuffix("/chat")
    client = OpenAI(api_key=exchange.key, base_url=address, http_client=http, max_retries=0)
    ask(client, exchange, heard, said)


play(openai, httpx2)
