"""What of a request goes into the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from andthen.accounts import Accounts, Outcome
from andthen.books.keys import Key
from andthen.books.price_table import price_book
from andthen.books.prices import Prices
from andthen.books.store import SqlStore
from andthen.contract.events import Exchange, Usage
from andthen.contract.request import CompletionRequest
from andthen.ledger.journal import Journal
from andthen.ledger.machine import machine_ledger
from andthen.ledger.worker_ledger import WorkerLedger

KEY = Key(id="key_a", name="a", created_at_ms=0)
NO_WORK: Any = None
"""A key without budgets is held to no bound, so nobody looks at it."""


async def no_count(_owner: str, _model: str, _text: str, _parse_special: bool) -> int:
    return 0


async def test_what_callers_and_vendors_make_up_fits_into_any_database(any_store: SqlStore, tmp_path: Path) -> None:
    request = CompletionRequest(model="openai/x\0" + "y" * 300, prompts=("",), user="\0me")
    exchange = Exchange(200, Usage(2**70, 2**70, cached_tokens=-(2**70)), 0.1)
    async with (
        machine_ledger(any_store, tmp_path, "server") as budgets,
        WorkerLedger(any_store, Journal(tmp_path, "here", "server", limit_bytes=2**20)) as ledger,
    ):
        account = Accounts(ledger, budgets, price_book(Prices()), no_count).open(KEY, "cmpl-1", "")
        account.note(request)
        account.name(request.model)
        placed = await account.hold(request, NO_WORK)
        await placed()
        await account.settle(
            Outcome(status=200, ended_by="reply", model="openai/x\0", exchanges=(("openai/x\0", exchange),) * 3)
        )
    (row,) = any_store.usage(["key", "model"])
    assert (row.model, row.requests, row.open, row.failed) == ("openai/x", 1, 0, 0)
    assert row.prompt_tokens > 0
