"""The ledger: requests, their calls, what keys have spent, and which processes live."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("model_asked", sa.String(256), nullable=False),
        sa.Column("model_answered", sa.String(256), nullable=False, server_default=""),
        sa.Column("started_at_ms", sa.BigInteger, nullable=False),
        sa.Column("settled_at_ms", sa.BigInteger),
        sa.Column("status", sa.Integer, nullable=False, server_default="0"),
        sa.Column("code", sa.String(64), nullable=False, server_default=""),
        sa.Column("ended_by", sa.String(16), nullable=False, server_default=""),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("user", sa.String(256), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("source", sa.String(16), nullable=False, server_default="vendor"),
        sa.Column("reserved_micros", sa.BigInteger, nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("price", sa.Text, nullable=False, server_default=""),
        sa.Column("plan", sa.Text, nullable=False, server_default=""),
        sa.Column("retries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("queue_ms", sa.Integer),
        sa.Column("first_ms", sa.Integer),
        sa.Column("total_ms", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "calls",
        sa.Column("request_id", sa.String(64), sa.ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False),
        sa.Column("took_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("requests_key_started", "requests", ["key_id", "started_at_ms"])
    op.create_index("requests_started", "requests", ["started_at_ms"])
    is_open = sa.text("settled_at_ms IS NULL")
    op.create_index("requests_open", "requests", ["holder"], sqlite_where=is_open, postgresql_where=is_open)
    _spending()


def _spending() -> None:
    op.create_table(
        "spending",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("window", sa.String(8), primary_key=True),
        sa.Column("start_ms", sa.BigInteger, primary_key=True),
        sa.Column("micros", sa.BigInteger, nullable=False),
        sa.Column("reserved_micros", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "holders",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for table in ("holders", "spending", "calls", "requests"):
        op.drop_table(table)
