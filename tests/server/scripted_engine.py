"""An engine with the real one's face that does what the prompt says, so that a test can have the moment it needs.

A completion counts: " 1", " 2", … up to `max_tokens`, one number a token, for every candidate. The prompt's first word
commands: `slow` one token each tenth of a second, `hold` no event at all, `late S` the first event after S seconds,
`refuse` no capacity, `break` an internal error after two tokens, `die` SIGKILL after two tokens, `flood` one token of
eight million characters, `compute S` a step that computes for S seconds, `hang` a step without end; anything else
counts at once. To tokenize "jobs" tells how many jobs are open, "made" how
many tokens were ever generated.

Run as a program it is an engine process of `andthen.engine.process`.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator

from andthen.contract.events import Event, Finished, PromptScored, Text, Usage
from andthen.engine import pulse
from andthen.engine.messages import (
    CREDIT_TOKENS,
    Answer,
    Cancel,
    Credit,
    Describe,
    Described,
    Detokenize,
    Detokenized,
    Emitted,
    Failed,
    ModelInfo,
    Question,
    Submit,
    Tokenize,
    Tokenized,
)
from andthen.engine.process import Emit, main
from andthen.engine.settings import EngineSettings

MODEL = ModelInfo(
    name="local/count",
    context=1024,
    vocab_size=256,
    parameters=1,
    size_bytes=1,
    fill_in_the_middle=False,
    deterministic=True,
    fingerprint="scripted",
    add_bos=True,
    description="counts",
    bos_token="<s>",
    eos_token="</s>",
)


class _Work:
    def __init__(self, submit: Submit) -> None:
        self.submit = submit
        prompt = submit.request.prompts[0]
        self.command = (prompt.split() if isinstance(prompt, str) else []) or [""]
        self.due_s = time.monotonic() + (float(self.command[1]) if self.command[0] == "late" else 0.0)
        self.ahead = 0
        self.made = 0
        self.events = self._script()

    def _script(self) -> Iterator[list[Event]]:
        request = self.submit.request
        if self.command[0] == "flood":
            yield [PromptScored(0, 3), Text(0, 0, "x" * 8_000_000, generated=1), Finished(0, 0, "length")]
            yield [self.usage()]
            return
        for prompt in range(len(request.prompts)):
            yield [PromptScored(prompt, 3)]
            for number in range(1, request.max_tokens + 1):
                yield [Text(prompt, c, f" {number}", generated=1) for c in range(request.n)]
            yield [Finished(prompt, c, "length") for c in range(request.n)]
        yield [self.usage()]

    def usage(self) -> Usage:
        return Usage(3, self.made, 0)


class ScriptedEngine:
    def __init__(self, settings: EngineSettings, emit: Emit) -> None:
        if "local/broken" in settings.models:
            raise ValueError("this engine can't start")
        self._emit = emit
        self._inbox: queue.SimpleQueue[tuple[int, Question | None] | None] = queue.SimpleQueue()
        self._work: dict[tuple[int, int], _Work] = {}
        self._made = 0

    def handle(self, link: int, question: Question) -> None:
        self._inbox.put((link, question))

    def gone(self, link: int) -> None:
        self._inbox.put((link, None))

    def stats(self) -> dict[str, float]:
        return {"running": len(self._work), "generated_tokens": self._made}

    def stop(self) -> None:
        self._inbox.put(None)

    def run(self) -> None:
        while True:
            pulse.own.beat()
            try:
                asked = self._inbox.get(timeout=0.0005 if self._work else 0.05)
            except queue.Empty:
                self._step()
                continue
            if asked is None:
                return
            link, question = asked
            if question is None:
                self._work = {key: work for key, work in self._work.items() if key[0] != link}
            elif answer := self._answer(link, question):
                self._emit([(link, answer)])

    def _answer(self, link: int, question: Question) -> Answer | None:
        key = (link, question.job)
        match question:
            case Submit():
                new = _Work(question)
                if new.command[0] == "refuse":
                    return Failed(question.job, "no_capacity", "256 requests are waiting", retry_after_s=7)
                self._work[key] = new
            case Cancel() if key in self._work:
                return Emitted(question.job, [self._work.pop(key).usage()])
            case Credit() if key in self._work:
                self._work[key].ahead -= question.tokens
            case Describe():
                return Described(question.job, [MODEL])
            case Tokenize(text="jobs"):
                return Tokenized(question.job, [len(self._work)])
            case Tokenize(text="made"):
                return Tokenized(question.job, [self._made])
            case Tokenize():
                special = [1] if question.add_special else []
                return Tokenized(question.job, special + [ord(character) for character in question.text])
            case Detokenize():
                return Detokenized(question.job, "".join(map(chr, question.tokens)))
        return None

    def _step(self) -> None:
        step: list[tuple[int, Answer]] = []
        now_s = time.monotonic()
        for key, work in list(self._work.items()):
            if work.command[0] == "hold" or now_s < work.due_s or work.ahead >= CREDIT_TOKENS:
                continue
            if work.command[0] == "slow":
                work.due_s = now_s + 0.1
            if work.made >= 2 and work.command[0] == "break":
                step.append((key[0], Failed(key[1], "internal_error", "the engine broke")))
                del self._work[key]
                continue
            if work.command[0] == "hang":
                threading.Event().wait()
            if work.command[0] == "compute" and not work.made:
                _compute(float(work.command[1]))
            if work.made >= 2 and work.command[0] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            events = next(work.events)
            new = sum(event.generated for event in events if isinstance(event, Text | Finished))
            work.made += new
            work.ahead += new
            self._made += new
            if isinstance(events[-1], Usage):
                del self._work[key]
            step.append((key[0], Emitted(key[1], events)))
        if step:
            self._emit(step)


def _compute(for_s: float) -> None:
    """As llama.cpp does, which calls its abort callback for each node."""
    callback = pulse.own.on_node()
    assert callback is not None
    on_node = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(callback[0])
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        assert not on_node(callback[1]), "it aborts nothing"
        time.sleep(0.01)


if __name__ == "__main__":
    main(ScriptedEngine)
