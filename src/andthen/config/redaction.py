"""The rules by which kept texts are redacted, checked."""

from __future__ import annotations

from msgspec.structs import replace

from andthen.books.redaction import BadRule, check_installed, check_rule
from andthen.books.settings import BooksSettings
from andthen.config.file import SettingsFile
from andthen.config.values import ConfigError

SECTION = "redact"


def with_redaction(books: BooksSettings, file: SettingsFile) -> BooksSettings:
    """The settings with the rules of `[redact]`, in the order of the file. Raises ConfigError."""
    table = file.table.get(SECTION, {})
    if not isinstance(table, dict):
        raise file.error([SECTION], f"`{SECTION}` is a table: write [{SECTION}], and below it NAME = 'EXPRESSION'")
    for name, pattern in table.items():
        try:
            if not isinstance(pattern, str):
                raise BadRule("must be a text: write NAME = 'EXPRESSION'")
            check_rule(name, pattern)
        except BadRule as error:
            raise file.error([SECTION, name], f"[{SECTION}] {name} {error}. Change or remove the line") from None
    if books.keep_text_days is not None and books.redact_common:
        try:
            check_installed()
        except BadRule as error:
            raise ConfigError(f"[books] keep_text_days {error}, or set redact_common = false") from None
    return replace(books, redact=table)
