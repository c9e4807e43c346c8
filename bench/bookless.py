"""`andthen` with a ledger that writes nothing, to be measured beside: `python -m bench.bookless serve …`.

No setting turns the ledger off, so its journal is taken away here.
"""

from __future__ import annotations

from andthen.cli import main
from andthen.ledger.journal import PendingWrite
from andthen.ledger.records import Intent, Settlement
from andthen.ledger.worker_ledger import WorkerLedger

_WRITTEN = PendingWrite(done=True)


def _append_intent(self: WorkerLedger, intent: Intent) -> PendingWrite:
    return _WRITTEN


def _append_settlement(self: WorkerLedger, settlement: Settlement, *, opened: bool) -> PendingWrite:
    return _WRITTEN


if __name__ == "__main__":
    WorkerLedger.append_intent = _append_intent  # type: ignore[method-assign]
    WorkerLedger.append_settlement = _append_settlement  # type: ignore[method-assign]
    main()
