"""What one process on each machine does for the ledger: it owns the budgets, and recovers what dead processes left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from andthen.ledger.budgets import BudgetOwner
from andthen.ledger.recovery import OwnerLocks, Recovery, RecoveryStorage
from andthen.ledger.storage import BudgetStorage

FOLDER = "journal"
"""Where journals are, in the folder of the state."""


class MachineStorage(RecoveryStorage, BudgetStorage, Protocol):
    """All that it asks of the database."""


@asynccontextmanager
async def machine_ledger(
    storage: MachineStorage, folder: Path, group: str, recover_old: Callable[[], None] = lambda: None
) -> AsyncIterator[BudgetOwner]:
    """The owner of the budgets. To be left after all who reserve of it have posted what they appended.

    Args:
        group: this server's name, which its workers' journals bear.
        recover_old: takes over what a version before has left in another form.
    """
    locks = OwnerLocks(folder, group)
    recovery = Recovery(storage, folder, recover_old)
    recovery.start()
    try:
        async with BudgetOwner(storage, locks.new_owner, recovery.is_recovered) as budgets:
            yield budgets
    finally:
        locks.close()  # so that its last turn gives back what the owner held
        await asyncio.to_thread(recovery.stop)
