"""What is set about the books and the cache, checked. An address here may hold a password, so no message quotes one."""

from __future__ import annotations

import importlib.util
import re
from urllib.parse import urlsplit

from andthen.books.settings import BooksSettings
from andthen.cache.settings import CacheSettings
from andthen.config.file import SettingsFile
from andthen.config.values import ConfigError, variable_name


def checked_books(settings: BooksSettings, file: SettingsFile) -> BooksSettings:
    """The settings as they are. Raises ConfigError."""
    checked_database(settings, file)
    if settings.redis:
        _check_redis("books", settings.redis, file)
    return settings


def checked_cache(settings: CacheSettings, file: SettingsFile) -> CacheSettings:
    """The settings as they are. Raises ConfigError."""
    if settings.redis:
        _check_redis("cache", settings.redis, file)
    return settings


def checked_database(settings: BooksSettings, file: SettingsFile) -> BooksSettings:
    """The settings as they are, whatever is wrong about those of Redis. Raises ConfigError."""
    place = settings.database
    # SQLite would make a file of whatever it is given, in whatever folder the command was started in.
    if place and not place.startswith(("postgresql://", "postgres://", "/")):
        what = (
            "is no address of PostgreSQL: write postgresql://user:password@host:5432/name, or leave it out for SQLite"
        )
        raise _wrong("books", "database", place, what, file)
    return settings


def _wrong(section: str, name: str, value: str, what: str, file: SettingsFile) -> ConfigError:
    if file.at((section, name)) == value:
        return file.error((section, name), f"[{section}] {name} {what}")
    return ConfigError(f"{variable_name(section, name)}: {what}")


def _check_redis(section: str, url: str, file: SettingsFile) -> None:
    """Raises ConfigError."""
    try:
        parts = urlsplit(url)
        by_host = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
        sound = by_host or (parts.scheme == "unix" and parts.path.startswith("/"))
    except ValueError:
        sound = False
    if not sound or not url.isprintable() or not re.fullmatch(r"(db=\d+)?", parts.query):
        what = "is no address of Redis: write redis://user:password@host:6379/0, rediss://… or unix:///path"
        raise _wrong(section, "redis", url, what, file)
    if importlib.util.find_spec("redis") is None:
        raise _wrong(section, "redis", url, "needs the package redis: install `andthen[redis]`", file)
