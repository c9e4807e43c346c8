"""One request → the calls it takes, and their events → those of the request. Pure: another makes the calls.

A caller's request is spread over parts, one for each call: over the prompts of a list, over the candidates of `n` and
`best_of`, as the plan says. What the calls bring is fed back part by part, in any order, and comes out renumbered, with
the prompt in front where it is to be echoed, cut at the stop sequences, with offsets from the prompt's start, ranked
where best_of is chosen here, and with the sum of all usage last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from andthen.contract.errors import AndthenError, ReplyTooLarge, UpstreamGarbled, UpstreamRefused
from andthen.contract.events import Counted, Event, Finished, PromptScored, Text, Token, Usage, total
from andthen.contract.request import CompletionRequest, Prompt
from andthen.contract.text import Offsets, rank, written_bytes
from andthen.plan.bounds import asked_tokens, bounded, most_text_bytes, most_tokens, reserved_prompt_tokens
from andthen.plan.candidate import Candidate
from andthen.plan.plan import Plan

_BYTES_PER_TOKEN = 4
"""To estimate by, where nobody counts: the usual ratio of English text."""


class Part(Struct, frozen=True):
    """One call's share of a request."""

    number: int
    prompt: int
    """The number of its first prompt, in the whole request."""
    candidate: int
    """The number of its first candidate."""
    request: CompletionRequest
    """What the call asks: `given` names the fields to send."""
    streams: bool
    """The reply is wanted as it is made."""


def parts(request: CompletionRequest, plan: Plan) -> tuple[Part, ...]:
    """The calls that a request takes, in the order in which to begin them."""
    if plan.calls_nobody:
        return ()
    prompts: list[tuple[int, tuple[Prompt, ...]]] = [(i, (prompt,)) for i, prompt in enumerate(request.prompts)]
    if not plan.splits_prompts:
        prompts = [(0, request.prompts)]
    firsts = range(_count(request, plan)) if plan.splits_candidates else (0,)
    streams = (request.stream or plan.scans) and not plan.scores_prompt
    return tuple(
        Part(number, prompt, first, _single(request, plan, own, first), streams)
        for number, ((prompt, own), first) in enumerate(itertools.product(prompts, firsts))
    )


def _count(request: CompletionRequest, plan: Plan) -> int:
    """Candidates for each prompt that calls bring."""
    return request.best_of if plan.ranks else request.n


def _single(request: CompletionRequest, plan: Plan, prompts: tuple[Prompt, ...], first: int) -> CompletionRequest:
    """What one call asks."""
    n = 1 if plan.splits_candidates else _count(request, plan)
    sends = set(plan.sends) - ({"n", "best_of"} if plan.splits_candidates or plan.ranks else set())
    if n > 1:
        sends.add("n")
    if not plan.native_stops:
        sends.discard("stop")
    return msgspec.structs.replace(
        request,
        prompts=prompts,
        n=n,
        best_of=n if plan.splits_candidates or plan.ranks else request.best_of,
        seed=None if request.seed is None else _wrapped(request.seed + first),
        stop=request.stop[: plan.native_stops],
        echo=plan.scores_prompt,
        logprobs=0 if request.logprobs is None and "logprobs" in sends else request.logprobs,
        max_tokens=request.max_tokens or plan.least_tokens,
        given=tuple(sorted(sends)),
        ignored=(),
    )


def _wrapped(seed: int) -> int:
    """In the range of int64, as candidates' seeds are counted."""
    return (seed + 2**63) % 2**64 - 2**63


