"""PyPI `groq`, at its own address."""

import httpx
from groq import Groq
from layout import ask
from replay import play


def groq(exchange, transport, heard, said) -> None:
    http = httpx.Client(transport=transport)
    client = Groq(api_key=exchange.key, http_client=http, max_retries=0)
    ask(client, exchange, heard, said)


play(groq, httpx)
