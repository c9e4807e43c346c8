"""PyPI `openai` on one base address, which its environment names."""

import os

import openai
from openai import OpenAI

MODEL = os.environ["MODEL"]
client = OpenAI()


def complete(by=client, **fields):
    return by.completions.create(**{"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "seed": 7} | fields)


def refused(kind, **fields):
    """The error that the client raises for a request; it must be exactly of this kind."""
    try:
        complete(**fields)
    except openai.APIStatusError as error:
        assert type(error) is kind, (type(error), kind)
        return error
    raise AssertionError(f"{fields} passed")


def plain_and_streamed() -> None:
    whole = complete(logprobs=2)
    (choice,) = whole.choices
    assert whole.object == "text_completion"
    assert whole.model == MODEL
    assert whole.system_fingerprint
    with client.completions.create(
        model=MODEL,
        prompt="Once upon a time",
        max_tokens=8,
        seed=7,
        logprobs=2,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = stream
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    parts = [part for chunk in chunks for part in chunk.choices]
    assert "".join(part.text for part in parts) == choice.text
    assert [token for part in parts if part.logprobs for token in part.logprobs.tokens] == choice.logprobs.tokens
    assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]


def logprobs() -> None:
    (choice,) = complete(logprobs=5, temperature=0).choices
    told = choice.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    assert told.text_offset[0] == len("Once upon a time")
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert 5 <= len(top) <= 6
        assert top[token] == logprob == max(top.values())
    assert complete(logprobs=0).choices[0].logprobs.top_logprobs is None
    assert complete().choices[0].logprobs is None


def echo() -> None:
    whole = complete(echo=True, logprobs=1, max_tokens=0)
    (choice,) = whole.choices
    assert choice.text == "Once upon a time"
    assert choice.finish_reason == "length"
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.text_offset[0] == 0
    assert all(logprob < 0 for logprob in choice.logprobs.token_logprobs[1:])
    assert whole.usage.completion_tokens == 0
    assert complete(echo=True).choices[0].text == "Once upon a time" + complete().choices[0].text


def several() -> None:
    three = complete(n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert [choice.text for choice in three.choices] == [complete(seed=7 + i).choices[0].text for i in range(3)]

    def rank(choice) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    all_five = complete(n=5, logprobs=0)
    best = complete(n=2, best_of=5, logprobs=0)
    wanted = sorted(all_five.choices, key=rank, reverse=True)[:2]
    assert [choice.text for choice in best.choices] == [choice.text for choice in wanted]
    assert best.usage.completion_tokens == all_five.usage.completion_tokens

    prompts = ["Once", "A cat", "The end"]
    listed = complete(prompt=prompts, n=2)
    assert [choice.index for choice in listed.choices] == list(range(6))
    for at, prompt in enumerate(prompts):
        assert listed.choices[2 * at].text == complete(prompt=prompt).choices[0].text


def stops() -> None:
    text = complete(max_tokens=16, temperature=0).choices[0].text
    cut = text[len(text) // 2 :][:2]
    (choice,) = complete(max_tokens=16, temperature=0, stop=[cut]).choices
    assert choice.finish_reason == "stop"
    assert choice.text == text[: text.index(cut)]


def errors() -> None:
    assert refused(openai.BadRequestError, temperature=3).param == "temperature"
    assert refused(openai.BadRequestError, max_tokens=10**6).code == "context_length_exceeded"
    assert refused(openai.BadRequestError, stop=[str(i) for i in range(5)]).param == "stop"
    assert refused(openai.NotFoundError, model="local/no-such-model").code == "model_not_found"
    assert refused(openai.AuthenticationError, by=OpenAI(api_key="no-such-key")).code == "invalid_api_key"


def once() -> None:
    def ask(**fields: object):
        return complete(max_tokens=8, extra_headers={"Idempotency-Key": "once"}, **fields)

    assert ask().model_dump() == ask().model_dump()
    try:
        ask(n=2)
    except openai.ConflictError as error:
        assert error.code == "idempotency_conflict"
    else:
        raise AssertionError("another body under the same Idempotency-Key")


def models() -> None:
    listed = [model.id for model in client.models.list()]
    assert MODEL in listed
    assert client.models.retrieve(MODEL).id == MODEL


for check in (plain_and_streamed, logprobs, echo, several, stops, errors, once, models):
    check()
