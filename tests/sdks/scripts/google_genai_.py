"""PyPI `google-genai`, at its own addresses: with a key, and with a project and a token."""

import re

import httpx2
from google.genai import Client, types
from google.oauth2.credentials import Credentials
from replay import against, play

PROJECT = re.compile(r"/projects/([^/]+)/locations/([^/]+)/")
MODEL = re.compile(r"/models/([^:]+):")


def google_genai(exchange, transport, heard, said) -> None:
    version = exchange.url.split("/")[3]
    options = types.HttpOptions(httpx_client=httpx2.Client(transport=transport), api_version=version)
    if found := PROJECT.search(exchange.url):
        project, location = found.groups()
        token = Credentials(token=exchange.key)
        client = Client(vertexai=True, project=project, location=location, credentials=token, http_options=options)
    else:
        client = Client(api_key=exchange.key, http_options=options)
    body = dict(exchange.body)
    contents, config = body.pop("contents"), {**body.pop("generationConfig", {}), **body}
    said += [f"config{complaint}" for complaint in against(types.GenerateContentConfig, config)]
    method = client.models.generate_content_stream if exchange.streams else client.models.generate_content
    told = method(model=MODEL.search(exchange.url).group(1), contents=contents, config=config)
    for whole in told if exchange.streams else [told]:
        heard.whole(whole)
        for candidate in whole.candidates or []:
            hear(candidate, heard)
        if used := whole.usage_metadata:
            thoughts = used.thoughts_token_count
            completion = used.candidates_token_count
            if thoughts is not None:
                completion = (completion or 0) + thoughts
            heard.used(used.prompt_token_count, completion, used.cached_content_token_count, thoughts)


def hear(candidate, heard) -> None:
    parts = (candidate.content and candidate.content.parts) or []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    found = candidate.logprobs_result
    chosen = (found and found.chosen_candidates) or []
    tokens = [(token.token, token.log_probability) for token in chosen]
    reason = candidate.finish_reason and candidate.finish_reason.value
    heard.add(candidate.index or 0, text, reason, tokens)


def in_json(body):
    """Protocol Buffers' names as they are usually written in JSON, where both are taken."""
    if isinstance(body, list):
        return [in_json(part) for part in body]
    if not isinstance(body, dict):
        return body
    return {re.sub(r"_(.)", lambda found: found[1].upper(), name): in_json(value) for name, value in body.items()}


play(google_genai, httpx2, in_json)
