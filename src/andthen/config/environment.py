"""The environment's variables, some of whose values lie in files: so secrets are handed to containers and services, and
a file can be exchanged while the server runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from andthen.config.values import ConfigError

FILE_SUFFIX = "_FILE"


class Environment(Mapping[str, str]):
    """A variable that is not set, or empty, has what is in the file that the variable of its name and `_FILE` names,
    without blanks and line ends around it. A file is read whenever it is asked for. Looking up raises `ConfigError`."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> str:
        value, path = self._variables.get(name, ""), self._variables.get(name + FILE_SUFFIX, "")
        if not path:
            return self._variables[name]
        if value:
            raise ConfigError(f"{name} and {name}{FILE_SUFFIX} are both set: unset one of them")
        try:
            return Path(path).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"{name}{FILE_SUFFIX} names {path}, which can't be read: {reason}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)