class Spread:
    """A request under way.

    Args:
        request: the caller's.
        plan: what was decided for the model that answers.
    """

    def __init__(self, request: CompletionRequest, plan: Plan) -> None:
        self.parts = parts(request, plan)
        self._request = request
        self._plan = plan
        self._count = _count(request, plan)
        self._shown = [False] * len(request.prompts)
        self._candidates = [[self._candidate(prompt) for _ in range(self._count)] for prompt in request.prompts]
        self._begun: set[int] = set()
        self._fed: set[int] = set()
        self._prompt_tokens: dict[int, int] = {}
        """By part, as told before the text."""
        self._over: set[int] = set()
        """The parts of which a candidate is done."""
        self._usage: dict[int, Usage] = {}
        self._too_large: set[int] = set()
        """The parts whose reply is far larger than what was asked."""

    def _candidate(self, prompt: Prompt) -> Candidate:
        request = self._request
        return Candidate(
            request.stop,
            prompt=prompt if isinstance(prompt, str) else "",
            min_tokens=request.min_tokens,
            shows_tokens=request.logprobs is not None,
            keeps_nothing=request.max_tokens == 0,
        )

    def begin(self, part: Part) -> None:
        """Its call is made: from here on it counts."""
        self._begun.add(part.number)

    def feed(self, part: Part, events: list[Event]) -> list[Event]:
        """Takes what a call brought; returns what that is for the caller.

        Raises:
            UpstreamGarbled: it has choices that were not asked.
            ReplyTooLarge: it has far more text than was asked.
            UpstreamRefused: it lacks log-probabilities that were asked.
        """
        if events:
            self._fed.add(part.number)
        shown: list[Event] = []
        for event in events:
            if isinstance(event, Usage):
                self._usage[part.number] = event
            elif isinstance(event, PromptScored):
                event = _believed(event, part.request)
                self._prompt_tokens[part.number] = self._prompt_tokens.get(part.number, 0) + event.prompt_tokens
                shown += self._show(part.prompt + event.prompt, event)
            else:
                shown += self._take(part, event)
        return shown

    def _take(self, part: Part, event: Text | Finished) -> list[Event]:
        prompt, number = part.prompt + event.prompt, part.candidate + event.candidate
        if event.candidate >= part.request.n:
            raise UpstreamGarbled("The vendor told more choices than were asked: send the request again.")
        shown = [] if self._shown[prompt] else [*self._show(prompt)]
        one = self._candidates[prompt][number]
        if isinstance(event, Text) and event.generated > most_tokens(part.request):
            event = msgspec.structs.replace(event, generated=len(event.tokens))  # told, and not to be believed
        if one.take(event) if isinstance(event, Text) else one.finish(event.reason, event.generated):
            self._over.add(part.number)
            shown += self._finished(prompt, number)
        elif not (self._plan.ranks or one.done):
            shown += self._said(prompt, number, one)
        if one.seen_bytes > most_text_bytes(part.request) or one.seen_tokens > most_tokens(part.request):
            raise ReplyTooLarge(f"The vendor's reply has far more text than {part.request.max_tokens} tokens.")
        return shown

    def close(self, part: Part) -> None:
        """Its reply is complete.

        Raises:
            UpstreamGarbled: it left a candidate unfinished.
        """
        if not all(one.done for one in self._of(part)):
            raise UpstreamGarbled("The vendor told fewer choices than were asked: send the request again.")

    def fail(self, part: Part, error: AndthenError) -> None:
        """Its call failed, and is not made again."""
        if isinstance(error, ReplyTooLarge):
            self._too_large.add(part.number)
        for one in self._of(part):
            one.lose()

    def untouched(self, part: Part) -> bool:
        """Whether its call has brought nothing yet, so that another may take its place."""
        return part.number not in self._fed

    def wanted(self, part: Part) -> bool:
        """Whether its call has anything more to bring: text, or its usage after the end. Not, once all its candidates
        are done and the vendor goes on with one that ended here."""
        if part.number not in self._over:
            return True
        everyone = list(self._of(part))
        return not all(one.done for one in everyone) or all(one.ended for one in everyone)

    def end(self) -> list[Event]:
        """All parts are closed: the last event."""
        shown: list[Event] = [event for prompt in range(len(self._shown)) for event in self._show(prompt)]
        if self._plan.calls_nobody:
            for prompt, candidate in itertools.product(range(len(self._shown)), range(self._request.n)):
                shown.append(Finished(prompt, candidate, "length"))
        return [*shown, self.usage()]

    def usage(self) -> Usage:
        """The sum of what all calls begun have processed, so far as it is known."""
        return total([self.usage_of(part) for part in self.parts if part.number in self._begun])

    def usage_of(self, part: Part) -> Usage:
        """What a call has processed: as the vendor told it, else by the tokens that were seen, else by their bytes.
        Zeros beside a text tell nothing: gateways put them for what they do not know. Never more than it can have come
        to; and what was asked, where the reply is far larger than that."""
        usage = self._usage_of(part)
        if part.number in self._too_large:
            prompt_tokens = min(usage.prompt_tokens, reserved_prompt_tokens(part.request))
            return Usage(prompt_tokens, asked_tokens(part.request), source="bounded")
        return bounded(usage, part.request)

    def _usage_of(self, part: Part) -> Usage:
        told = self._usage.get(part.number)
        if told is not None and (told.completion_tokens or not any(one.seen_bytes for one in self._of(part))):
            return told
        source: Counted = "counted"
        completion_tokens = 0
        prompt_tokens = self._prompt_tokens.get(part.number, 0)
        if not prompt_tokens:
            prompt_tokens = sum(map(_estimated_tokens, part.request.prompts))
            prompt_tokens += len(part.request.prompts) * _estimated_tokens(part.request.suffix or "")
            if any(isinstance(prompt, str) for prompt in part.request.prompts):
                source = "estimated"
        for one in self._of(part):
            completion_tokens += one.generated or _estimated_tokens(one.seen_bytes)
            if one.seen_bytes and not one.generated:
                source = "estimated"
        return Usage(prompt_tokens, completion_tokens, source=source)

    def _of(self, part: Part) -> Iterator[Candidate]:
        for prompt in range(part.prompt, part.prompt + len(part.request.prompts)):
            yield from self._candidates[prompt][part.candidate : part.candidate + part.request.n]

    def _show(self, prompt: int, told: PromptScored | None = None) -> Iterator[Event]:
        """The prompt's own event, once, before all others of it."""
        if self._shown[prompt]:
            return
        self._shown[prompt] = True
        own = self._request.prompts[prompt]
        text = own if isinstance(own, str) else ""
        tokens: tuple[Token, ...] = ()
        if told is not None and self._plan.scores_prompt:
            pieces = own.encode() if isinstance(own, str) else b"".join(written_bytes(t.text) for t in told.tokens)
            text, tokens = own if isinstance(own, str) else told.text, _placed(told.tokens)
            for one in self._candidates[prompt]:
                one.follow(text, pieces, shown=self._request.echo)
        shows = self._request.echo
        yield PromptScored(
            prompt,
            prompt_tokens=0 if told is None else told.prompt_tokens,
            cached_tokens=0 if told is None else told.cached_tokens,
            text=text if shows else "",
            tokens=tokens if shows and self._request.logprobs is not None else (),
        )

    def _said(self, prompt: int, number: int, one: Candidate) -> tuple[Text, ...]:
        text, tokens, generated = one.say()
        return (Text(prompt, number, text, tokens, generated),) if text or tokens or generated else ()

    def _finished(self, prompt: int, number: int) -> Iterator[Event]:
        everyone = self._candidates[prompt]
        self._check(everyone[number])
        if not self._plan.ranks:
            yield from self._told(prompt, number, everyone[number])
        elif all(one.done for one in everyone):
            best = rank([one.mean_logprob for one in everyone])[: self._request.n]
            for place, chosen in enumerate(best):
                yield from self._told(prompt, place, everyone[chosen])

    def _told(self, prompt: int, number: int, one: Candidate) -> Iterator[Event]:
        yield from self._said(prompt, number, one)
        yield Finished(prompt, number, one.reason)

    def _check(self, one: Candidate) -> None:
        """Asked for log-probabilities, some servers answer without, in silence."""
        asked = self._plan.ranks or self._request.logprobs is not None
        if asked and one.seen_bytes and not one.scored and not self._request.max_tokens == 0:
            # No breach of its format: another try won't help, and the model is as good as ever for other requests.
            raise UpstreamRefused("The vendor told no log-probabilities, though they were asked: try another model.")


def _believed(event: PromptScored, request: CompletionRequest) -> PromptScored:
    """With no more tokens than the prompts can have."""
    told = bounded(Usage(event.prompt_tokens, 0, event.cached_tokens), request)
    return msgspec.structs.replace(event, prompt_tokens=told.prompt_tokens, cached_tokens=told.cached_tokens or 0)


def _placed(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """The prompt's tokens with their offsets."""
    offsets = Offsets()
    return tuple(msgspec.structs.replace(token, offset=offsets.feed(written_bytes(token.text))) for token in tokens)


def _estimated_tokens(prompt: Prompt | int) -> int:
    """Of a text or its size in bytes; ids are tokens themselves."""
    if isinstance(prompt, tuple):
        return len(prompt)
    size_bytes = len(prompt.encode()) if isinstance(prompt, str) else prompt
    return math.ceil(size_bytes / _BYTES_PER_TOKEN)
