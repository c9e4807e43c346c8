"""Clients of one maker's make: chat and text completions in OpenAI's layout."""

from replay import Exchange, Fields, Heard

NOT_FOR_BODIES = ("extra_headers", "extra_query", "extra_body", "timeout")


def ask(client, exchange: Exchange, heard: Heard, said: list[str]) -> None:
    chat = exchange.url.endswith("/chat/completions")
    method = client.chat.completions.create if chat else client.completions.create
    fields = Fields(method, exchange.body, NOT_FOR_BODIES)
    said += fields.against
    told = method(**fields.named, extra_body=fields.rest)
    for whole in told if exchange.streams else [told]:
        hear(whole, heard)


def hear(told, heard: Heard) -> None:
    heard.whole(told)
    for place, choice in enumerate(told.choices):
        heard.add(
            getattr(choice, "index", place), text_of(choice), getattr(choice, "finish_reason", None), tokens(choice)
        )
    groq = getattr(told, "x_groq", None)
    usage = getattr(told, "usage", None) or getattr(groq, "usage", None)
    if usage is not None:
        of_prompt = getattr(usage, "prompt_tokens_details", None)
        of_completion = getattr(usage, "completion_tokens_details", None)
        cached = getattr(of_prompt, "cached_tokens", None)
        reasoning = getattr(of_completion, "reasoning_tokens", None)
        heard.used(usage.prompt_tokens, usage.completion_tokens, cached, reasoning)


def text_of(choice) -> str | None:
    said = getattr(choice, "delta", None) or getattr(choice, "message", None)
    return choice.text if said is None else said.content


def tokens(choice) -> list:
    logprobs = getattr(choice, "logprobs", None)
    if not logprobs or isinstance(logprobs, float):
        return []
    if getattr(logprobs, "content", None) is None:
        return list(zip(logprobs.tokens or [], logprobs.token_logprobs or [], strict=True))
    named = [token if isinstance(token, dict) else token.model_dump() for token in logprobs.content]
    return [(token["token"], token["logprob"]) for token in named]
