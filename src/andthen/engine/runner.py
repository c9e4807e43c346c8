"""One loaded model at work: plan → decode → sample → settle.

The decode of a step runs in a thread of its own, without the GIL, while this thread does what the step before left to
do: log-probabilities, characters, stop sequences, events, and the noise that the coming logits will meet. So the path
from logits to the next decode is short: add the noise, take the best, look for the end. That a stop sequence was
complete is seen one step late; the row that ran on for nothing is dropped.

Used by one thread. Knows nothing of links or frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Row
from queue import SimpleQueue
from typing import Literal

import numpy as np
from msgspec import Struct

from andthen.contract.errors import AndthenError, InternalError
from andthen.contract.events import Alternative, FinishReason
from andthen.contract.text import token_text
from andthen.engine.job import Candidate, Job, PromptJob, Top
from andthen.engine.llama import Batch, Context, LlamaError, LogitArray, Model
from andthen.engine.messages import CREDIT_TOKENS
from andthen.engine.sampling import Scores, choose, draw_noise, score
from andthen.engine.scheduler import Bounds, Drop, Fork, Read, Scheduler, Step
from andthen.engine.sequence import Group, Sequence, State

PAIRING_ID = 255
"""The sequence of the rows that only keep others company: the last of llama.cpp's 256 (LLAMA_MAX_SEQ)."""
_SLICE_TOKENS = 63
_PAIRING_CELLS = 1024


