"""A request → a job: prompts become tokens, and what the model can't take is refused before it costs anything.

Runs beside the engine's thread; touches nothing that steps touch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from andthen.contract.errors import BadRequest, ContextLengthExceeded, InternalError, UnsupportedParameter
from andthen.contract.request import CompletionRequest, Prompt
from andthen.engine.job import Candidate, Job, PromptJob
from andthen.engine.llama import Model
from andthen.engine.messages import Submit
from andthen.engine.sampling import Sampler
from andthen.engine.sequence import Group
from andthen.engine.text import CandidateText, PromptText


def prepare(
    submit: Submit,
    link: int,
    vocabulary: Model,
    context: int,
    outbox: list[Job],
    is_wanted: Callable[[], bool] = lambda: True,
) -> Job | None:
    """The job of a request, ready to be scheduled; None where nobody waits for it any more.

    Args:
        submit: the request and its owner.
        link: who asked.
        vocabulary: the model's, for its tokens.
        context: the longest sequence that the model's pool takes, in tokens.
        outbox: where the job's events are announced.
        is_wanted: asked before each prompt.

    Raises:
        BadRequest: a token id that the vocabulary does not have, or a prompt that does not fit the context.
    """
    request = submit.request
    _check_ids("logit_bias", request.logit_bias, vocabulary)
    _check_ids("stop_token_ids", request.stop_token_ids, vocabulary)
    job = Job(link, submit.job, request, outbox)
    for index, prompt in enumerate(request.prompts):
        if not is_wanted():
            return None
        job.prompts.append(_prompt_job(job, submit.owner, index, prompt, vocabulary, context))
    return job


def tokenize(vocabulary: Model, context: int, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """The ids that a prompt of this text becomes.

    Raises:
        ContextLengthExceeded: the text is so long that no tokens of it could fit the context.
    """
    _check_size("prompt", text, vocabulary, context)
    tokens = _ids(vocabulary, text, add_special=add_special, parse_special=parse_special)
    return tokens or (_document_start(vocabulary) if add_special else [])


def detokenize(vocabulary: Model, context: int, tokens: Sequence[int]) -> str:
    """The text of token ids, control tokens included; bytes that are no whole character become U+FFFD.

    Raises:
        BadRequest: an id that the vocabulary does not have.
        ContextLengthExceeded: more ids than the context holds.
    """
    if len(tokens) > context:
        raise ContextLengthExceeded(
            f"`tokens` has {len(tokens)} ids, and this model's context is {context}: send fewer.", param="tokens"
        )
    _check_ids("tokens", tokens, vocabulary)
    return b"".join(vocabulary.pieces[token] for token in tokens).decode(errors="replace")


def _ids(vocabulary: Model, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    tokens: list[int] = vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special).tolist()
    return tokens


def _prompt_job(job: Job, owner: str, index: int, prompt: Prompt, vocabulary: Model, context: int) -> PromptJob:
    request = job.request
    tokens, own = _tokens(request, prompt, vocabulary, context)
    _check_length(len(tokens), request, context)
    group = Group(
        owner,
        np.asarray(tokens, np.int32),
        max_tokens=request.max_tokens,
        candidates=request.best_of if request.max_tokens else 0,
        scored=request.echo and request.logprobs is not None,
    )
    text = PromptText(prompt if isinstance(prompt, str) else None, own, vocabulary.pieces)
    made = PromptJob(job, index, text, group, added=len(tokens) - len(own) if request.suffix is None else 0)
    seed = request.seed if request.seed is not None else secrets.randbits(64)
    for sequence in group.sequences:
        sampler = Sampler(
            request,
            seed=seed + sequence.number,
            vocab_size=vocabulary.vocab_size,
            end_tokens=vocabulary.end_tokens,
            prompt=group.tokens,
        )
        says = CandidateText(
            text,
            request.stop,
            echo=request.echo,
            with_tokens=request.logprobs is not None,
            min_tokens=request.min_tokens,
        )
        made.candidates.append(Candidate(made, sequence, sampler, says))
    return made


def _tokens(
    request: CompletionRequest, prompt: Prompt, vocabulary: Model, context: int
) -> tuple[list[int], list[int] | tuple[int, ...]]:
    """What the model reads, and the part of it that the caller wrote."""
    if request.suffix is not None:
        return _infill(prompt, request.suffix, vocabulary, context)
    if not isinstance(prompt, str):
        _check_ids("prompt", prompt, vocabulary)
        return list(prompt), prompt
    _check_size("prompt", prompt, vocabulary, context)
    tokens = _ids(vocabulary, prompt, add_special=True, parse_special=request.parse_special)
    if not tokens:
        return _document_start(vocabulary), []
    return tokens, tokens[1:] if vocabulary.add_bos and tokens[0] == vocabulary.bos else tokens


def _infill(
    prompt: Prompt, suffix: str, vocabulary: Model, context: int
) -> tuple[list[int], list[int] | tuple[int, ...]]:
    """A gap as the model has learnt to read it, the suffix after the prefix or before it (Bavarian et al. 2022,
    arXiv:2207.14255: PSM and SPM), without what the paper leaves out of SPM: both parts keep their marks."""
    if vocabulary.fill_in_the_middle is None:
        raise UnsupportedParameter("This model has no fill-in-the-middle tokens: leave `suffix` out.", param="suffix")
    before, after, middle = vocabulary.fill_in_the_middle
    prefix: list[int] | tuple[int, ...]
    if isinstance(prompt, str):
        _check_size("prompt", prompt, vocabulary, context)
        prefix = _ids(vocabulary, prompt, add_special=False, parse_special=False)
        start = [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []
    else:
        _check_ids("prompt", prompt, vocabulary)
        prefix, start = prompt, []
    _check_size("suffix", suffix, vocabulary, context)
    rest = _ids(vocabulary, suffix, add_special=False, parse_special=False)
    if vocabulary.suffix_first:
        return [*start, after, *rest, before, *prefix, middle], prefix
    return [*start, before, *prefix, after, *rest, middle], prefix


def _document_start(vocabulary: Model) -> list[int]:
    start = vocabulary.bos if vocabulary.bos is not None else vocabulary.eos
    if start is None:
        raise InternalError("This model has no token that starts a document: send a prompt that is not empty.")
    return [start]


def _check_ids(param: str, ids: Iterable[int], vocabulary: Model) -> None:
    strange = next((id for id in ids if not 0 <= id < vocabulary.vocab_size), None)
    if strange is not None:
        raise BadRequest(
            f"`{param}` has token id {strange}, which is outside this model's vocabulary: ids are 0 to "
            f"{vocabulary.vocab_size - 1}.",
            param=param,
        )


def _check_size(param: str, text: str, vocabulary: Model, context: int) -> None:
    """Spares the tokenizer a text that can't fit: no token covers more bytes than the longest."""
    least = len(text.encode()) // vocabulary.longest_piece
    if least > context:
        raise ContextLengthExceeded(
            f"`{param}` has at least {least} tokens, and this model's context is {context}: shorten it.", param=param
        )


def _check_length(length: int, request: CompletionRequest, context: int) -> None:
    if length > context:
        what = "The prompt" if request.suffix is None else "The prompt with its suffix"
        raise ContextLengthExceeded(
            f"{what} has {length} tokens, and this model's context is {context}: shorten it.", param="prompt"
        )
    if length + request.max_tokens > context:
        raise ContextLengthExceeded(
            f"The prompt's {length} tokens and {request.max_tokens} more are beyond this model's context of {context}: "
            f"`max_tokens` can be at most {context - length}.",
            param="max_tokens",
        )
