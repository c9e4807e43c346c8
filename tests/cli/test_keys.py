"""`andthen keys`."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

from andthen.books.store import open_sqlite
from tests.cli.running import run


def test_create_prints_only_the_key_and_it_is_in_force(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "create", "--name", "ci")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"at-[0-9A-Za-z]{43}\n", done.stdout)
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        found = store.key_ring().lookup(done.stdout.strip())
    assert found is not None
    assert found.name == "ci"


def test_keys_are_listed_without_their_secrets_and_revoked(tmp_path: Path) -> None:
    secrets = [run(tmp_path, "keys", "create", "--name", name).stdout.strip() for name in ("ci", "laptop of Ada")]
    listed = run(tmp_path, "keys", "list").stdout
    head, first, second = listed.splitlines()
    assert head.split() == ["ID", "NAME", "CREATED", "REVOKED"]
    assert re.fullmatch(r"key_\w{13}  ci             \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", first)
    assert "laptop of Ada" in second
    assert not [secret for secret in secrets if secret in listed]

    by_name = run(tmp_path, "keys", "revoke", "laptop of Ada")
    by_id = run(tmp_path, "keys", "revoke", first.split()[0])
    assert re.fullmatch(r"key_\w{13} \(laptop of Ada\) is revoked, since \S+ \S+Z\n", by_name.stdout)
    assert (by_name.returncode, by_id.returncode) == (0, 0)
    revoked = run(tmp_path, "keys", "list").stdout.splitlines()[1:]
    assert all(re.search(r"Z  \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ$", line) for line in revoked)
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        assert len(store.key_ring()) == 0


def test_what_is_not_there_is_exit_code_1(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "revoke", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: no key in force has the id or name 'nobody': `andthen keys list` shows them\n"


def test_a_name_that_is_taken_is_exit_code_1(tmp_path: Path) -> None:
    run(tmp_path, "keys", "create", "--name", "ci")
    done = run(tmp_path, "keys", "create", "--name", "ci")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'ci' is in force" in done.stderr


def test_a_name_that_is_none_is_exit_code_2(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "create", "--name", "a\nb")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a key's name has 1 to 64 letters" in done.stderr


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file", "keys", "list")
    assert done.returncode == 1
    assert "set ANDTHEN_HOME to a folder that can be written" in done.stderr
