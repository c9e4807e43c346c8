"""Who stands upstream: vendors, models of theirs or at servers of one's own, and names for several of them.

Everything that can be known without a call is checked here, so that no request meets a mistake of the settings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import fields, replace

from andthen.config import addresses
from andthen.config.entries import Entry
from andthen.config.file import SettingsFile
from andthen.config.local_models import LOCAL
from andthen.config.remote_tables import RemoteTable, RouteTable, VendorTable
from andthen.config.routes import Circle, flattened
from andthen.config.values import ConfigError, near, setting_types, variable_name
from andthen.vendors.rows import VendorRow, languages, vendors
from andthen.vendors.settings import Access, Remote, Share, Timeouts, Upstream, UpstreamSettings

_PREFIX = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def upstream(
    settings: UpstreamSettings, file: SettingsFile, environ: Mapping[str, str], local: Collection[str]
) -> Upstream:
    """Everything behind the endpoint beside the engine's own models, `local`.

    Raises:
        ConfigError
    """
    return _Reader(_checked_section(settings, file), file, environ).read(local)


def _checked_section(settings: UpstreamSettings, file: SettingsFile) -> UpstreamSettings:
    name, folder = "proxy", Path().absolute()
    try:
        addresses.check_proxy(settings.proxy)
        name = "ca_file"
        if file.at(("upstream", name)) == settings.ca_file:
            folder = file.folder
        return replace(settings, ca_file=addresses.certificates(settings.ca_file, folder))
    except ValueError as error:
        if file.at(("upstream", name)) == getattr(settings, name):
            raise file.error(("upstream", name), f"[upstream] {name} {error}") from None
        raise ConfigError(f"{variable_name('upstream', name)}: {error}") from None


class _Vendor(Struct, frozen=True):
    """A vendor, switched on or not."""

    remote: Remote
    row: VendorRow | None
    no_address: str = ""
    """Why its address is not known, with the remedy."""
    no_key: str = ""
    """Why its key is not known, with the remedy."""
    wanted: bool = False
    """It is to be switched on, if nothing lacks."""

    @property
    def lacks(self) -> str:
        return self.no_address or self.no_key


class _Reader:
    def __init__(self, settings: UpstreamSettings, file: SettingsFile, environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._settings = settings
        times = {field.name: getattr(settings, field.name) for field in fields(Timeouts)}
        self._access = Access(timeouts=Timeouts(**times), proxy=settings.proxy, ca_file=settings.ca_file)
        self._tables = file.tables("vendors", "[vendors.PREFIX]")
        self._vendors = {prefix: self._vendor(prefix) for prefix in dict.fromkeys([*self._tables, *vendors()])}

    def read(self, local: Collection[str]) -> Upstream:
        models: dict[str, Remote] = {}
        routes: dict[str, tuple[Share, ...]] = {}
        for name in self._file.tables("models", '[models."VENDOR/NAME"]'):
            if name.startswith(LOCAL):
                continue
            table = self._model_table(name)
            if table.enabled is False:
                continue
            if isinstance(table, RouteTable):
                routes[name] = self._shares(name, table)
            else:
                models[name] = self._model(name, table)
        on = {prefix: one.remote for prefix, one in self._vendors.items() if one.wanted and not one.lacks}
        found = Upstream(settings=self._settings, vendors=on, models=models)
        for name, shares in routes.items():
            for share in shares:
                if share.model not in local and share.model not in routes and found.find(share.model) is None:
                    raise self._no_target(name, share.model, [*local, *routes, *found.listed()])
        try:
            return replace(found, routes=flattened(routes))
        except Circle as circle:
            (name,) = circle.args
            raise self._file.error(
                ("models", name), f'[models."{name}"] stands for itself in the end: name other models'
            ) from None

    def _vendor(self, prefix: str) -> _Vendor:
        keys, label = ("vendors", prefix), f"[vendors.{prefix}]"
        if f"{prefix}/" == LOCAL or not _PREFIX.fullmatch(prefix):
            raise self._file.error(keys, f"{label}: a prefix is letters, digits, and . _ - inside, and not `local`")
        listed, row = prefix in self._tables, vendors().get(prefix)
        table = self._file.read(keys, label, VendorTable) if listed else VendorTable()
        entry = Entry(self._file, self._environ, keys, label, table)
        if row is None:
            return self._own_vendor(entry, table, prefix)
        variables = row.key_variable if table.key is None and not table.key_variable else ""
        key, missing = addresses.key_of(variables, self._environ)
        remote = Remote(
            vendor=table.name or row.name,
            prefix=prefix if table.language in ("", row.language) else "",
            address="",
            key=entry.key() or (key if not missing else ""),
            headers=row.headers,
            language=table.language or row.language,
            access=replace(self._access, private=row.private),
        )
        no_address = ""
        if not table.address:
            remote, no_address = self._at_home(remote, row)
        remote = entry.reached(entry.addressed(remote))
        wanted = table.enabled is not False and (listed or bool(row.key_variable))
        found = _Vendor(
            remote=entry.described(remote) if listed else remote,
            row=row,
            no_address=no_address and f"{no_address}, or write `address` into {label}",
            no_key="" if table.address or not missing else f"set {' and '.join(missing)} in the environment",
            wanted=wanted,
        )
        insists = bool(table.enabled or table.key or table.key_variable or table.address)
        if wanted and insists and found.lacks:
            raise entry.error("", f"can't be switched on: {found.lacks}")
        return found

    def _own_vendor(self, entry: Entry, table: VendorTable, prefix: str) -> _Vendor:
        if not (table.address and table.language):
            raise entry.error(
                "", f"needs `address` and `language`, since no vendor is known by this name. {near(prefix, vendors())}"
            )
        remote = Remote(
            vendor=table.name or prefix, address="", key=entry.key() or "", language=table.language, access=self._access
        )
        remote = entry.described(entry.reached(entry.addressed(remote)))
        return _Vendor(remote, None, wanted=table.enabled is not False)

    def _at_home(self, remote: Remote, row: VendorRow) -> tuple[Remote, str]:
        """With the address that the row says, or why that is not known."""
        if not row.address:
            return remote, "its address is the operator's"
        if missing := addresses.lacking(row.address, self._environ):
            return remote, f"set {' and '.join(missing)} in the environment"
        try:
            address = addresses.filled(row.address, self._environ)
        except ValueError as error:
            return remote, f"the address that the environment gives {error}: mend it"
        private = remote.access.private or (address != row.address.rstrip("/") and addresses.is_private(address))
        return replace(remote, address=address, access=replace(remote.access, private=private)), ""

    def _model_table(self, name: str) -> RemoteTable | RouteTable:
        keys, label = ("models", name), f'[models."{name}"]'
        prefix, _, model = name.partition("/")
        if not (prefix and model) or not name.isprintable() or " " in name:
            raise self._file.error(
                keys, f"{label}: a model is named vendor/model, without blanks, such as team/draft or local/draft"
            )
        table = self._file.at(keys)
        if isinstance(table, dict) and table.keys() & {"alias", "deployments"}:
            return self._file.read(keys, label, RouteTable)
        return self._file.read(keys, label, RemoteTable, also=setting_types(RouteTable))

    def _model(self, name: str, table: RemoteTable) -> Remote:
        entry = Entry(self._file, self._environ, ("models", name), f'[models."{name}"]', table)
        if table.vendor and table.vendor not in self._vendors:
            raise entry.error("vendor", f"is {table.vendor!r}. {near(table.vendor, self._vendors)}")
        prefix, _, model = name.partition("/")
        model = table.model or model
        vendor = self._vendors.get(table.vendor or prefix)
        if vendor is None:
            if not (table.address and table.language):
                raise entry.error(
                    "",
                    "needs the `address` and the `language` of a server, the `vendor` whose model it is, "
                    f"or `alias` or `deployments`. Languages: {', '.join(languages())}",
                )
            base = Remote(vendor=prefix, address="", language=table.language, access=self._access)
        else:
            base = self._of_vendor(entry, vendor, model)
        key = entry.key()
        remote = replace(base, model=model, key=base.key if key is None else key)
        return entry.described(entry.reached(entry.addressed(remote)))

    def _of_vendor(self, entry: Entry, vendor: _Vendor, model: str) -> Remote:
        """What a model's table starts from. A vendor's key and the operator's headers for it go to no other address."""
        table, remote = entry.table, vendor.remote
        if table.address:
            headers = vendor.row.headers if vendor.row is not None else {}
            remote = replace(remote, key="", headers=headers)
        elif vendor.no_address:
            raise entry.error("", f"can't be reached: {vendor.no_address}")
        elif vendor.no_key and entry.key() is None:
            raise entry.error("", f"needs a key: {vendor.no_key}, or write `key_variable`")
        if remote.prefix:
            row = vendors()[remote.prefix]
            spoken = row.resolve(model).language
            return replace(
                remote,
                language=table.language or spoken,
                prefix=remote.prefix if table.language in ("", spoken) else "",
            )
        return replace(remote, language=table.language or remote.language)

    def _shares(self, name: str, table: RouteTable) -> tuple[Share, ...]:
        if bool(table.alias) == bool(table.deployments):
            raise self._file.error(
                ("models", name), f'[models."{name}"] needs one of `alias` and `deployments`, and no more'
            )
        return table.deployments or (Share(model=table.alias),)

    def _no_target(self, name: str, target: str, known: list[str]) -> ConfigError:
        vendor = self._vendors.get(target.partition("/")[0])
        if vendor is not None and not (vendor.wanted and not vendor.lacks):
            why = f"{vendor.remote.vendor} is not switched on" + (f": {vendor.lacks}" if vendor.lacks else "")
        else:
            why = f"no such model is configured. {near(target, known)}" if known else "no such model is configured"
        return self._file.error(("models", name), f'[models."{name}"] stands for {target}: {why}')
