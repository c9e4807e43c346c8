"""The engine: one thread that steps the models, and a few that prepare what comes in.

`handle`, `gone` and `stop` may be called from any thread; what they ask is done between two steps. What a step
brings goes out through one call of `emit`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

import msgspec
import structlog

from andthen.contract.errors import AndthenError, InternalError, NoCapacity
from andthen.contract.events import Usage
from andthen.engine import intake, pulse
from andthen.engine.job import Job
from andthen.engine.lanes import FairQueue
from andthen.engine.messages import (
    Answer,
    Cancel,
    Credit,
    Describe,
    Described,
    Detokenize,
    Detokenized,
    Emitted,
    Failed,
    Question,
    Submit,
    Tokenize,
    Tokenized,
)
from andthen.engine.models import Models
from andthen.engine.runner import Runner
from andthen.engine.settings import EngineSettings
from andthen.engine.turns import Turn, Turns, weight

_PREPARING_THREADS = 4
_TOKENIZING_THREADS = 2
_PREPARING_STACK_BYTES = 64 << 20
"""llama.cpp splits texts by std::regex for some models, which recurses with the text's length."""
_FULL_RETRY_AFTER_S = 2
_LOOK_AGAIN_S = 0.1
"""Where nothing can be computed but some request waits, time alone may change that: a paused reader's place is free
after a while."""

_LOG = structlog.get_logger("andthen.engine")

Emit = Callable[[list[tuple[int, Answer]]], None]


class _Ticket:
    """A submitted request until its end."""

    __slots__ = ("job", "model", "owner", "runner")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.job: Job | None = None
        self.runner: Runner | None = None
        self.model = ""


