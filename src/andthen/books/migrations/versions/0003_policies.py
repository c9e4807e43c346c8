"""What a key may do, its several secrets, and who changed it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    connection = op.get_bind()
    columns = "digest, id AS key_id, created_at_ms"
    found = connection.execute(sa.text(f"SELECT {columns} FROM keys WHERE revoked_at_ms IS NULL"))  # noqa: S608
    secrets = [dict(row) for row in found.mappings()]
    with op.batch_alter_table("keys") as keys:
        keys.drop_column("digest")
        for name in ("disabled_at_ms", "expires_at_ms", "deleted_at_ms"):
            keys.add_column(sa.Column(name, sa.BigInteger))
        keys.add_column(sa.Column("admin", sa.Boolean, nullable=False, server_default=sa.false()))
        keys.add_column(sa.Column("policy", sa.Text, nullable=False, server_default="{}"))
    kept = op.create_table(
        "key_secrets",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger),
    )
    op.bulk_insert(kept, secrets)
    op.create_index("key_secrets_key", "key_secrets", ["key_id"])
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(32), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
    )
    op.create_index("audit_key", "audit", ["key_id"])
