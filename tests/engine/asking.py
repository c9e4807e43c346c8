"""The engine in this process, asked as a worker asks it; and the plain slow loop that it is held against."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from msgspec import Struct

import andthen.engine
from andthen.contract.errors import AndthenError, by_code
from andthen.contract.events import Event, Finished, PromptScored, Text, Token, Usage
from andthen.contract.request import CompletionRequest
from andthen.engine.llama import Batch, Context, Model
from andthen.engine.loop import Engine
from andthen.engine.messages import Answer, Cancel, Credit, Emitted, Failed, Question, Submit
from andthen.engine.sampling import Sampler, choose, draw_noise, score
from andthen.engine.settings import EngineSettings, ModelSettings

MODEL = "local/tale"
SHIPPED = Path(andthen.engine.__file__).parent / "house" / "tale.gguf"
LINK = 1
WAIT_S = 20


def request(prompt: Any = "Once upon a time", /, **fields: Any) -> CompletionRequest:
    prompts = prompt if isinstance(prompt, tuple) and prompt and not isinstance(prompt[0], int) else (prompt,)
    fields.setdefault("best_of", fields.get("n", 1))
    return CompletionRequest(model=MODEL, prompts=prompts, **fields)


class Said(Struct):
    """One candidate's events, put together."""

    text: str = ""
    tokens: list[Token] = []
    generated: int = 0
    reason: str = ""


class Reply:
    """All events of one request."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.prompts: dict[int, PromptScored] = {}
        self.said: dict[tuple[int, int], Said] = {}
        for event in events:
            match event:
                case PromptScored():
                    assert event.prompt not in self.prompts
                    self.prompts[event.prompt] = event
                case Text(prompt, candidate):
                    assert prompt in self.prompts
                    said = self.said.setdefault((prompt, candidate), Said())
                    assert not said.reason
                    said.text += event.text
                    said.tokens += event.tokens
                    said.generated += event.generated
                case Finished(prompt, candidate, reason):
                    said = self.said.setdefault((prompt, candidate), Said())
                    assert not said.reason
                    said.reason = reason
                case Usage():
                    assert event is events[-1]
                    self.usage = event

    @property
    def only(self) -> Said:
        (said,) = self.said.values()
        return said

    @property
    def text(self) -> str:
        return self.only.text

    @property
    def texts(self) -> list[str]:
        return [said.text for _, said in sorted(self.said.items())]


class Asker:
    """An engine at work in a thread of this process."""

    def __init__(self, settings: EngineSettings) -> None:
        self._inboxes: dict[int, SimpleQueue[Answer]] = {}
        self._last = 0
        self.ended: list[int] = []
        """The requests that ended, in that order."""
        self.engine = Engine(settings, self._deliver)

    def _deliver(self, answers: list[tuple[int, Answer]]) -> None:
        for _, answer in answers:
            if isinstance(answer, Emitted) and answer.events and isinstance(answer.events[-1], Usage):
                self.ended.append(answer.job)
            self._inboxes[answer.job].put(answer)

    def post(self, make: Any, **fields: Any) -> int:
        """Sends a question; its number."""
        self._last += 1
        self._inboxes[self._last] = SimpleQueue()
        question: Question = make(job=self._last, **fields)
        self.engine.handle(LINK, question)
        return self._last

    def submit(self, asked: CompletionRequest, owner: str = "somebody") -> int:
        return self.post(Submit, owner=owner, model=asked.model, request=asked)

    def next(self, job: int) -> Answer:
        """Raises the error that the engine answered."""
        answer = self._inboxes[job].get(timeout=WAIT_S)
        if isinstance(answer, Failed):
            raise self._error(answer)
        return answer

    def collect(self, job: int, taken: Iterable[Event] = ()) -> Reply:
        """Waits for the request's end, taking its tokens as they come after those already taken."""
        events = list(taken)
        while not events or not isinstance(events[-1], Usage):
            answer = self.next(job)
            assert isinstance(answer, Emitted)
            events += answer.events
            self.engine.handle(LINK, Credit(job, sum(e.generated for e in answer.events if isinstance(e, Text))))
        return Reply(events)

    def ask(self, prompt: Any = "Once upon a time", /, **fields: Any) -> Reply:
        return self.collect(self.submit(request(prompt, **fields)))

    def together(self, asked: list[CompletionRequest]) -> list[Reply]:
        return [self.collect(job) for job in [self.submit(one) for one in asked]]

    def cancel(self, job: int) -> None:
        self.engine.handle(LINK, Cancel(job))

    @staticmethod
    def _error(failed: Failed) -> AndthenError:
        return by_code(failed.code)(failed.message, param=failed.param, retry_after_s=failed.retry_after_s)


@contextmanager
def asking(settings: EngineSettings | None = None, **fields: Any) -> Iterator[Asker]:
    models = {MODEL: ModelSettings(path=str(SHIPPED), deterministic=True)}
    asker = Asker(settings or EngineSettings(models=models, **fields))
    thread = threading.Thread(target=asker.engine.run)
    thread.start()
    try:
        yield asker
    finally:
        asker.engine.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()


class Plain:
    """A loop that decodes one token of one sequence at a time: slow, and plainly right."""

    def __init__(self) -> None:
        self.model = Model(str(SHIPPED))
        self._context = Context(self.model, cells=self.model.context, sequences=1, batch_tokens=32, threads=1)
        self._batch = Batch(32)

    def tokens(self, text: str) -> list[int]:
        return [int(token) for token in self.model.tokenize(text, add_special=True, parse_special=True)]

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(tokens, vocabulary)"""
        self._context.clear()
        return np.concatenate([self._next(token, at).copy() for at, token in enumerate(tokens)])

    def prompt_logprobs(self, tokens: list[int]) -> list[float]:
        """Of the tokens from the second on."""
        rows = self.logits(tokens)[:-1]
        return [float(value) for value in score(rows, tokens[1:], 0).chosen]

    def draw(self, tokens: list[int], asked: CompletionRequest, seed: int = 0) -> tuple[list[int], list[float]]:
        """The generated tokens, an end token included, and at each the gap between the two best choices."""
        sampler = Sampler(
            asked,
            seed=seed,
            vocab_size=self.model.vocab_size,
            end_tokens=self.model.end_tokens,
            prompt=np.array(tokens, np.int32),
        )
        row = self.logits(tokens)[-1:]
        drawn: list[int] = []
        gaps: list[float] = []
        noise = np.empty_like(row)
        while len(drawn) < asked.max_tokens and not (drawn and drawn[-1] in self.model.end_tokens):
            if drawn:
                row = self._next(drawn[-1], len(tokens) + len(drawn) - 1)
            draw_noise([sampler], noise, np.empty(noise.shape, np.uint32))
            best = np.sort((row - noise)[0])[-2:]
            gaps.append(float(best[1] - best[0]))
            drawn.append(int(choose(row, [sampler], noise)[0]))
            sampler.accept(drawn[-1])
        return drawn, gaps

    def text(self, tokens: list[int]) -> str:
        kept = [token for token in tokens if token not in self.model.end_tokens]
        return b"".join(self.model.pieces[token] for token in kept).decode(errors="replace")

    def _next(self, token: int, position: int) -> np.ndarray:
        batch = self._batch
        batch.count = 1
        batch.tokens[0], batch.positions[0], batch.sequences[0], batch.wanted[0] = token, position, 0, 1
        assert self._context.decode(batch) == 0
        return self._context.logits(1)