class Engine:
    """The embedded engine.

    Args:
        settings: the models and the bounds.
        emit: called with a step's answers, each with the link that asked; from several threads, never blocking.
    """

    def __init__(self, settings: EngineSettings, emit: Emit) -> None:
        self._settings = settings
        self._emit = emit
        self._models = Models(settings, self._fail, self._give_out, self._run_in_engine_thread)
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._incoming: FairQueue[tuple[int, Question]] = FairQueue(_PREPARING_THREADS)
        self._texts: Turns[Tokenize | Detokenize] = Turns(settings.max_waiting)
        self._tickets: dict[tuple[int, int], _Ticket] = {}
        self._waiting: dict[str, dict[tuple[int, int], None]] = {}
        """Requests whose turn has not come, by owner, each owner's in their order."""
        self._outbox: list[Job] = []
        self._stopping = False
        stack_bytes = threading.stack_size(_PREPARING_STACK_BYTES)
        try:
            for number in range(_PREPARING_THREADS):
                threading.Thread(target=self._prepare_forever, name=f"prepare-{number}", daemon=True).start()
            for number in range(_TOKENIZING_THREADS):
                threading.Thread(target=self._tokenize_forever, name=f"tokenize-{number}", daemon=True).start()
        finally:
            threading.stack_size(stack_bytes)

    def handle(self, link: int, question: Question) -> None:
        """Takes a question; the answers come through `emit`."""
        match question:
            case Tokenize() | Detokenize():
                turn = Turn((link, question.job), question.owner, weight(question), question)
                for refused in self._texts.put(turn):
                    self._refuse(refused.key[0], refused.thing, self._full())
            case Cancel(number):
                self._texts.drop(link, number)
                self._commands.put(lambda: self._cancel((link, number)))
            case Credit(number, tokens):
                self._commands.put(lambda: self._credit((link, number), tokens))
            case Submit():
                self._commands.put(lambda: self._enlist(link, question))
            case _:
                self._incoming.put("", (link, question))

    def gone(self, link: int) -> None:
        """Nobody reads this link's answers any more: its work ends."""
        self._texts.drop(link)
        self._commands.put(lambda: self._cancel_all(link))

    def stop(self) -> None:
        """`run` returns after the current step."""

        def stopping() -> None:
            self._stopping = True

        self._commands.put(stopping)
        self._texts.close()
        self._incoming.close()

    def run(self) -> None:
        """Works until `stop`."""
        progressed = False
        while not self._stopping:
            pulse.own.beat()
            self._obey(wait=not progressed)  # what did not progress waits for a command: more work, or credit
            progressed = sum([self._step(runner) for runner in self._models.runners if not runner.idle]) > 0
            self._give_out()
        for runner in self._models.runners:
            runner.close()

    def stats(self) -> dict[str, float]:
        """Counts since the start, and what is there now."""
        runners = self._models.runners
        counts = self._models.counts()
        return {
            **{name: float(count) for name, count in msgspec.structs.asdict(counts).items()},
            "running": sum(len(runner.scheduler.running) for runner in runners),
            "waiting": sum(map(len, self._waiting.copy().values())),
            "cells_used": sum(r.scheduler.cells_held + r.scheduler.prefixes.cells for r in runners),
            "cells_total": sum(runner.scheduler.bounds.cells for runner in runners),
        }

    # In the engine's thread

    def _obey(self, *, wait: bool) -> None:
        some_wait = any(not runner.idle for runner in self._models.runners)
        try:
            timeout_s = min(self._settings.beat_s, _LOOK_AGAIN_S) if some_wait else self._settings.beat_s
            command = self._commands.get(block=wait, timeout=timeout_s)
            while True:
                command()
                command = self._commands.get_nowait()
        except Empty:
            pass

    def _step(self, runner: Runner) -> bool:
        try:
            return runner.step()
        except Exception:  # whatever it was, it ends these requests and not the engine
            _LOG.exception("engine_step_failed")
            runner.break_off()
            return True

    def _run_in_engine_thread(self, function: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            try:
                function()
            finally:
                done.set()

        self._commands.put(run)
        done.wait()

    def _enlist(self, link: int, submit: Submit) -> None:
        key = (link, submit.job)
        self._tickets[key] = _Ticket(submit.owner)
        self._waiting.setdefault(submit.owner, {})[key] = None
        if sum(map(len, self._waiting.values())) > self._settings.max_waiting:
            self._displace()
        if key in self._tickets:
            self._incoming.put(submit.owner, (link, submit))

    def _displace(self) -> None:
        """The queue is too full by one: the newest request goes of the owner that has most in it."""
        longest = max(reversed(self._waiting), key=lambda owner: len(self._waiting[owner]))
        key = next(reversed(self._waiting[longest]))
        full = NoCapacity(
            f"{self._settings.max_waiting} requests wait for the engine already: try again later.",
            retry_after_s=_FULL_RETRY_AFTER_S,
        )
        ticket = self._tickets[key]
        if ticket.job is not None and ticket.runner is not None:
            ticket.runner.refuse(ticket.job, full)
        else:
            self._fail_unprepared(key, full)

    def _fail_unprepared(self, key: tuple[int, int], error: AndthenError) -> None:
        if key in self._tickets:  # else it was displaced or cancelled
            self._end(key)
            self._emit([(key[0], _failed(key[1], error))])

    def _start(self, key: tuple[int, int], job: Job, runner: Runner, model: str) -> None:
        ticket = self._tickets.get(key)
        if ticket is None:  # displaced or cancelled while it was prepared
            self._models.unpin(model)
            return
        ticket.job, ticket.runner, ticket.model = job, runner, model
        runner.add(job)

    def _cancel(self, key: tuple[int, int]) -> None:
        ticket = self._tickets.get(key)
        if ticket is None:
            return
        if ticket.job is None or ticket.runner is None:
            self._end(key)
            link, number = key
            self._emit([(link, Emitted(number, [Usage(0, 0, cached_tokens=0, source="counted")]))])
        else:
            ticket.runner.cancel(ticket.job)

    def _cancel_all(self, link: int) -> None:
        for key in [key for key in self._tickets if key[0] == link]:
            self._cancel(key)

    def _credit(self, key: tuple[int, int], tokens: int) -> None:
        ticket = self._tickets.get(key)
        if ticket is not None and ticket.job is not None and ticket.runner is not None:
            ticket.runner.credit(ticket.job, tokens)

    def _end(self, key: tuple[int, int]) -> None:
        self._leave_queue(self._tickets.pop(key).owner, key)

    def _leave_queue(self, owner: str, key: tuple[int, int]) -> None:
        waiting = self._waiting.get(owner, {})
        waiting.pop(key, None)
        if not waiting:
            self._waiting.pop(owner, None)

    def _give_out(self) -> None:
        if not self._outbox:
            return
        jobs, self._outbox[:] = self._outbox[:], []
        answers: list[tuple[int, Answer]] = []
        for job in jobs:
            answers.append((job.link, Emitted(job.number, job.take())))
            key = (job.link, job.number)
            self._leave_queue(self._tickets[key].owner, key)
            if job.over:
                self._models.unpin(self._tickets[key].model)
                self._end(key)
        self._emit(answers)

    def _fail(self, job: Job, error: AndthenError) -> None:
        key = (job.link, job.number)
        job.over = True
        if job in self._outbox:
            self._outbox.remove(job)
        self._models.unpin(self._tickets[key].model)
        self._end(key)
        self._emit([(job.link, _failed(job.number, error))])

    # In the other threads

    def _prepare_forever(self) -> None:
        while (item := self._incoming.get()) is not None:
            owner, (link, question) = item
            try:
                self._take_in(link, question)
            finally:
                self._incoming.done(owner)

    def _tokenize_forever(self) -> None:
        while (turn := self._texts.take()) is not None:
            self._take_in(turn.key[0], turn.thing)
            self._texts.done(turn)

    def _take_in(self, link: int, question: Question) -> None:
        try:
            self._prepare(link, question)
        except AndthenError as error:
            self._refuse(link, question, error)
        except Exception:
            _LOG.exception("engine_intake_failed", question=type(question).__name__)
            unexpected = InternalError("The engine could not take this request: the server's log says why.")
            self._refuse(link, question, unexpected)

    def _prepare(self, link: int, question: Question) -> None:
        match question:
            case Submit():
                key = (link, question.job)
                known = self._models.know(question.model)
                job = intake.prepare(
                    question, link, known.vocabulary, known.context, self._outbox, lambda: key in self._tickets
                )
                if job is None:
                    return
                runner = self._models.pin(known)
                self._commands.put(lambda: self._start(key, job, runner, known.name))
            case Describe(number):
                self._emit([(link, Described(number, self._models.describe()))])
            case Tokenize(number, model, text, add_special, parse_special):
                known = self._models.know(model)
                tokens = intake.tokenize(
                    known.vocabulary, known.context, text, add_special=add_special, parse_special=parse_special
                )
                self._emit([(link, Tokenized(number, tokens))])
            case Detokenize(number, model, tokens):
                known = self._models.know(model)
                self._emit([(link, Detokenized(number, intake.detokenize(known.vocabulary, known.context, tokens)))])

    def _full(self) -> NoCapacity:
        return NoCapacity(
            f"{self._settings.max_waiting} requests wait for the engine already: try again later.",
            retry_after_s=_FULL_RETRY_AFTER_S,
        )

    def _refuse(self, link: int, question: Question, error: AndthenError) -> None:
        if isinstance(question, Submit):
            self._commands.put(lambda: self._fail_unprepared((link, question.job), error))
        else:
            self._emit([(link, _failed(question.job, error))])


def _failed(job: int, error: AndthenError) -> Failed:
    return Failed(job, error.code, error.message, error.param, error.retry_after_s)
