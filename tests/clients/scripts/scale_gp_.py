"""PyPI `scale-gp`, sync and async, stream and not, told where to go by `SGP_CLIENT_BASE_URL` alone."""

import asyncio
import os

import scale_gp
from scale_gp import AsyncSGPClient, SGPClient

ASK = {"model": os.environ["MODEL"], "prompt": "Once upon a time", "max_tokens": 12, "seed": 7}


def check(completion) -> str:
    assert completion.object == "text_completion"
    assert completion.model == ASK["model"]
    assert completion.id.startswith("cmpl-")
    (choice,) = completion.choices
    assert choice.index == 0
    assert choice.finish_reason in {"stop", "length"}
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert 1 <= completion.usage.completion_tokens <= ASK["max_tokens"]
    return choice.text


def check_chunks(chunks) -> str:
    assert len({chunk.id for chunk in chunks}) == 1
    *said, last = [choice for chunk in chunks for choice in chunk.choices]
    assert last.finish_reason in {"stop", "length"}
    assert all(choice.finish_reason is None for choice in said)
    return "".join(choice.text for choice in [*said, last])


def sync() -> str:
    client = SGPClient()
    text = check(client.beta.completions.create(**ASK))
    with client.beta.completions.create(**ASK, stream=True) as stream:
        assert check_chunks(list(stream)) == text
    try:
        client.beta.completions.create(**ASK | {"max_tokens": -1})
    except scale_gp.BadRequestError as error:
        assert error.body["error"]["param"] == "max_tokens"
    else:
        raise AssertionError("max_tokens=-1 passed")
    try:
        SGPClient(api_key="no-such-key").beta.completions.create(**ASK)
    except scale_gp.AuthenticationError as error:
        assert error.status_code == 401
    else:
        raise AssertionError("an unknown key passed")
    return text


async def asynchronous() -> str:
    async with AsyncSGPClient() as client:
        text = check(await client.beta.completions.create(**ASK))
        stream = await client.beta.completions.create(**ASK, stream=True)
        assert check_chunks([chunk async for chunk in stream]) == text
    return text


assert sync() == asyncio.run(asynchronous())
