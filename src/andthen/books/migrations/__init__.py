"""The database's shape, one step a file. Alembic is imported only where there is something to do."""
