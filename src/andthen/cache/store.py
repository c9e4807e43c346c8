"""Where replies are kept, whatever they hold."""

from __future__ import annotations

from typing import Protocol


class ReplyStore(Protocol):
    """What is not found is made anew, so nothing here ever raises, and nothing takes long."""

    async def get(self, name: bytes) -> bytes | None:
        """What was put there last; None where that is gone or can't be had."""

    async def put(self, name: bytes, kept: bytes) -> None:
        """Keeps it if it can, for as long as the settings say."""
