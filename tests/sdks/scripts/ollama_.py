"""PyPI `ollama`, at its own address."""

import httpx
from ollama import Client, Options
from replay import Fields, against, play


def ollama(exchange, transport, heard, said) -> None:
    client = Client(transport=transport, headers={"authorization": f"Bearer {exchange.key}"})
    fields = Fields(client.generate, exchange.body)
    said += fields.against
    options = exchange.body.get("options", {})
    said += [f"options.{name}: not named" for name in options.keys() - Options.model_fields.keys()]
    said += [f"options{complaint}" for complaint in against(Options, options)]
    told = client.generate(**fields.named)
    for whole in told if exchange.streams else [told]:
        heard.whole(whole)
        tokens = [(token.token, token.logprob) for token in whole.logprobs or []]
        heard.add(text=whole.response, reason=whole.done_reason, tokens=tokens)
        if whole.done:
            heard.used(whole.prompt_eval_count, whole.eval_count)


play(ollama, httpx)
