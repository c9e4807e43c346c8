"""One request inside the engine: its groups, its candidates, and the events that come of them.

Pure: what was drawn goes in, events come out. A stream's events are given out as they come; otherwise each candidate's
text is one event, at its end. With best_of, a prompt's candidates are held until all are done, ranked, and the best n
renumbered.
"""

from __future__ import annotations

from collections.abc import Sequence as Row

from andthen.contract.events import Alternative, Event, Finished, FinishReason, PromptScored, Text, Token, Usage
from andthen.contract.request import CompletionRequest
from andthen.contract.text import rank
from andthen.engine.sampling import Sampler
from andthen.engine.sequence import Group, Sequence
from andthen.engine.text import CandidateText, PromptText

Top = tuple[Alternative, ...] | None


class Candidate:
    """A sequence with what it says."""

    __slots__ = ("done", "generated", "logprobs", "prompt", "reason", "reported", "sampler", "sequence", "text")

    def __init__(self, prompt: PromptJob, sequence: Sequence, sampler: Sampler, text: CandidateText) -> None:
        self.prompt = prompt
        self.sequence = sequence
        self.sampler = sampler
        self.text = text
        self.generated = 0
        self.reported = 0
        """Generated tokens that events told of."""
        self.logprobs = 0.0
        """Sum over the generated tokens, for best_of's rank."""
        self.done = False
        self.reason: FinishReason = "length"
        """Why it is done, once it is."""

    @property
    def scored(self) -> bool:
        """Whether its tokens' log-probabilities are wanted."""
        return self.prompt.job.scored


class PromptJob:
    """One prompt of a request.

    Args:
        index: its place in the request.
        text: what the caller sees of it.
        group: what the scheduler sees of it.
        added: tokens in front that the caller did not write (BOS).
    """

    def __init__(self, job: Job, index: int, text: PromptText, group: Group, added: int) -> None:
        self.job = job
        self.index = index
        self.text = text
        self.group = group
        self.added = added
        self.candidates: list[Candidate] = []
        self.scores: list[tuple[float, Top]] = []
        """Of the caller's tokens from the second on."""
        self._was_read = False

    def read(self) -> None:
        """The prompt is in the pool and, where that was asked, scored."""
        self._was_read = True
        request = self.job.request
        entries = self.text.entries(self.scores) if request.echo and request.logprobs is not None else ()
        text = self.text.text
        if not self.candidates:
            text += self.text.decoder.flush()  # nobody goes on with a character that the prompt leaves incomplete
        self.scores = []
        self.job.cached_tokens += self.group.cached
        self.job.say(
            PromptScored(
                self.index,
                prompt_tokens=len(self.group.tokens),
                cached_tokens=self.group.cached,
                text=text if request.echo else "",
                tokens=entries,
            )
        )

        if not self.candidates:  # max_tokens is 0
            for number in range(request.n):
                self.job.say(Finished(self.index, number, "length"))
            self.job.close_if_done()

    @property
    def done(self) -> bool:
        return self._was_read and all(candidate.done for candidate in self.candidates)


class Job:
    """One request.

    Args:
        link, number: who asked, and its number there.
        request: what is asked.
        outbox: gets this job when it has events to give out.
    """

    def __init__(self, link: int, number: int, request: CompletionRequest, outbox: list[Job]) -> None:
        self.link = link
        self.number = number
        self.request = request
        self.prompts: list[PromptJob] = []
        self._outbox = outbox
        self._events: list[Event] = []
        self._begun = False
        self._announced = False
        self.cached_tokens = 0
        self.over = False
        self.ahead = 0
        """Generated tokens given out that its reader has not taken."""

    def say(self, event: Event) -> None:
        self._announce()
        self._events.append(event)

    def begin(self) -> None:
        """Its turn has come: told at once, by giving out no events."""
        if not self._begun:
            self._begun = True
            self._announce()

    def take(self) -> list[Event]:
        """The events not yet given out."""
        self._announced = False
        events, self._events = self._events, []
        return events

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._outbox.append(self)

    @property
    def scored(self) -> bool:
        return self.request.logprobs is not None or self.ranked

    @property
    def ranked(self) -> bool:
        return self.request.best_of > self.request.n

    def advance(self, candidate: Candidate, token: int, piece: bytes, scores: tuple[float, Top]) -> bool:
        """The candidate goes on by one token; True if that completes a stop."""
        candidate.generated += 1
        candidate.logprobs += scores[0]
        return candidate.text.feed(token, piece, *scores)

    def end(self, candidate: Candidate, token: int, piece: bytes, scores: tuple[float, Top]) -> None:
        """The candidate's last token was an end token."""
        candidate.generated += 1
        candidate.logprobs += scores[0]
        candidate.text.feed_end(token, piece, *scores)

    def finish(self, candidate: Candidate, reason: FinishReason) -> None:
        """The candidate is done; with the last of all comes the usage."""
        candidate.done = True
        candidate.reason = "stop" if candidate.text.finish() else reason
        if not self.ranked:
            self._tell(candidate, candidate.sequence.number)
        elif candidate.prompt.done:
            everyone = candidate.prompt.candidates
            order = rank([other.logprobs / max(1, other.generated) for other in everyone])
            for number, best in enumerate(order[: self.request.n]):
                self._tell(everyone[best], number)
        self.close_if_done()

    def close_if_done(self) -> None:
        if all(prompt.done for prompt in self.prompts):
            self.close()

    def pass_on(self, candidate: Candidate) -> None:
        """In a stream: gives out what the candidate has said since the last time."""
        if not self.request.stream or candidate.done:
            return
        text, tokens = candidate.text.take()
        if text or tokens or (self.request.continuous_usage_stats and candidate.generated > candidate.reported):
            self._say(candidate, candidate.sequence.number, text, tokens)

    def close(self) -> None:
        """All is said, or the caller left: the usage, last of all."""
        if self.over:
            return
        self.over = True
        prompt_tokens = sum(prompt.group.read for prompt in self.prompts)
        completion_tokens = sum(candidate.generated for prompt in self.prompts for candidate in prompt.candidates)
        self.say(Usage(prompt_tokens, completion_tokens, cached_tokens=self.cached_tokens, source="counted"))

    def _tell(self, candidate: Candidate, number: int) -> None:
        text, tokens = candidate.text.take()
        if text or tokens or candidate.generated > candidate.reported:
            self._say(candidate, number, text, tokens)
        self.say(Finished(candidate.prompt.index, number, candidate.reason))

    def _say(self, candidate: Candidate, number: int, text: str, tokens: Row[Token]) -> None:
        fresh = candidate.generated - candidate.reported
        candidate.reported = candidate.generated
        self.ahead += fresh
        self.say(Text(candidate.prompt.index, number, text, tuple(tokens), fresh))
