"""One loaded model at work: plan → decode → sample → settle.

While a step is decoded, which needs no GIL, a helping thread does what the step before left to do: log-probabilities,
characters, stop sequences, events, and the noise that the coming logits will meet. So the path from logits to the next
decode is short: add the noise, take the best, look for the end. That a stop sequence was complete is seen one step
late; the row that ran on for nothing is dropped.

Used by one thread, which waits for its helper before it goes on. Knows nothing of links or frames.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Row
from queue import SimpleQueue
from typing import Literal

import numpy as np
from msgspec import Struct

from andthen.contract.errors import AndthenError, InternalError
from andthen.contract.events import Alternative, FinishReason
from andthen.contract.text import token_text
from andthen.engine import batches
from andthen.engine.batches import SLICE_TOKENS, Layout
from andthen.engine.job import Candidate, Job, PromptJob, Top
from andthen.engine.llama import Batch, Context, LlamaError, LogitArray, Model
from andthen.engine.messages import CREDIT_TOKENS
from andthen.engine.sampling import Scores, choose, draw_noise, score
from andthen.engine.scheduler import Bounds, Drop, Fork, Read, Scheduler, Step
from andthen.engine.sequence import Group, Sequence, State

_ALONE_TOKENS = 4
"""Steps of so few tokens are computed in the engine's own thread: handing over would cost what it saves, where
models are small, and where they are large it makes no difference."""


class Options(Struct, frozen=True):
    """How a model is run.

    Attributes:
        bounds: of its pool.
        context: its longest sequence, in tokens.
        threads: that compute.
        streams: each sequence has cells of its own.
        exact: with streams, lay the batches out so that a row's logits are the same in any company: see `batches`.
    """

    bounds: Bounds
    context: int
    threads: int
    streams: bool = False
    exact: bool = False


class Counts(Struct):
    """What a runner has done since its start."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    recomputed_tokens: int = 0
    """Of sequences that were preempted and go on."""
    preemptions: int = 0

    def add(self, other: Counts) -> None:
        self.steps += other.steps
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.generated_tokens += other.generated_tokens
        self.recomputed_tokens += other.recomputed_tokens
        self.preemptions += other.preemptions


class Drawn(Struct, frozen=True):
    """A token that a step drew, left to be settled."""

    candidate: Candidate
    token: int
    end: FinishReason | Literal["ended"] | None
    """"ended": by an end token, which adds no text; "length": it was the last allowed."""
    row: int
    """Its row in the step's kept logits; −1 where no log-probability is wanted."""


class ScoredChunk(Struct, frozen=True):
    """Logits of prompt positions whose next tokens are to be scored."""

    prompt: PromptJob
    logits: LogitArray
    following: list[int]


