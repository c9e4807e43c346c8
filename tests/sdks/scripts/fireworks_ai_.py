"""PyPI `fireworks-ai`, at its own address."""

import httpx
from fireworks import Fireworks
from layout import ask
from replay import play


def fireworks(exchange, transport, heard, said) -> None:
    http = httpx.Client(transport=transport)
    client = Fireworks(api_key=exchange.key, http_client=http, max_retries=0)
    ask(client, exchange, heard, said)


play(fireworks, httpx)