class Options(Struct, frozen=True):
    """How a model is run.

    Attributes:
        bounds: of its pool.
        threads: that compute.
        deterministic: compute every row the same way whatever else is in its batch. llama.cpp (read in ggml-cpu/ops.cpp
            and llamafile/sgemm.cpp, and measured, November 2026) computes a row alone by other kernels than rows in
            company, and attention from 64 rows on by another kernel again; in slices of 2 to 63 rows a row's logits
            were bit-equal for any company, chunking and number of threads.
    """

    bounds: Bounds
    threads: int
    deterministic: bool = False


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
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Model,
        options: Options,
        fail: Callable[[Job, AndthenError], None],
    ) -> None:
        self.model = model
        self._pieces = vocabulary.pieces
        self._end_tokens = vocabulary.end_tokens
        self.scheduler = Scheduler(options.bounds)
        self.jobs: dict[Job, None] = {}
        self.generated_tokens = self.prompt_tokens = self.cached_tokens = self.steps = 0
        bounds = self._bounds = options.bounds
        self._slice = _SLICE_TOKENS if options.deterministic else 0
        self._paired = 0
        """Cells that rows of company hold."""
        self._context = Context(
            model,
            cells=bounds.cells + (_PAIRING_CELLS if self._slice else 0),
            sequences=PAIRING_ID + 1,
            batch_tokens=bounds.batch_tokens + 1,
            slice_tokens=self._slice,
            threads=options.threads,
        )
        self._fail = fail
        self._batch = Batch(bounds.batch_tokens + 1)
        self._noise = np.empty((bounds.running, model.vocab_size), np.float32)
        self._scratch = np.empty((bounds.running, model.vocab_size), np.uint32)
        self._prompts: dict[Group, PromptJob] = {}
        self._candidates: dict[Sequence, Candidate] = {}
        self._first_logits: dict[Group, LogitArray] = {}
        self._unsettled: list[Drawn | ScoredChunk | PromptJob] = []
        self._kept: LogitArray | None = None
        self._requests: SimpleQueue[bool] = SimpleQueue()
        self._results: SimpleQueue[int] = SimpleQueue()
        self._decoding = False
        self._decoder = threading.Thread(target=self._decode_forever, name="decode", daemon=True)
        self._decoder.start()

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

    def credit(self, job: Job, tokens: int) -> None:
        """Its reader took so many tokens."""
        job.ahead = max(0, job.ahead - tokens)
        self._pause(job, job.ahead >= CREDIT_TOKENS)

    def step(self) -> bool:
        """Does one step; False if there was nothing to compute.

        Raises:
            LlamaError: the library refused the batch; `break_off` is all that helps.
        """
        step = self.scheduler.plan()
        self._apply(step)
        if not step.tokens and not step.starts:
            self._settle()
            self._unpair()
            return False
        self._fill(step)
        if step.tokens:
            self._decoding = True
            self._requests.put(True)
        self._settle()
        drawing = [*step.decodes, *step.starts]
        candidates = [self._candidates.get(sequence) for sequence in drawing]
        samplers = [candidate.sampler for candidate in candidates if candidate]
        draw_noise(samplers, self._noise[: len(samplers)], self._scratch[: len(samplers)])
        if step.tokens and (code := self._await_decode()) != 0:
            words = "; ".join(self.model.lib.complaints) or "no reason given"
            raise LlamaError(f"llama_decode returned {code}: {words}")
        self.steps += 1
        self.prompt_tokens += step.tokens - len(step.decodes)
        self._draw(step, candidates)
        return True

    def break_off(self) -> None:
        """A step failed: nobody knows what the pool holds, so all jobs fail and the pool is emptied."""
        if self._decoding:
            self._await_decode()
        for job in list(self.jobs):
            self._fail(job, InternalError("the engine could not compute this request; the server's log says why"))
        self._unsettled.clear()
        self._kept = None
        self.jobs.clear()
        self._prompts.clear()
        self._candidates.clear()
        self._first_logits.clear()
        self._context.clear()
        self._paired = 0
        self.scheduler = Scheduler(self._bounds)

    def close(self) -> None:
        """Frees the pool and the model."""
        self._requests.put(False)
        self._decoder.join()
        self._context.close()
        self.model.close()

    # One step

    def _decode_forever(self) -> None:
        while self._requests.get():
            self._results.put(self._context.decode(self._batch))

    def _await_decode(self) -> int:
        code = self._results.get()
        self._decoding = False
        return code

    def _apply(self, step: Step) -> None:
        for change in step.memory:
            match change:
                case Fork(source, target, length):
                    self._context.fork(source, target, length)
                case Drop(id):
                    self._context.drop(id)

    def _fill(self, step: Step) -> None:
        batch, count = self._batch, len(step.decodes)
        batch.tokens[:count] = [sequence.chosen[sequence.decoded - 1] for sequence in step.decodes]
        batch.positions[:count] = [sequence.position - 1 for sequence in step.decodes]
        batch.sequences[:count] = [sequence.id for sequence in step.decodes]
        batch.wanted[:count] = 1
        for read in step.reads:
            stop = count + read.stop - read.start
            batch.tokens[count:stop] = read.group.tokens[read.start : read.stop]
            batch.positions[count:stop] = np.arange(read.start, read.stop)
            batch.sequences[count:stop] = read.group.trunk
            batch.wanted[count:stop] = read.group.scored
            if read.last:
                batch.wanted[stop - 1] = 1
            count = stop
        batch.count = count
        if self._slice and count % self._slice == 1:
            self._pair(batch)

    def _pair(self, batch: Batch) -> None:
        """Adds a row, so that the last one is not computed alone. Its cells stay until nobody runs: freed at once,
        their places would be taken by the others' next tokens, and a sequence whose cells are out of order sums its
        attention in another order."""
        if self._paired == _PAIRING_CELLS:
            self._unpair()
        last = batch.count
        batch.tokens[last], batch.positions[last] = batch.tokens[last - 1], self._paired
        batch.sequences[last], batch.wanted[last] = PAIRING_ID, 0
        self._paired += 1
        batch.count += 1

    def _unpair(self) -> None:
        if self._paired:
            self._context.drop(PAIRING_ID)
            self._paired = 0

    def _draw(self, step: Step, candidates: list[Candidate | None]) -> None:
        wanted = int(self._batch.wanted[: self._batch.count].sum()) if step.tokens else 0
        logits = self._context.logits(wanted) if wanted else np.empty((0, self.model.vocab_size), np.float32)
        self._take_reads(step, logits[len(step.decodes) :])
        living = [candidate for candidate in candidates if candidate]
        if not living:
            return
        if not step.starts and len(living) == len(candidates):
            rows = logits[: len(living)]
        else:
            decoded = [row for row, candidate in zip(logits, candidates, strict=False) if candidate]
            first = [self._first_logits[sequence.group] for sequence in step.starts if sequence in self._candidates]
            rows = np.stack(decoded[: len(living) - len(first)] + first)
        tokens = choose(rows, [candidate.sampler for candidate in living], self._noise[: len(living)]).tolist()
        scored = [index for index, candidate in enumerate(living) if candidate.scored]
        self._kept = rows[scored] if scored else None
        places = {index: place for place, index in enumerate(scored)}
        for index, (candidate, token) in enumerate(zip(living, tokens, strict=True)):
            self._unsettled.append(self._accept(candidate, token, places.get(index, -1)))
        for sequence in step.starts:
            if not sequence.group.has_unadmitted:
                self._first_logits.pop(sequence.group, None)

    def _take_reads(self, step: Step, logits: LogitArray) -> None:
        """Leaves what the reads brought to be settled, and keeps the logits that their candidates start from.

        Args:
            logits: the rows of the reads.
        """
        place = 0
        for read in step.reads:
            prompt = self._prompts.get(read.group)
            count = read.stop - read.start if read.group.scored else int(read.last)
            rows, place = logits[place : place + count], place + count
            if prompt is None:
                continue  # cancelled meanwhile
            if read.group.scored:
                self._take_scores(prompt, read, rows)
            if read.last:
                self.cached_tokens += read.group.cached
                self._unsettled.append(prompt)
                if read.group.sequences:
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
        self.generated_tokens += 1
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
        if candidate.sequence.state is State.RUNNING:
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
        for prompt in job.prompts:
            for sequence in prompt.group.sequences:
                sequence.paused = paused
