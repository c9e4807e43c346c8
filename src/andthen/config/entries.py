"""One table of what stands upstream, and what may be wrong in it. Knows no other table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from msgspec.structs import fields, replace

from andthen.config import addresses
from andthen.config.file import SettingsFile
from andthen.config.remote_tables import ReachTable
from andthen.config.values import ConfigError, near
from andthen.contract.fields import completion_fields
from andthen.contract.limits import Limits
from andthen.plan.abilities import Way
from andthen.vendors.rows import laid_over, language_struct, languages
from andthen.vendors.settings import Remote, Timeouts

_TIMEOUTS = tuple(field.name for field in fields(Timeouts))
_FIELDS = frozenset(field.name for field in completion_fields(Limits())) - {"model", "prompt"}

_Value = TypeVar("_Value")


class Entry:
    """What a table says of a server.

    Args:
        keys: where it stands in the file.
        label: its head, as it is written.
    """

    def __init__(
        self, file: SettingsFile, environ: Mapping[str, str], keys: tuple[str, str], label: str, table: ReachTable
    ) -> None:
        self._file = file
        self._environ = environ
        self._keys = keys
        self._label = label
        self.table = table
        if table.language and table.language not in languages():
            raise self.error("language", f"is {table.language!r}. {near(table.language, languages())}")

    def error(self, setting: str, message: str) -> ConfigError:
        """About a setting, or with an empty one about the table; `message` goes on from its name."""
        keys = (*self._keys, setting) if setting else self._keys
        return self._file.error(keys, " ".join(part for part in (self._label, setting, message) if part))

    def key(self) -> str | None:
        """The key that it names; None where it names none. An empty one says that none is sent."""
        table = self.table
        if table.key is not None and table.key_variable:
            raise self.error("key", "stands beside key_variable: write one of the two")
        key, setting, whose = table.key, "key", "the key"
        if table.key_variable:
            key, missing = addresses.key_of(table.key_variable, self._environ)
            setting, whose = "key_variable", f"the key in {table.key_variable}"
            if missing:
                raise self.error(setting, f"names {' and '.join(missing)}, which the environment lacks: set it")
        if key is not None and not addresses.is_sendable(key):
            raise self.error(setting, f"can't be used: {whose} holds characters that a header can't carry")
        return key

    def addressed(self, remote: Remote) -> Remote:
        """With the address that it names, if it does; that may then be as private as it is written."""
        if not self.table.address:
            return remote
        if missing := addresses.lacking(self.table.address, self._environ):
            raise self.error("address", f"names {' and '.join(missing)}, which the environment lacks: set it")
        address = self._sound("address", lambda: addresses.filled(self.table.address, self._environ))
        private = remote.access.private or addresses.is_private(address)
        return replace(remote, address=address, access=replace(remote.access, private=private))

    def reached(self, remote: Remote) -> Remote:
        """With its headers and what it says of the way there."""
        table, access = self.table, remote.access
        proxy, ca_file, headers = access.proxy, access.ca_file, remote.headers
        if table.proxy is not None:
            proxy = table.proxy
            self._sound("proxy", lambda: addresses.check_proxy(table.proxy or ""))
        if table.ca_file is not None:
            ca_file = self._sound("ca_file", lambda: addresses.certificates(table.ca_file or "", self._file.folder))
        if table.headers:
            headers = headers | self._sound("headers", lambda: addresses.checked_headers(table.headers))
        own_times = {name: value for name in _TIMEOUTS if (value := getattr(table, name)) is not None}
        private = access.private if table.private is None else table.private
        access = replace(
            access, timeouts=replace(access.timeouts, **own_times), proxy=proxy, ca_file=ca_file, private=private
        )
        return replace(remote, headers=headers, access=access)

    def described(self, remote: Remote) -> Remote:
        """With what it says of abilities and dialect, which are checked."""
        table = self.table
        for name, take in table.takes.items():
            if name not in _FIELDS:
                raise self.error("takes", f"names `{name}`, which is no field of a request. {near(name, _FIELDS)}")
            low, high = take if isinstance(take, tuple) else (take.min, take.max) if isinstance(take, Way) else (0, 0)
            if low is not None and high is not None and low > high:
                raise self.error("takes", f"has a range for `{name}` whose end is before its beginning")
        for name in table.always or ():
            if name not in _FIELDS:
                raise self.error("always", f"names `{name}`, which is no field of a request. {near(name, _FIELDS)}")
        remote = replace(remote, over=laid_over(remote.over, table.profile()))
        names = language_struct(remote.resolved().language).__struct_fields__ if table.dialect else ()
        for name in table.dialect:
            if name not in names:
                known = near(name, names) if names else "It has no dialects."
                raise self.error("dialect", f"has `{name}`, which {remote.language} has not. {known}")
        try:
            remote.resolved().wire()
        except msgspec.ValidationError as error:
            raise self.error("dialect", f"is not {remote.language}'s: {error}") from None
        return remote

    def _sound(self, setting: str, read: Callable[[], _Value]) -> _Value:
        try:
            return read()
        except ValueError as error:
            raise self.error(setting, str(error)) from None
