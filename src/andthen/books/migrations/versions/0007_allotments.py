"""What owners of budgets have drawn and not posted yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "allotments",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("window", sa.String(8), primary_key=True),
        sa.Column("start_ms", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("drawn", sa.BigInteger, nullable=False),
        sa.Column("posted", sa.BigInteger, nullable=False),
        sa.Column("wanted", sa.Boolean, nullable=False),
    )
    op.create_index("allotments_owner", "allotments", ["owner"])
