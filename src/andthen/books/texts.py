"""Prompts and completions, kept beside the ledger where the settings say so. By default nothing of this runs.

No reply waits for it: a text is redacted in a thread, some time after its request has ended, and written nowhere but
into the database. What that does not take is lost, and so is what a killed process had not written yet; the ledger,
which loses nothing, never holds a text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

import structlog

from andthen.books.redaction import COMMON, Redactor
from andthen.books.settings import BooksSettings
from andthen.books.store import BooksError
from andthen.books.store.texts import KeptText
from andthen.contract.events import Event, Text
from andthen.contract.request import CompletionRequest, Prompt

_MOST_TEXTS = 64
"""Prompts, and completions, of one request that are kept."""
_MOST_WAITING = 256
"""Requests whose texts wait to be written; what comes then is lost."""
_GATHER_S = 0.2
"""What ends within this is redacted and written together, when the first replies are out."""
_LAST_WAIT_S = 5.0
_LOG = structlog.get_logger("andthen.books")


class Store(Protocol):
    """Where texts are kept. Blocks and may raise `BooksError`."""

    def add_texts(self, texts: Sequence[KeptText]) -> None: ...


class Draft:
    """One request's texts, as they come."""

    __slots__ = ("_began_at_ms", "_completions", "_left", "_request", "_request_id")

    def __init__(self, request_id: str, request: CompletionRequest, most_characters: int) -> None:
        count = min(_MOST_TEXTS, len(request.prompts) * request.n)
        self._request_id = request_id
        self._began_at_ms = time.time_ns() // 1_000_000
        self._request = request
        self._completions: list[list[str]] = [[] for _ in range(count)]
        self._left = [most_characters] * count

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Text) and event.text:
                index = event.prompt * self._request.n + event.candidate
                if index < len(self._left) and self._left[index] > 0:
                    self._left[index] -= len(event.text)
                    self._completions[index].append(event.text)

    def redacted(self, redactor: Redactor) -> KeptText:
        def told(prompt: Prompt) -> str:
            return redactor.redact(prompt) if isinstance(prompt, str) else f"[{len(prompt)} tokens]"

        suffix = self._request.suffix
        return KeptText(
            request_id=self._request_id,
            at_ms=self._began_at_ms,
            prompts=[told(prompt) for prompt in self._request.prompts[:_MOST_TEXTS]],
            suffix=None if suffix is None else redactor.redact(suffix),
            completions=[redactor.redact("".join(pieces)) for pieces in self._completions],
        )


class Texts:
    """`async with Texts(store, settings) as texts:`; leaving writes what still waits."""

    def __init__(self, store: Store, settings: BooksSettings) -> None:
        self._store = store
        self._redactor: Redactor | None = None
        if settings.keep_text_days is not None:
            rules = {**(COMMON if settings.redact_common else {}), **settings.redact}
            self._redactor = Redactor(rules, settings.text_characters)
        self._waiting: list[Draft] = []
        self._lost = 0
        self._woken = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._redactor is not None:
            self._task = asyncio.create_task(self._run(self._redactor), name="andthen-texts")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._stopping = True
            self._woken.set()
            await asyncio.wait([self._task], timeout=_LAST_WAIT_S)
            self._task.cancel()

    def begin(self, request_id: str, request: CompletionRequest) -> Draft | None:
        """None where no text is kept."""
        return None if self._redactor is None else Draft(request_id, request, self._redactor.reads_characters)

    def keep(self, draft: Draft) -> None:
        """Has it written soon. Waits for nothing."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(draft)
            self._woken.set()
        else:
            self._lost += 1

    async def _run(self, redactor: Redactor) -> None:
        while not self._stopping or self._waiting:
            await self._woken.wait()
            if not self._stopping:
                await asyncio.sleep(_GATHER_S)
            self._woken.clear()
            drafts, self._waiting = self._waiting, []
            lost, self._lost = self._lost, 0
            try:
                if drafts:
                    await asyncio.to_thread(self._write, redactor, drafts)
            except BooksError as error:
                lost += len(drafts)
                _LOG.warning("texts_lost", requests=lost, reason=str(error))
            else:
                if lost:
                    _LOG.warning("texts_lost", requests=lost, reason="more came than the database took")

    def _write(self, redactor: Redactor, drafts: Sequence[Draft]) -> None:
        self._store.add_texts([draft.redacted(redactor) for draft in drafts])
