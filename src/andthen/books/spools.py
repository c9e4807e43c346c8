"""Settlements that versions before 0007 left in files beside the database (`ledger-*.spool`), one JSON a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from andthen.ledger.records import Budget, Call, Intent, Settlement, Tokens

_FILES_AT_ONCE = 100
_LOG = structlog.get_logger("andthen.ledger")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Storage(Protocol):
    def post(self, intents: Sequence[Intent], settlements: Sequence[Settlement]) -> None: ...


def recover_spools(storage: Storage, home: Path) -> None:
    """Posts them, and deletes the files. A file that can't be read is kept as `.unreadable`. Raises `StorageError`."""
    paths, posted = sorted(home.glob("ledger-*.spool")), 0
    for start in range(0, len(paths), _FILES_AT_ONCE):
        batch = paths[start : start + _FILES_AT_ONCE]
        settlements = {one.intent.id: one for path in batch for one in _read(path)}
        storage.post([], list(settlements.values()))
        for path in batch:
            path.unlink(missing_ok=True)
        posted += len(settlements)
    if posted:
        _LOG.info("ledger_caught_up", settlements=posted)


def _read(path: Path) -> list[Settlement]:
    try:
        return [_settlement(_decode(line)) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        pass  # another has posted it
    except (msgspec.MsgspecError, TypeError, KeyError) as error:
        _LOG.error("ledger_spool_unreadable", file=str(path), reason=str(error))
        path.rename(path.with_suffix(".unreadable"))
    return []


def _settlement(line: dict[str, Any]) -> Settlement:
    intent = line.pop("intent")
    intent["lease_owner"] = intent.pop("holder")
    intent["budgets"] = tuple(Budget(**one) for one in intent.get("budgets", ()))
    calls = tuple(Call(**(one | {"tokens": _tokens(one)})) for one in line.pop("calls", ()))
    return Settlement(**(line | {"intent": Intent(**intent), "tokens": _tokens(line), "calls": calls}))


def _tokens(line: dict[str, Any]) -> Tokens:
    return Tokens(**line.get("tokens", {}))
