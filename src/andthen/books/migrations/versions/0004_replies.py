"""Where a reply came from, and the replies that are kept under an Idempotency-Key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("requests", sa.Column("origin", sa.String(8), nullable=False, server_default="model"))
    op.create_table(
        "replies",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("name", sa.LargeBinary(32), primary_key=True),
        sa.Column("body", sa.LargeBinary(32), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("parts", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("replies_expires", "replies", ["expires_at_ms"])
    op.create_table(
        "reply_parts",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("name", sa.LargeBinary(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["key_id", "name"], ["replies.key_id", "replies.name"], ondelete="CASCADE"),
    )
