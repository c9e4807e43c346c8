"""Prompts and completions in the database. Whoever reads one leaves a line in the audit."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from andthen.books.store.database import Database
from andthen.books.store.keys import CLI, audit
from andthen.books.store.ledger import insert
from andthen.books.store.schema import REQUESTS, TEXTS


class KeptText(Struct, frozen=True, kw_only=True):
    """What a request said and was told, redacted and cut."""

    request_id: str
    at_ms: int
    """When the request began, milliseconds since 1970, UTC."""
    prompts: list[str]
    """One of token ids is told by their number, for no rule can read it."""
    suffix: str | None = None
    completions: list[str]
    """In the order of the reply's choices, as far as they came."""


class KeptTexts(Database):
    """What requests said and were told, where that is kept."""

    def add_texts(self, texts: Sequence[KeptText]) -> None:
        with self.writing() as connection:
            connection.execute(insert(connection, TEXTS).on_conflict_do_nothing(), [
                {"request_id": text.request_id, "at_ms": text.at_ms, "text": msgspec.json.encode(text).decode()}
                for text in texts
            ])  # fmt: skip

    def read_text(self, request_id: str, *, actor: str = CLI) -> KeptText | None:
        """The texts of a request, with a line in the audit that they were read; None where none are kept."""
        joined = TEXTS.join(REQUESTS, REQUESTS.c.id == TEXTS.c.request_id)
        found = sa.select(TEXTS.c.text, REQUESTS.c.key_id).select_from(joined).where(TEXTS.c.request_id == request_id)
        with self.writing() as connection:
            row = connection.execute(found).first()
            if row is None:
                return None
            audit(connection, actor, "read text", row.key_id, None, {"request_id": request_id})
            return msgspec.json.decode(row.text, type=KeptText)
