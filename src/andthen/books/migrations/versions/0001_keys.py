"""Keys, and the stamps by which readers notice a change."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger),
    )
    in_force = sa.text("revoked_at_ms IS NULL")
    op.create_index(
        "keys_name_in_force", "keys", ["name"], unique=True, sqlite_where=in_force, postgresql_where=in_force
    )
    stamps = op.create_table(
        "stamps",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(stamps, [{"name": "keys", "value": 0}])


def downgrade() -> None:
    op.drop_table("stamps")
    op.drop_table("keys")
