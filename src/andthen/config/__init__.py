"""Settings: from the command line, then `ANDTHEN_*` variables, then `andthen.toml`, then the defaults.

Everything is checked at start; an error names the file, the line, the setting and the remedy. A setting is a field of
one of the structs in `SECTIONS`, and nothing else: what is here is read, checked and documented by itself. Knows no
server and no engine, only what can be set about them.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct

from andthen.books.prices import Prices
from andthen.books.settings import BooksSettings
from andthen.cache.settings import CacheSettings
from andthen.config.books import checked_books, checked_cache, checked_database
from andthen.config.environment import FILE_SUFFIX, Environment
from andthen.config.file import FILE_NAME, FILE_VARIABLE, SettingsFile
from andthen.config.local_models import HOUSE_MODEL, local_models
from andthen.config.prices import prices
from andthen.config.redaction import SECTION as REDACT
from andthen.config.redaction import with_redaction
from andthen.config.telemetry import checked_telemetry
from andthen.config.upstream import upstream
from andthen.config.values import (
    PREFIX,
    ConfigError,
    checked,
    near,
    parsed_variable,
    setting_types,
    variable_name,
)
from andthen.contract.request import Limits
from andthen.engine.settings import EngineSettings
from andthen.gateway.settings import ServerSettings
from andthen.observability.logs import LogSettings
from andthen.telemetry.settings import TelemetrySettings
from andthen.vendors.settings import Upstream, UpstreamSettings

__all__ = [
    "DATABASE_NAME", "FILE_NAME", "HOUSE_MODEL", "SECTIONS", "Config", "ConfigError", "database", "home_folder", "load",
]  # fmt: skip

DATABASE_NAME = "andthen.db"
HOME_VARIABLE = "ANDTHEN_HOME"

SECTIONS: dict[str, type[Struct]] = {
    "server": ServerSettings,
    "limits": Limits,
    "engine": EngineSettings,
    "upstream": UpstreamSettings,
    "books": BooksSettings,
    "cache": CacheSettings,
    "logs": LogSettings,
    "telemetry": TelemetrySettings,
}
_TABLES = ("models", "vendors", "prices", REDACT)
"""What holds tables, or rules, by name."""


class Config(Struct, frozen=True, kw_only=True):
    """Everything that was set, checked."""

    home: Path
    """The folder of the state: keys and what is made at run time."""
    file: Path | None
    """The settings file that was read, if one was."""
    server: ServerSettings
    limits: Limits
    engine: EngineSettings
    upstream: Upstream
    prices: Prices
    books: BooksSettings
    cache: CacheSettings
    logs: LogSettings
    telemetry: TelemetrySettings

    @property
    def database(self) -> str:
        """PostgreSQL's URL, or the path of the SQLite file."""
        return _place(self.books, self.home)


def load(
    environ: Mapping[str, str],
    *,
    file: Path | None = None,
    options: Mapping[tuple[str, str], object] | None = None,
    models: Sequence[str] = (),
) -> Config:
    """Reads and checks all settings.

    Args:
        environ: the environment variables; see `Environment`.
        file: the settings file; None looks at `ANDTHEN_CONFIG`, then for `andthen.toml` in the state's folder.
        options: (section, setting) → value, from the command line.
        models: `NAME=PATH` or `NAME=hf:owner/repo:file.gguf`; a NAME without a slash becomes `local/NAME`.

    Raises:
        ConfigError
    """
    _check_variables(environ)
    environ = Environment(environ)
    home = home_folder(environ)
    settings = SettingsFile.find(file, environ, home)
    for name in settings.table:
        if name not in SECTIONS and name not in _TABLES:
            raise settings.error([name], _no_section(name))
    sections = {name: _section(name, kind, settings, environ, options or {}) for name, kind in SECTIONS.items()}
    local = local_models(settings, models)
    remote = upstream(typing.cast("UpstreamSettings", sections["upstream"]), settings, environ, local)
    if not (local or remote.vendors or remote.models):
        raise ConfigError(
            "no model is enabled: enable one in [models], name a file with --model NAME=PATH, or set a vendor's key"
        )
    engine = msgspec.structs.replace(typing.cast("EngineSettings", sections["engine"]), models=local)
    return Config(
        home=home,
        file=settings.path,
        server=typing.cast("ServerSettings", sections["server"]),
        limits=typing.cast("Limits", sections["limits"]),
        engine=engine,
        upstream=remote,
        prices=prices(settings, remote, local),
        books=with_redaction(checked_books(typing.cast("BooksSettings", sections["books"]), settings), settings),
        cache=checked_cache(typing.cast("CacheSettings", sections["cache"]), settings),
        logs=typing.cast("LogSettings", sections["logs"]),
        telemetry=checked_telemetry(typing.cast("TelemetrySettings", sections["telemetry"]), settings),
    )


def database(environ: Mapping[str, str], *, file: Path | None = None) -> str:
    """What `Config.database` is, by the settings of the books alone: keys may be made while another setting is wrong.

    Raises:
        ConfigError
    """
    home = home_folder(environ)
    settings = SettingsFile.find(file, environ, home)
    books = typing.cast("BooksSettings", _section("books", BooksSettings, settings, Environment(environ), {}))
    return _place(checked_database(books, settings), home)


def _place(books: BooksSettings, home: Path) -> str:
    return books.database or str(home / DATABASE_NAME)


def home_folder(environ: Mapping[str, str]) -> Path:
    """`$ANDTHEN_HOME`, or the platform's folder for an application's data."""
    if named := environ.get(HOME_VARIABLE):
        return Path(named).expanduser().absolute()
    return platformdirs.user_data_path("andthen", appauthor=False)


def _no_section(name: str) -> str:
    homes = [f"[{section}]" for section, kind in SECTIONS.items() if name in setting_types(kind)]
    if homes:
        return f"`{name}` is a setting of {' and of '.join(homes)}: write it below that line"
    return f"there is no section [{name}]. {near(name, [*SECTIONS, *_TABLES])}"


def _section(
    section: str,
    kind: type[Struct],
    file: SettingsFile,
    environ: Mapping[str, str],
    options: Mapping[tuple[str, str], object],
) -> Struct:
    table = file.table.get(section, {})
    if not isinstance(table, dict):
        raise file.error([section], f"`{section}` is a table: write [{section}] on a line of its own, settings below")
    types = setting_types(kind)
    for name in table:
        if name not in types:
            raise file.error([section, name], f"[{section}] has no setting `{name}`. {near(name, types)}")
    given: dict[str, object] = {}
    for name, wanted in types.items():
        variable = variable_name(section, name)
        if name in table:
            given[name] = file.checked((section, name), f"[{section}] {name}", wanted)
        if text := environ.get(variable):
            given[name] = parsed_variable(text, wanted, variable)
        if (value := options.get((section, name))) is not None:
            given[name] = _option(value, wanted, name)
    return kind(**given)


def _option(value: object, wanted: object, name: str) -> object:
    return checked(value, wanted, lambda rule: ConfigError(f"--{name.replace('_', '-')} {rule}"))


def _check_variables(environ: Mapping[str, str]) -> None:
    settings = [variable_name(section, name) for section, kind in SECTIONS.items() for name in setting_types(kind)]
    known = {HOME_VARIABLE, FILE_VARIABLE, *settings, *(name + FILE_SUFFIX for name in settings)}
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in known:
            raise ConfigError(f"{variable}: no such setting. {near(variable, known)} Or unset the variable.")
