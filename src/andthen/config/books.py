"""What is set about the books, checked. An address here may hold a password, so no message quotes one."""

from __future__ import annotations

import importlib.util
import re
from urllib.parse import urlsplit

from andthen.books.settings import BooksSettings
from andthen.config.file import SettingsFile
from andthen.config.values import ConfigError, variable_name


def checked_books(settings: BooksSettings, file: SettingsFile) -> BooksSettings:
    """The settings as they are. Raises ConfigError."""
    checked_database(settings, file)
    try:
        if settings.redis:
            _check_redis(settings.redis)
    except ValueError as error:
        raise _wrong("redis", settings.redis, str(error), file) from None
    return settings


def checked_database(settings: BooksSettings, file: SettingsFile) -> BooksSettings:
    """The settings as they are, whatever is wrong about those of Redis. Raises ConfigError."""
    place = settings.database
    # SQLite would make a file of whatever it is given, in whatever folder the command was started in.
    if place and not place.startswith(("postgresql://", "postgres://", "/")):
        what = (
            "is no address of PostgreSQL: write postgresql://user:password@host:5432/name, or leave it out for SQLite"
        )
        raise _wrong("database", place, what, file)
    return settings


def _wrong(name: str, value: str, what: str, file: SettingsFile) -> ConfigError:
    if file.at(("books", name)) == value:
        return file.error(("books", name), f"[books] {name} {what}")
    return ConfigError(f"{variable_name('books', name)}: {what}")


def _check_redis(url: str) -> None:
    """Raises ValueError, whose text goes on from the setting's name."""
    try:
        parts = urlsplit(url)
        by_host = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
        sound = by_host or (parts.scheme == "unix" and parts.path.startswith("/"))
    except ValueError:
        sound = False
    if not sound or not url.isprintable() or not re.fullmatch(r"(db=\d+)?", parts.query):
        raise ValueError("is no address of Redis: write redis://user:password@host:6379/0, rediss://… or unix:///path")
    if importlib.util.find_spec("redis") is None:
        raise ValueError("needs the package redis: install `andthen[redis]`")
