"""The engine in this process, for commands that need no server: questions go in, answers come out of a queue."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

from andthen.config import Config
from andthen.contract.errors import InternalError, by_code
from andthen.contract.events import Event, Finished, Text, Usage
from andthen.contract.request import CompletionRequest
from andthen.engine.loop import Engine
from andthen.engine.messages import Answer, Credit, Describe, Described, Emitted, Failed, ModelInfo, Submit
from andthen.engine.settings import ENVIRONMENT
from andthen.observability import logs

_LINK = 1
_OWNER = "terminal"

_Answer = TypeVar("_Answer", Described, Emitted)


class LocalEngine:
    """Answers one question at a time. Every method may raise the engine's `AndthenError`."""

    def __init__(self, engine: Engine, answers: SimpleQueue[Answer | Exception]) -> None:
        self._engine = engine
        self._answers = answers
        self._jobs = 0

    def describe(self) -> list[ModelInfo]:
        """The configured models, without their weights."""
        self._jobs += 1
        self._engine.handle(_LINK, Describe(self._jobs))
        return self._answer(Described).models

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """The events of a completion; the last is its `Usage`."""
        self._jobs += 1
        self._engine.handle(_LINK, Submit(self._jobs, _OWNER, request.model, request))
        while True:
            events = self._answer(Emitted).events
            yield from events
            if events and isinstance(events[-1], Usage):
                return
            taken = sum(event.generated for event in events if isinstance(event, Text | Finished))
            self._engine.handle(_LINK, Credit(self._jobs, taken))

    def _answer(self, kind: type[_Answer]) -> _Answer:
        answer = self._answers.get()
        if isinstance(answer, Failed):
            raise by_code(answer.code)(answer.message, param=answer.param)
        if not isinstance(answer, kind):
            raise InternalError(f"the engine ended: {answer}")
        return answer


def named(models: Iterable[ModelInfo], name: str) -> ModelInfo:
    """The one of `describe`'s models that has this name. Raises `InternalError` where its file can't be read."""
    for model in models:
        if model.name == name:
            return model
    raise InternalError(f"{name} can't be read, as told above: mend or replace its file")


@contextmanager
def running(config: Config) -> Iterator[LocalEngine]:
    """The engine in a thread; leaving the block ends all its work within one step."""
    quiet = logs.LogSettings(level="warning", format=config.logs.format)
    logs.configure(quiet if config.logs.level == "info" else config.logs)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    answers: SimpleQueue[Answer | Exception] = SimpleQueue()

    def emit(batch: list[tuple[int, Answer]]) -> None:
        for _, answer in batch:
            answers.put(answer)

    def work() -> None:
        try:
            engine.run()
        except Exception as error:
            answers.put(error)

    engine = Engine(config.engine, emit)
    thread = threading.Thread(target=work, name="engine", daemon=True)
    thread.start()
    try:
        yield LocalEngine(engine, answers)
    finally:
        engine.gone(_LINK)
        engine.stop()
        thread.join()
