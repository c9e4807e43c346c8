"""The tables. Their shape is the newest; `migrations/` has the steps that lead there."""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0001"
"""The newest step in migrations/, so that Alembic need not be imported to see that there is nothing to do."""

METADATA = sa.MetaData()
KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_at_ms", sa.BigInteger),
    sa.Index(
        "keys_name_in_force",
        "name",
        unique=True,
        sqlite_where=sa.text("revoked_at_ms IS NULL"),
        postgresql_where=sa.text("revoked_at_ms IS NULL"),
    ),
)
STAMPS = sa.Table(
    "stamps",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
