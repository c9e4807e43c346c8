"""PyPI `scale-gp-beta`, which posts the same body to `/v5/completions`."""

import asyncio
import os

import scale_gp_beta
from scale_gp_beta import AsyncSGPClient, SGPClient

ASK = {"model": os.environ["MODEL"], "prompt": "Once upon a time", "max_tokens": 12, "seed": 7, "logprobs": 2}


def sync() -> str:
    client = SGPClient()
    completion = client.completions.create(**ASK)
    (choice,) = completion.choices
    assert choice.finish_reason in {"stop", "length"}
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == completion.usage.completion_tokens
    with client.completions.create(**ASK, stream=True) as stream:
        chunks = list(stream)
    assert "".join(part.text for chunk in chunks for part in chunk.choices) == choice.text
    try:
        client.completions.create(**ASK | {"model": "local/no-such-model"})
    except scale_gp_beta.NotFoundError as error:
        assert error.body["error"]["code"] == "model_not_found"
    else:
        raise AssertionError("an unknown model passed")
    return choice.text


async def asynchronous() -> str:
    async with AsyncSGPClient() as client:
        stream = await client.completions.create(**ASK, stream=True)
        streamed = "".join([part.text async for chunk in stream for part in chunk.choices])
        completion = await client.completions.create(**ASK)
        assert completion.choices[0].text == streamed
    return streamed


assert sync() == asyncio.run(asynchronous())
