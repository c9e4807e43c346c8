"""The store, on a real SQLite file and from several real processes."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from andthen.books.keys import Key, digest
from andthen.books.store import (
    HEAD,
    METADATA,
    SchemaTooNew,
    SqlStore,
    StoreUnavailable,
    open_sqlite,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "andthen.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    with closing(open_sqlite(path)) as opened:
        yield opened


def test_no_secret_is_in_the_files(store: SqlStore, path: Path) -> None:
    secret = store.create_key("ci").secret
    store.close()
    written = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"ci" in written
    assert secret.removeprefix("at-").encode() not in written


def test_only_the_owner_may_read_the_files(path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(open_sqlite(path)) as opened:
            opened.create_key("ci")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert modes == dict.fromkeys(("andthen.db", "andthen.db-wal", "andthen.db-shm"), 0o600)


def test_readers_and_writers_do_not_wait_for_one_another(store: SqlStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        raw.execute("BEGIN IMMEDIATE")
        assert store.list_keys() == []


def test_the_head_is_the_newest_step() -> None:
    config = Config()
    config.set_main_option("script_location", "andthen.books:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_the_steps_lead_to_the_tables_that_the_statements_use(store: SqlStore, path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_alembic_is_imported_only_where_there_is_something_to_do(store: SqlStore, path: Path) -> None:
    code = (
        "import sys, pathlib; from andthen.books.store import open_sqlite;"
        "open_sqlite(pathlib.Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    for database, imported in ((path, "False"), (path.with_name("new.db"), "True")):
        done = subprocess.run([sys.executable, "-c", code, str(database)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == imported


def test_a_newer_schema_is_refused(store: SqlStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match=r"newer andthen .* upgrade andthen"):
        open_sqlite(path)


def test_a_step_that_fails_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("andthen.books.store.database.HEAD", "9999")
    with pytest.raises(SchemaTooNew):
        open_sqlite(path)
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    monkeypatch.undo()
    open_sqlite(path).close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="set ANDTHEN_HOME"):
        open_sqlite(tmp_path / "file" / "andthen.db")


def test_a_file_that_is_no_database_is_told(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("not a database" * 100)
    with pytest.raises(StoreUnavailable, match=r"andthen\.db can't be used: file is not a database.* set ANDTHEN_HOME"):
        open_sqlite(path)


def test_a_deleted_file_is_noticed_and_never_made_anew(store: SqlStore, path: Path) -> None:
    store.create_key("ci")
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(StoreUnavailable, match="can't be used"):
        store.keys_stamp()
    assert not path.exists()


def test_a_file_put_in_its_place_is_read(store: SqlStore, path: Path) -> None:
    secret = store.create_key("ci").secret
    before = store.key_ring()
    other = path.with_name("other.db")
    with closing(open_sqlite(other)) as opened:
        opened.create_key("ci")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    other.rename(path)
    assert store.keys_stamp() != before.stamp
    assert store.key_ring().lookup(secret, 0) is None


def test_a_locked_database_is_told_after_the_wait(path: Path) -> None:
    with (
        closing(open_sqlite(path, busy_timeout_s=0.05)) as opened,
        closing(sqlite3.connect(path)) as raw,
    ):
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            opened.create_key("ci")
        raw.rollback()
        opened.create_key("ci")


def test_of_many_processes_that_start_at_once_one_makes_the_first_key(path: Path) -> None:
    code = (
        "import sys, pathlib; from andthen.books.store import open_sqlite;"
        "sys.stdin.read(); store = open_sqlite(pathlib.Path(sys.argv[1])); print(store.create_first_key() is not None)"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    ends = [racer.communicate(timeout=60) for racer in racers]
    assert [err for _, err in ends] == [""] * 4
    assert sorted(out.strip() for out, _ in ends) == ["False", "False", "False", "True"]


def _at_schema(path: Path, schema: str) -> None:
    """A file as an older andthen would have left it, with one key."""
    engine = sa.create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", "andthen.books:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, schema)
        row = {"digest": digest("at-old"), "gone": digest("at-gone")}
        insert = "INSERT INTO keys (id, name, digest, created_at_ms, revoked_at_ms) VALUES"
        connection.execute(sa.text(f"{insert} ('key_1', 'ci', :digest, 5, NULL), ('key_2', 'ci', :gone, 6, 7)"), row)
    engine.dispose()


def test_an_older_file_is_copied_and_its_keys_stay_in_force(path: Path) -> None:
    path.parent.mkdir()
    _at_schema(path, "0002")
    with closing(open_sqlite(path)) as store:
        found = store.key_ring().lookup("at-old", 0)
        assert found == Key(id="key_1", name="ci", created_at_ms=5)
        assert store.key_ring().lookup("at-gone", 0) is None
        assert [key.revoked_at_ms for key in store.list_keys()] == [None, 7]
    (copy,) = path.parent.glob("andthen.db.schema-0002.*Z")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)
        assert raw.execute("SELECT count(*) FROM keys WHERE digest IS NOT NULL").fetchone() == (2,)
    open_sqlite(path).close()
    assert list(path.parent.glob("*.schema-*")) == [copy]


def test_without_room_for_a_copy_an_older_file_stays_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    _at_schema(path, "0002")
    really = os.open

    def full(name: str | Path, *rest: int) -> int:
        if ".schema-" in str(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(name, *rest)

    monkeypatch.setattr("andthen.books.store.sqlite.os.open", full)
    with pytest.raises(StoreUnavailable, match=r"no copy could be made of it first \(No space left on device\)"):
        open_sqlite(path)
    monkeypatch.undo()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)
