"""What is set about kept texts, and what is said when it can't be."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from andthen.books import redaction
from andthen.config import ConfigError, load


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"ANDTHEN_HOME": str(tmp_path)}


def write(environ: dict[str, str], text: str) -> None:
    (Path(environ["ANDTHEN_HOME"]) / "andthen.toml").write_text(text)


def test_by_default_no_text_is_kept(environ: dict[str, str]) -> None:
    books = load(environ).books
    assert (books.keep_text_days, books.redact_common, books.redact) == (None, True, {})


def test_rules_are_read_in_their_order(environ: dict[str, str]) -> None:
    write(environ, "[books]\nkeep_text_days = 7\n[redact]\nticket = 'T-\\d+'\n'case number' = '(?i)case \\d+'\n")
    books = load(environ).books
    assert list(books.redact.items()) == [("ticket", r"T-\d+"), ("case number", r"(?i)case \d+")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[redact]\nx = '('\n", r"line 2: \[redact\] x is no regular expression of RE2 \(missing \)"),
        ("[redact]\nx = '(?=a)b'\n", r"line 2: \[redact\] x is no regular expression of RE2"),
        ("[redact]\nx = 'a*'\n", r"line 2: \[redact\] x matches an empty text"),
        ("[redact]\nX = 'a'\n", r"line 2: \[redact\] X is no name of a rule"),
        ("[redact]\nx = 3\n", r"line 2: \[redact\] x must be a text"),
        ("redact = 3\n", "line 1: `redact` is a table"),
        ("[books]\nredact = 3\n", r"line 2: \[books\] has no setting `redact`"),
        ("[books]\nkeep_text_days = 0\n", r"line 2: \[books\] keep_text_days must be an integer, at least 1"),
    ],
)
def test_what_cannot_be_is_told_with_its_line(environ: dict[str, str], text: str, told: str) -> None:
    write(environ, text)
    with pytest.raises(ConfigError, match=told):
        load(environ)


def test_what_must_be_installed_is_told(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(redaction, "find_spec", find)
    with pytest.raises(ConfigError, match=r"\[books\] keep_text_days needs the package google-re2: install `andthen"):
        load(environ | {"ANDTHEN_BOOKS_KEEP_TEXT_DAYS": "7"})
    assert load(environ).books.keep_text_days is None
