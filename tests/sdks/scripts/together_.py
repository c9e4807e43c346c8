"""PyPI `together`, at its own address."""

import httpx
from layout import ask
from replay import play
from together import Together


def together(exchange, transport, heard, said) -> None:
    http = httpx.Client(transport=transport)
    client = Together(api_key=exchange.key, http_client=http, max_retries=0)
    ask(client, exchange, heard, said)


play(together, httpx)
