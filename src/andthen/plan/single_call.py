"""The plainest fan-out: one text prompt, one candidate, one call, no log-probabilities. Pure.

It does what `Spread` does, with a fraction of the steps; a property test holds the two equal, event for event.
"""

from __future__ import annotations

from andthen.contract.errors import AndthenError, ReplyTooLarge, UpstreamGarbled
from andthen.contract.events import Counted, Event, Finished, FinishReason, PromptScored, Text, Usage
from andthen.contract.request import CompletionRequest
from andthen.contract.text import StopScanner
from andthen.plan.bounds import asked_tokens, bounded, most_text_bytes, most_tokens, reserved_prompt_tokens
from andthen.plan.plan import Plan
from andthen.plan.spread import Part, Spread, believed, estimated_tokens, parts


def fan_out(request: CompletionRequest, plan: Plan) -> Spread | SingleCall:
    """The calls that a request takes, and what becomes of their events."""
    return SingleCall(request, plan) if is_single_call(request, plan) else Spread(request, plan)


def is_single_call(request: CompletionRequest, plan: Plan) -> bool:
    return (
        len(request.prompts) == 1
        and request.best_of == 1
        and request.logprobs is None
        and request.max_tokens > 0
        and request.min_tokens == 0
        and isinstance(request.prompts[0], str)
        and not plan.scores_prompt
    )


class SingleCall:
    """A request of one call: see `Spread`, whose methods these are."""

    __slots__ = (
        "_begun", "_echo", "_ended", "_fed", "_generated", "_most_bytes", "_most_tokens", "_prompt_tokens", "_reason",
        "_reported", "_scanner", "_seen_bytes", "_seen_tokens", "_shown", "_too_large", "_usage", "parts",
    )  # fmt: skip

    def __init__(self, request: CompletionRequest, plan: Plan) -> None:
        self.parts = parts(request, plan)
        self._echo = request.echo
        self._scanner = StopScanner(request.stop) if request.stop else None
        self._most_tokens, self._most_bytes = most_tokens(request), most_text_bytes(request)
        self._begun = self._fed = self._shown = self._ended = self._too_large = False
        self._reason: FinishReason | None = None
        """Why the candidate is done, once it is."""
        self._generated = self._reported = self._seen_bytes = self._seen_tokens = self._prompt_tokens = 0
        self._usage: Usage | None = None

    def begin(self, _part: Part) -> None:
        self._begun = True

    def feed(self, _part: Part, events: list[Event]) -> list[Event]:
        shown: list[Event] = []
        for event in events:
            self._fed = True
            if isinstance(event, Text):
                self._take(event, shown)
            elif isinstance(event, Finished):
                self._finish(event, shown)
            elif isinstance(event, Usage):
                self._usage = event
            else:
                event = believed(event, self.parts[0].request)
                self._prompt_tokens += event.prompt_tokens
                if not self._shown:
                    self._show(shown, event.prompt_tokens, event.cached_tokens)
        return shown

    def _take(self, event: Text, shown: list[Event]) -> None:
        if event.candidate:
            raise UpstreamGarbled("The vendor told more choices than were asked: send the request again.")
        if not self._shown:
            self._show(shown)
        text = event.text
        self._generated += event.generated if event.generated <= self._most_tokens else len(event.tokens)
        self._seen_bytes += len(text) if text.isascii() else len(text.encode())
        self._seen_tokens += len(event.tokens)
        if self._reason is None:
            self._pass_on(text, shown)
        if self._seen_bytes > self._most_bytes or self._seen_tokens > self._most_tokens:
            asked = self.parts[0].request.max_tokens
            raise ReplyTooLarge(f"The vendor's reply has far more text than {asked} tokens.")

    def _pass_on(self, text: str, shown: list[Event]) -> None:
        """Without what a stop sequence cuts off or may cut off."""
        if self._scanner is not None:
            text, stopped = self._scanner.feed(text)
            if stopped:
                self._say(text, shown)
                self._reason = "stop"
                shown.append(Finished(0, 0, "stop"))
                return
        self._say(text, shown)

    def _finish(self, event: Finished, shown: list[Event]) -> None:
        if event.candidate:
            raise UpstreamGarbled("The vendor told more choices than were asked: send the request again.")
        if not self._shown:
            self._show(shown)
        self._generated += event.generated
        self._ended = True
        if self._reason is None:
            self._reason = event.reason
            self._say("" if self._scanner is None else self._scanner.flush(), shown)
            shown.append(Finished(0, 0, event.reason))

    def _say(self, text: str, shown: list[Event]) -> None:
        fresh, self._reported = self._generated - self._reported, self._generated
        if text or fresh:
            shown.append(Text(0, 0, text, (), fresh))

    def _show(self, shown: list[Event], prompt_tokens: int = 0, cached_tokens: int = 0) -> None:
        """The prompt's own event, before all others."""
        self._shown = True
        prompt = self.parts[0].request.prompts[0]
        text = prompt if self._echo and isinstance(prompt, str) else ""
        shown.append(PromptScored(0, prompt_tokens, cached_tokens, text))

    def close(self, _part: Part) -> None:
        if self._reason is None:
            raise UpstreamGarbled("The vendor told fewer choices than were asked: send the request again.")

    def fail(self, _part: Part, error: AndthenError) -> None:
        self._too_large = isinstance(error, ReplyTooLarge)

    def untouched(self, _part: Part) -> bool:
        return not self._fed

    def wanted(self, _part: Part) -> bool:
        return self._reason is None or self._ended

    def end(self) -> list[Event]:
        shown: list[Event] = []
        if not self._shown:
            self._show(shown)
        shown.append(self.usage())
        return shown

    def usage(self) -> Usage:
        return self.usage_of(self.parts[0]) if self._begun else Usage(0, 0)

    def usage_of(self, part: Part) -> Usage:
        usage = self._usage_of(part)
        if self._too_large:
            prompt_tokens = min(usage.prompt_tokens, reserved_prompt_tokens(part.request))
            return Usage(prompt_tokens, asked_tokens(part.request), source="bounded")
        return bounded(usage, part.request)

    def _usage_of(self, part: Part) -> Usage:
        told = self._usage
        if told is not None and (told.completion_tokens or not self._seen_bytes):
            return told
        source: Counted = "counted"
        prompt_tokens = self._prompt_tokens
        if not prompt_tokens:
            prompt_tokens = estimated_tokens(part.request.prompts[0]) + estimated_tokens(part.request.suffix or "")
            source = "estimated"
        completion_tokens = self._generated or estimated_tokens(self._seen_bytes)
        if self._seen_bytes and not self._generated:
            source = "estimated"
        return Usage(prompt_tokens, completion_tokens, source=source)