class Runner:
    """A model with its pool, its scheduler and the jobs that run on it.

    Args:
        model: loaded with its weights.
        vocabulary: the same model's, which outlives the weights.
        options: how it is run.
        fail: called with a job that can't go on and why.
        give_out: called when jobs have events to give out.
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Model,
        options: Options,
        fail: Callable[[Job, AndthenError], None],
        give_out: Callable[[], None],
    ) -> None:
        self.model = model
        self._pieces = vocabulary.pieces
        self._end_tokens = vocabulary.end_tokens
        self.scheduler = Scheduler(options.bounds)
        self.jobs: dict[Job, None] = {}
        self.counts = Counts()
        bounds = options.bounds
        self._options = options
        self._context = Context(
            model,
            cells=bounds.cells,
            sequences=bounds.ids,
            batch_tokens=bounds.batch_tokens + bounds.running,  # so that every row can have a neighbour
            slice_tokens=SLICE_TOKENS if options.exact else 0,
            streams=options.streams,
            threads=options.threads,
        )
        self._fail = fail
        self._give_out = give_out
        self._batch = Batch(bounds.batch_tokens + bounds.running)
        self._noise = np.empty((bounds.running, model.vocab_size), np.float32)
        self._scratch = np.empty((bounds.running, model.vocab_size), np.uint32)
        self._prompts: dict[Group, PromptJob] = {}
        self._candidates: dict[Sequence, Candidate] = {}
        self._first_logits: dict[Group, LogitArray] = {}
        self._unsettled: list[Drawn | ScoredChunk | PromptJob] = []
        self._kept: LogitArray | None = None
        self._chores: SimpleQueue[Step | None] = SimpleQueue()
        self._chores_done: SimpleQueue[list[Candidate | None] | Exception] = SimpleQueue()
        self._helper = threading.Thread(target=self._help, name="settle", daemon=True)
        self._helper.start()

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and not self._unsettled

    def add(self, job: Job) -> None:
        """Takes a job whose groups fit the pool."""
        self.jobs[job] = None
        for prompt in job.prompts:
            self._prompts[prompt.group] = prompt
            for candidate in prompt.candidates:
                self._candidates[candidate.sequence] = candidate
            if len(prompt.group.sequences) == 0 and not prompt.group.scored:
                prompt.group.read = len(prompt.group.tokens)
                prompt.group.become(State.DONE)
                prompt.read()  # nothing is generated and nothing asked of the prompt: there is nothing to compute
            else:
                self.scheduler.add(prompt.group)
        if job.over:
            self._forget(job)

    def cancel(self, job: Job) -> None:
        """The caller left: what runs of the job ends here; its usage is the last event."""
        self._settle()
        if job in self.jobs:
            job.close()
            self._forget(job)

    def refuse(self, job: Job, error: AndthenError) -> None:
        """Ends a job whose turn has not come."""
        self._forget(job)
        self._fail(job, error)

    def credit(self, job: Job, tokens: int) -> None:
        """Its reader took so many tokens."""
        job.ahead = max(0, job.ahead - tokens)
        self._pause(job, job.ahead >= CREDIT_TOKENS)

    def step(self) -> bool:
        """Does one step; False if there was nothing to compute.

        Raises:
            LlamaError: the library refused the batch; `break_off` is all that helps.
        """
        step = self.scheduler.plan(time.monotonic())
        self.counts.preemptions += step.preempted
        self._apply(step)
        if not step.tokens and not step.starts:
            self._settle()
            return False
        for read in step.reads:
            self._prompts[read.group].job.begin()
        layouts = self._lay_out(step)
        if step.tokens > _ALONE_TOKENS:
            # The helper and not the decode is what is handed over: a decode handed over would wait for the GIL until
            # this thread waits for it (seen: nothing overlapped).
            self._chores.put(step)
            try:
                logits = self._decode(layouts)
            finally:
                candidates = self._chores_done.get()
            if isinstance(candidates, Exception):
                raise candidates
        else:
            candidates = self._do_chores(step)
            logits = self._decode(layouts)
        self.counts.steps += 1
        for read in step.reads:
            if read.again:
                self.counts.recomputed_tokens += read.stop - read.start
            else:
                self.counts.prompt_tokens += read.stop - read.start
        self._draw(step, candidates, logits)
        return True

    def break_off(self) -> None:
        """A step failed: nobody knows what the pool holds, so all jobs fail and the pool is emptied."""
        for job in list(self.jobs):
            self._fail(job, InternalError("The engine could not compute this request: the server's log says why."))
        self._unsettled.clear()
        self._kept = None
        self.jobs.clear()
        self._prompts.clear()
        self._candidates.clear()
        self._first_logits.clear()
        self._context.clear()
        self.scheduler = Scheduler(self._options.bounds)

    def close(self) -> None:
        """Frees the pool and the model."""
        self._chores.put(None)
        self._helper.join()
        self._context.close()
        self.model.close()

    # One step

    def _lay_out(self, step: Step) -> list[Layout]:
        """The step's batches; the last one's logits need not be copied, so it is the decodes."""
        if not step.tokens:
            return []
        if not self._options.exact:
            return [batches.whole(step.decodes, step.reads)]
        layouts = [batches.reading(read, self._options.context) for read in step.reads]
        return [*layouts, batches.decoding(step.decodes)] if step.decodes else layouts

    def _help(self) -> None:
        while (step := self._chores.get()) is not None:
            try:
                self._chores_done.put(self._do_chores(step))
            except Exception as error:
                self._chores_done.put(error)

    def _do_chores(self, step: Step) -> list[Candidate | None]:
        """Settles the step before and draws this one's noise; returns who draws, None for who ended meanwhile."""
        self._settle()
        self._give_out()
        candidates = [self._candidates.get(sequence) for sequence in (*step.decodes, *step.starts)]
        samplers = [candidate.sampler for candidate in candidates if candidate]
        draw_noise(samplers, self._noise[: len(samplers)], self._scratch[: len(samplers)])
        return candidates

    def _decode(self, layouts: list[Layout]) -> list[LogitArray]:
        """Each batch's logits that somebody reads. Raises LlamaError if the library refuses a batch."""
        found: list[LogitArray] = []
        for layout in layouts:
            self._batch.fill(layout.tokens, layout.positions, layout.ids, layout.wanted)
            if (code := self._context.decode(self._batch)) != 0:
                words = "; ".join(self.model.lib.complaints) or "no reason given"
                raise LlamaError(f"llama_decode returned {code}: {words}")
            rows = self._context.logits(sum(layout.wanted))
            if layout.read is not None:
                rows = rows[layout.read]
            elif layout is not layouts[-1]:
                rows = rows.copy()
            found.append(rows)
            for rewind in layout.rewinds:
                self._context.drop(rewind.id, rewind.start)
        return found

    def _apply(self, step: Step) -> None:
        for change in step.memory:
            match change:
                case Fork(source, target, length):
                    self._context.fork(source, target, length)
                case Drop(id):
                    self._context.drop(id)

    def _draw(self, step: Step, candidates: list[Candidate | None], logits: list[LogitArray]) -> None:
        decoded = self._take_logits(step, logits)
        living = [candidate for candidate in candidates if candidate]
        if not living:
            return
        if not step.starts and len(living) == len(candidates):
            rows = decoded
        else:
            first = [self._first_logits[start.group] for start in step.starts if start in self._candidates]
            going_on = [row for row, candidate in zip(decoded, candidates, strict=False) if candidate]
            rows = np.stack([*going_on, *first])
        tokens = choose(rows, [candidate.sampler for candidate in living], self._noise[: len(living)]).tolist()
        scored = [index for index, candidate in enumerate(living) if candidate.scored]
        self._kept = rows[scored] if scored else None
        places = {index: place for place, index in enumerate(scored)}
        for index, (candidate, token) in enumerate(zip(living, tokens, strict=True)):
            self._unsettled.append(self._accept(candidate, token, places.get(index, -1)))
        for sequence in step.starts:
            if not sequence.group.waiting:
                self._first_logits.pop(sequence.group, None)

    def _take_logits(self, step: Step, logits: list[LogitArray]) -> LogitArray:
        """Leaves what the reads brought to be settled; returns the rows of the decodes."""
        nothing = np.empty((0, self.model.vocab_size), np.float32)
        if not self._options.exact:
            whole = logits[0] if logits else nothing
            self._take_reads(step, whole[len(step.decodes) :])
            return whole[: len(step.decodes)]
        if step.reads:
            self._take_reads(step, np.concatenate(logits[: len(step.reads)]))
        return logits[-1] if step.decodes else nothing

    def _take_reads(self, step: Step, logits: LogitArray) -> None:
        """Leaves what the reads brought to be settled, and keeps the logits that their candidates start from.

        Args:
            logits: the rows of the reads.
        """
        place = 0
        for read in step.reads:
            prompt = self._prompts.get(read.group)
            count = read.stop - read.start if read.scored else int(read.last)
            rows, place = logits[place : place + count], place + count
            if prompt is None:
                continue  # cancelled meanwhile
            if read.scored:
                self._take_scores(prompt, read, rows)
            if read.last and not read.again:
                self.counts.cached_tokens += read.group.cached
                self._unsettled.append(prompt)
            if read.last and read.group.has_unstarted:
                self._first_logits[read.group] = rows[-1].copy()

    def _take_scores(self, prompt: PromptJob, read: Read, logits: LogitArray) -> None:
        tokens = read.group.tokens
        first = max(read.start, prompt.added)  # what follows an added BOS is the caller's first token: no value
        stop = min(read.stop, len(tokens) - 1)
        if first < stop:
            following = tokens[first + 1 : stop + 1].tolist()
            kept = logits[first - read.start : stop - read.start].copy()
            self._unsettled.append(ScoredChunk(prompt, kept, following))

    def _accept(self, candidate: Candidate, token: int, row: int) -> Drawn:
        """Only what the next step must know: whether the sequence goes on."""
        sequence = candidate.sequence
        candidate.sampler.accept(token)
        sequence.chosen.append(token)
        self.counts.generated_tokens += 1
        end: FinishReason | Literal["ended"] | None = None
        request = candidate.prompt.job.request
        if token in self._end_tokens or token in request.stop_token_ids:
            end = "ended"
        elif len(sequence.chosen) >= request.max_tokens:
            end = "length"
        if end:
            self.scheduler.finish(sequence)
        return Drawn(candidate, token, end, row)

    # What a step left to do

    def _settle(self) -> None:
        unsettled, self._unsettled = self._unsettled, []
        kept, self._kept = self._kept, None
        scores = self._score_drawn(unsettled, kept)
        touched: dict[Candidate, None] = {}
        for item in unsettled:
            match item:
                case ScoredChunk():
                    depth = item.prompt.job.request.logprobs or 0
                    found = score(item.logits, item.following, depth)
                    item.prompt.scores += [self._top(found, i, token) for i, token in enumerate(item.following)]
                case PromptJob():
                    item.read()
                    if not item.group.sequences:
                        self.scheduler.finish_reading(item.group)
                        self._forget_if_over(item.job)
                case Drawn():
                    if not item.candidate.done:
                        self._settle_drawn(item, scores[item.row] if item.row >= 0 else (0.0, None))
                        touched[item.candidate] = None
        for candidate in touched:
            candidate.prompt.job.pass_on(candidate)
            if candidate.prompt.job.ahead >= CREDIT_TOKENS:
                self._pause(candidate.prompt.job, True)

    def _score_drawn(self, unsettled: Row[object], kept: LogitArray | None) -> list[tuple[float, Top]]:
        if kept is None:
            return []
        drawn = [item for item in unsettled if isinstance(item, Drawn) and item.row >= 0]
        depth = max(item.candidate.prompt.job.request.logprobs or 0 for item in drawn)
        found = score(kept, [item.token for item in drawn], depth)
        depths = [item.candidate.prompt.job.request.logprobs or 0 for item in drawn]
        return [self._top(found, row, item.token, depths[row]) for row, item in enumerate(drawn)]

    def _top(self, scores: Scores, row: int, token: int, depth: int | None = None) -> tuple[float, Top]:
        """The chosen token's log-probability, and its most probable rivals with itself among them."""
        logprob = float(scores.chosen[row])
        ids = scores.top_ids[row, :depth].tolist()
        if not ids:
            return logprob, None
        values = scores.top[row, :depth].tolist()
        if token not in ids:
            ids.append(token)
            values.append(logprob)
        pieces = self._pieces
        return logprob, tuple(
            Alternative(id, token_text(pieces[id]), logprob if id == token else value)
            for id, value in zip(ids, values, strict=True)
        )

    def _settle_drawn(self, drawn: Drawn, scores: tuple[float, Top]) -> None:
        candidate, job = drawn.candidate, drawn.candidate.prompt.job
        piece = self._pieces[drawn.token]
        reason: FinishReason | None = None
        if drawn.end == "ended":
            job.end(candidate, drawn.token, piece, scores)
            reason = "stop"
        elif job.advance(candidate, drawn.token, piece, scores):
            reason = "stop"
        elif drawn.end == "length":
            reason = "length"
        if reason is None:
            return
        if candidate.sequence.state is not State.DONE:  # preempted since it was drawn, it waits
            self.scheduler.finish(candidate.sequence)
        self._candidates.pop(candidate.sequence, None)
        job.finish(candidate, reason)
        self._forget_if_over(job)

    def _forget_if_over(self, job: Job) -> None:
        if job.over:
            self._forget(job)

    def _forget(self, job: Job) -> None:
        self.jobs.pop(job, None)
        for prompt in job.prompts:
            self._prompts.pop(prompt.group, None)
            self._first_logits.pop(prompt.group, None)
            for candidate in prompt.candidates:
                self._candidates.pop(candidate.sequence, None)
            self.scheduler.cancel(prompt.group)

    def _pause(self, job: Job, paused: bool) -> None:
        if paused:
            now_s = time.monotonic()
            for prompt in job.prompts:
                self.scheduler.pause(prompt.group, now_s)
        else:
            for prompt in reversed(job.prompts):
                self.scheduler.resume(prompt.group)
