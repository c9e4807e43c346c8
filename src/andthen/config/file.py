"""The settings file: parsed, with the line of each of its keys, its tables checked. Knows no setting."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from andthen.config.values import ConfigError, checked, near, setting_types

FILE_NAME = "andthen.toml"
FILE_VARIABLE = "ANDTHEN_CONFIG"

_Table = TypeVar("_Table", bound=Struct)


class SettingsFile:
    """The parsed file, which knows at which line each of its keys stands."""

    def __init__(self, path: Path | None, text: str) -> None:
        self.path = path
        self._lines = text.splitlines(keepends=True)
        try:
            self.table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f'{path}: {error}. Write text as "text", and a model\'s table as [models."local/NAME"]'
            ) from error

    @classmethod
    def find(cls, named: Path | None, environ: Mapping[str, str], home: Path) -> SettingsFile:
        if named is None and environ.get(FILE_VARIABLE):
            named = Path(environ[FILE_VARIABLE]).expanduser()
        path = named or home / FILE_NAME
        try:
            return cls(path, path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            if named is None:
                return cls(None, "")
            raise ConfigError(f"{path}: there is no such settings file: check --config or {FILE_VARIABLE}") from error
        except OSError as error:
            raise ConfigError(f"{path}: the settings file can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: the settings file is not UTF-8: save it as UTF-8") from error

    @property
    def folder(self) -> Path:
        """Where its relative paths start."""
        return (self.path or Path()).absolute().parent

    def at(self, keys: Sequence[str | int]) -> object:
        return _at(self.table, keys)

    def exact(self, keys: Sequence[str | int]) -> object:
        """What stands there, with decimals in the place of floats: as they are written."""
        return _at(tomllib.loads("".join(self._lines), parse_float=Decimal), keys)

    def tables(self, section: str, shape: str) -> dict[str, object]:
        """What stands in a section that holds tables by name; `shape` is how the head of one is written."""
        found = self.table.get(section, {})
        if not isinstance(found, dict):
            raise self.error([section], f"`{section}` holds a table for each: write {shape}")
        return found

    def read(self, keys: Sequence[str], label: str, kind: type[_Table], also: Collection[str] = ()) -> _Table:
        """The table under `keys`, checked: its names, then each value.

        Args:
            label: the table's head, as it is written.
            also: more names to mention where one is unknown.
        """
        table = self.at(keys)
        if not isinstance(table, dict):
            raise self.error(keys, f"`{keys[-1]}` is a table: write {label}, settings below")
        types = setting_types(kind)
        for key in table:
            if key not in types:
                raise self.error([*keys, key], f"{label} has no setting `{key}`. {near(key, {*types, *also})}")
        return msgspec.convert({key: self.checked((*keys, key), f"{label} {key}", types[key]) for key in table}, kind)

    def checked(self, keys: Sequence[str], label: str, wanted: object) -> object:
        """The value under `keys`, if it is what is wanted."""
        return checked(
            self.at(keys), wanted, lambda rule: self.error(keys, f"{label} {rule}. Change or remove the line")
        )

    def error(self, keys: Sequence[str | int], message: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {self._line(keys)}: {message}")

    def _line(self, keys: Sequence[str | int]) -> int:
        """Where the statement begins that brings `keys` in: behind the longest beginning of the file that parses and
        lacks them."""
        before = 0
        for count in range(1, len(self._lines) + 1):
            try:
                beginning = tomllib.loads("".join(self._lines[:count]))
            except tomllib.TOMLDecodeError:
                continue
            if _at(beginning, keys) is not None:
                break
            before = count
        return before + 1


def _at(table: object, keys: Sequence[str | int]) -> object:
    """The value below the keys; an integer counts in an array."""
    for key in keys:
        if isinstance(key, int):
            table = table[key] if isinstance(table, list) and key < len(table) else None
        else:
            table = table.get(key) if isinstance(table, dict) else None
    return table
