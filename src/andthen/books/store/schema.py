"""The tables. Their shape is the newest; `migrations/` has the steps that lead there."""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0007"
"""The newest step in migrations/, so that Alembic need not be imported to see that there is nothing to do."""

METADATA = sa.MetaData()
KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_at_ms", sa.BigInteger),
    sa.Column("disabled_at_ms", sa.BigInteger),
    sa.Column("expires_at_ms", sa.BigInteger),
    sa.Column("deleted_at_ms", sa.BigInteger),
    sa.Column("admin", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("policy", sa.Text, nullable=False, server_default="{}"),
    sa.Index(
        "keys_name_in_force",
        "name",
        unique=True,
        sqlite_where=sa.text("revoked_at_ms IS NULL"),
        postgresql_where=sa.text("revoked_at_ms IS NULL"),
    ),
)
KEY_SECRETS = sa.Table(
    "key_secrets",
    METADATA,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger),
    sa.Index("key_secrets_key", "key_id"),
)
AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(32), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("before", sa.Text),
    sa.Column("after", sa.Text),
    sa.Index("audit_key", "key_id"),
)
STAMPS = sa.Table(
    "stamps",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

REQUESTS = sa.Table(
    "requests",
    METADATA,
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
    sa.Column("origin", sa.String(8), nullable=False, server_default="model"),
    sa.Column("retries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("queue_ms", sa.Integer),
    sa.Column("first_ms", sa.Integer),
    sa.Column("total_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("requests_key_started", "key_id", "started_at_ms"),
    sa.Index("requests_started", "started_at_ms"),
    sa.Index(
        "requests_open",
        "holder",
        sqlite_where=sa.text("settled_at_ms IS NULL"),
        postgresql_where=sa.text("settled_at_ms IS NULL"),
    ),
)
CALLS = sa.Table(
    "calls",
    METADATA,
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
SPENDING = sa.Table(
    "spending",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("window", sa.String(8), primary_key=True),
    sa.Column("start_ms", sa.BigInteger, primary_key=True),
    sa.Column("micros", sa.BigInteger, nullable=False),
    sa.Column("reserved_micros", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("reserved_tokens", sa.BigInteger, nullable=False),
)
REMOVED = sa.Table(
    "removed",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("start_ms", sa.BigInteger, primary_key=True),
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost_micros", sa.BigInteger, nullable=False),
)
ALLOTMENTS = sa.Table(
    "allotments",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("window", sa.String(8), primary_key=True),
    sa.Column("start_ms", sa.BigInteger, primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("drawn", sa.BigInteger, nullable=False),
    sa.Column("posted", sa.BigInteger, nullable=False),
    sa.Column("wanted", sa.Boolean, nullable=False),
    sa.Index("allotments_owner", "owner"),
)
HOLDERS = sa.Table(
    "holders",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
)

TEXTS = sa.Table(
    "texts",
    METADATA,
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Index("texts_at", "at_ms"),
)
REPLIES = sa.Table(
    "replies",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.LargeBinary(32), primary_key=True),
    sa.Column("body", sa.LargeBinary(32), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("parts", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    sa.Index("replies_expires", "expires_at_ms"),
)
REPLY_PARTS = sa.Table(
    "reply_parts",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.LargeBinary(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["key_id", "name"], ["replies.key_id", "replies.name"], ondelete="CASCADE"),
)
