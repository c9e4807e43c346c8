"""Settings: from the command line, then `ANDTHEN_*` variables, then `andthen.toml`, then the defaults.

Everything is checked at start; an error names the file, the line, the setting and the remedy. A setting is a field of
one of the structs in `SECTIONS`, and nothing else: what is here is read, checked and documented by itself. Knows no
server and no engine, only what can be set about them.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct

from andthen.contract.request import Limits
from andthen.engine.hub import HubFile
from andthen.engine.settings import EngineSettings, ModelSettings
from andthen.logs import LogSettings
from andthen.server.settings import ServerSettings

FILE_NAME = "andthen.toml"
DATABASE_NAME = "andthen.db"
HOME_VARIABLE = "ANDTHEN_HOME"
FILE_VARIABLE = "ANDTHEN_CONFIG"
HOUSE_MODEL = "local/tale"
"""The model that ships with the package: configured unless a setting turns it off."""

_PREFIX = "ANDTHEN_"
_HOUSE = Path(__file__).parent / "engine" / "house"
_NAME_RULE = "a local model's name is local/ and then letters, digits, and . _ : - / inside, such as local/draft"
_MODEL_NAME = re.compile(r"local/[A-Za-z0-9][\w.:-]*(?:/[\w.:-]+)*", re.ASCII)


class ConfigError(Exception):
    """A setting that can't be; the message names its place and the remedy."""


class ModelTable(ModelSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A local model, under the name that requests call it by: `[models."local/NAME"]`. Either `path` or `hf`."""

    path: str = ""
    """A GGUF file; a relative path starts at the settings file's folder."""
    hf: str = ""
    """A file on the hub, `owner/repo:file.gguf`, fetched before by `andthen models pull`."""
    enabled: bool = True
    """`false` leaves the model out, also the one that ships with the package."""


SECTIONS: dict[str, type[Struct]] = {
    "server": ServerSettings,
    "limits": Limits,
    "engine": EngineSettings,
    "logs": LogSettings,
}
_ELSEWHERE = {"models"}
"""Fields of the sections that have tables of their own."""


class Config(Struct, frozen=True, kw_only=True):
    """Everything that was set, checked."""

    home: Path
    """The folder of the state: keys and what is made at run time."""
    file: Path | None
    """The settings file that was read, if one was."""
    server: ServerSettings
    limits: Limits
    engine: EngineSettings
    logs: LogSettings

    @property
    def database(self) -> Path:
        return self.home / DATABASE_NAME


def load(
    environ: Mapping[str, str],
    *,
    file: Path | None = None,
    options: Mapping[tuple[str, str], object] | None = None,
    models: Sequence[str] = (),
) -> Config:
    """Reads and checks all settings.

    Args:
        environ: the environment variables.
        file: the settings file; None looks at `ANDTHEN_CONFIG`, then for `andthen.toml` in the state's folder.
        options: (section, setting) → value, from the command line.
        models: `NAME=PATH` or `NAME=hf:owner/repo:file.gguf`; a NAME without a slash becomes `local/NAME`.

    Raises:
        ConfigError
    """
    _check_variables(environ)
    home = home_folder(environ)
    settings = _SettingsFile.find(file, environ, home)
    for name in settings.table:
        if name not in SECTIONS and name != "models":
            raise settings.error([name], _no_section(name))
    sections = {name: _section(name, kind, settings, environ, options or {}) for name, kind in SECTIONS.items()}
    found = msgspec.structs.replace(sections["engine"], models=_models(settings, models))
    return Config(
        home=home,
        file=settings.path,
        server=typing.cast("ServerSettings", sections["server"]),
        limits=typing.cast("Limits", sections["limits"]),
        engine=typing.cast("EngineSettings", found),
        logs=typing.cast("LogSettings", sections["logs"]),
    )


def home_folder(environ: Mapping[str, str]) -> Path:
    """`$ANDTHEN_HOME`, or the platform's folder for an application's data."""
    if named := environ.get(HOME_VARIABLE):
        return Path(named).expanduser().absolute()
    return platformdirs.user_data_path("andthen", appauthor=False)


class _SettingsFile:
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
    def find(cls, named: Path | None, environ: Mapping[str, str], home: Path) -> _SettingsFile:
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

    def checked(self, keys: Sequence[str], label: str, wanted: object) -> object:
        """The value under `keys`, if it is what is wanted."""
        return _checked(
            _at(self.table, keys), wanted, lambda rule: self.error(keys, f"{label} {rule}. Change or remove the line")
        )

    def error(self, keys: Sequence[str], message: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {self._line(keys)}: {message}")

    def _line(self, keys: Sequence[str]) -> int:
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


def _at(table: object, keys: Sequence[str]) -> object:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _no_section(name: str) -> str:
    homes = [f"[{section}]" for section, kind in SECTIONS.items() if name in setting_types(kind)]
    if homes:
        return f"`{name}` is a setting of {' and of '.join(homes)}: write it below that line"
    return f"there is no section [{name}]. {_near(name, [*SECTIONS, 'models'])}"


def _section(
    section: str,
    kind: type[Struct],
    file: _SettingsFile,
    environ: Mapping[str, str],
    options: Mapping[tuple[str, str], object],
) -> Struct:
    table = file.table.get(section, {})
    if not isinstance(table, dict):
        raise file.error([section], f"`{section}` is a table: write [{section}] on a line of its own, settings below")
    types = setting_types(kind)
    for name in table:
        if name not in types:
            raise file.error([section, name], f"[{section}] has no setting `{name}`. {_near(name, types)}")
    given: dict[str, object] = {}
    for name, wanted in types.items():
        variable = variable_name(section, name)
        if name in table:
            given[name] = file.checked((section, name), f"[{section}] {name}", wanted)
        if text := environ.get(variable):
            given[name] = _parsed(text, wanted, variable)
        if (value := options.get((section, name))) is not None:
            given[name] = _option(value, wanted, name)
    return kind(**given)


def _checked(value: object, wanted: object, error: Callable[[str], ConfigError]) -> object:
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        raise error(f"must be {describe(wanted)}") from None


def _option(value: object, wanted: object, name: str) -> object:
    return _checked(value, wanted, lambda rule: ConfigError(f"--{name.replace('_', '-')} {rule}"))


def _parsed(text: str, wanted: object, variable: str) -> object:
    listed = isinstance(msgspec.inspect.type_info(wanted), msgspec.inspect.VarTupleType)
    value: object = [part.strip() for part in text.split(",")] if listed else text
    try:
        return msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(f"{variable}: must be {describe(wanted)}. Change or unset the variable") from None


def _check_variables(environ: Mapping[str, str]) -> None:
    known = {HOME_VARIABLE, FILE_VARIABLE} | {
        variable_name(section, name) for section, kind in SECTIONS.items() for name in setting_types(kind)
    }
    for variable in sorted(environ):
        if variable.startswith(_PREFIX) and variable not in known:
            raise ConfigError(f"{variable}: no such setting. {_near(variable, known)} Or unset the variable.")


def _models(file: _SettingsFile, options: Sequence[str]) -> dict[str, ModelSettings]:
    """By name: the command line's first, then the file's, the house's last."""
    found: dict[str, ModelSettings] = {}
    for option in options:
        name, settings = _model_option(option)
        if name in found:
            raise ConfigError(f"--model {option}: {name} is named twice: give each model a name of its own")
        found[name] = settings
    tables = file.table.get("models", {})
    if not isinstance(tables, dict):
        raise file.error(["models"], '`models` holds a table for each model: write [models."local/NAME"]')
    for name in [*(name for name in tables if name != HOUSE_MODEL), HOUSE_MODEL]:
        table = _model_table(file, name) if name in tables else ModelTable()
        if table.enabled and name not in found:
            found[name] = _model(file, name, table)
    if not found:
        raise ConfigError("no model is enabled: enable one in [models], or name a file with --model NAME=PATH")
    return found


def _model_option(option: str) -> tuple[str, ModelSettings]:
    name, _, place = option.partition("=")
    if not (name and place):
        raise ConfigError(f"--model {option}: write --model NAME=PATH or --model NAME=hf:owner/repo:file.gguf")
    name = name if "/" in name else f"local/{name}"
    if not _MODEL_NAME.fullmatch(name):
        raise ConfigError(f"--model {option}: {_NAME_RULE}")
    try:
        path = _cached(place) if place.startswith("hf:") else Path(place).expanduser().absolute()
        return name, ModelSettings(path=str(_gguf(path)))
    except ValueError as error:
        raise ConfigError(f"--model {option}: {error}") from error


def _model_table(file: _SettingsFile, name: str) -> ModelTable:
    keys = ("models", name)
    table = _at(file.table, keys)
    if not _MODEL_NAME.fullmatch(name):
        raise file.error(keys, f'[models."{name}"]: {_NAME_RULE}')
    if not isinstance(table, dict):
        raise file.error(keys, f'`{name}` is a table: write [models."{name}"], settings below')
    types = setting_types(ModelTable)
    for key in table:
        if key not in types:
            raise file.error([*keys, key], f'[models."{name}"] has no setting `{key}`. {_near(key, types)}')
    given = {key: file.checked((*keys, key), f'[models."{name}"] {key}', types[key]) for key in table}
    return msgspec.convert(given, ModelTable)


def _model(file: _SettingsFile, name: str, table: ModelTable) -> ModelSettings:
    keys = ("models", name)
    ours = name == HOUSE_MODEL and not (table.path or table.hf)
    if bool(table.path) + bool(table.hf) + ours != 1:
        raise file.error(keys, f'[models."{name}"] needs either `path = "x.gguf"` or `hf = "owner/repo:x.gguf"`')
    try:
        if ours:
            (path,) = _HOUSE.glob("*.gguf")
        elif table.hf:
            path = _cached(table.hf)
        else:
            path = (file.path or Path()).absolute().parent / Path(table.path).expanduser()
        path = _gguf(path)
    except ValueError as error:
        raise file.error((*keys, "hf" if table.hf else "path"), f'[models."{name}"] {error}') from error
    return ModelSettings(
        path=str(path),
        context=table.context,
        cells=table.cells,
        gpu_layers=table.gpu_layers,
        deterministic=table.deterministic or ours,
    )


def _cached(name: str) -> Path:
    file = HubFile.parse(name)
    found = file.cached()
    if found is None:
        raise ValueError(f"{file} is not on this machine yet: run `andthen models pull {file}`")
    return found


def _gguf(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ValueError(f"{path} is no GGUF file: it does not begin with `GGUF`. Convert the model, or name another")
    return path


def setting_types(kind: type[Struct]) -> dict[str, object]:
    """Setting → type with its bounds, for the fields of one section."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__ if name not in _ELSEWHERE}


def variable_name(section: str, name: str) -> str:
    return f"{_PREFIX}{section}_{name}".upper()


def describe(wanted: object) -> str:
    """A type in words: `an integer from 0 to 65535`."""
    return _describe(msgspec.inspect.type_info(wanted))


def _describe(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            word = "an integer" if isinstance(kind, msgspec.inspect.IntType) else "a number"
            bounds = {"at least": kind.ge, "above": kind.gt, "at most": kind.le, "below": kind.lt}
            return ", ".join([word, *(f"{side} {bound}" for side, bound in bounds.items() if bound is not None)])
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case msgspec.inspect.VarTupleType(item_type=item):
            return f"a list, each {_describe(item)}"
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(_describe(one) for one in types if not isinstance(one, msgspec.inspect.NoneType))
        case msgspec.inspect.StrType():
            return "a text"
    raise TypeError(f"no setting has the type {kind}")


def _near(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean `{close[0]}`?" if close else f"There are: {', '.join(names)}."


def settings_markdown() -> str:
    """The tables of docs/settings.md."""
    return (
        "\n\n".join(_table_markdown(f"[{section}]", kind, section) for section, kind in SECTIONS.items())
        + "\n\n"
        + _table_markdown('[models."local/NAME"]', ModelTable, None)
    )


def _table_markdown(title: str, kind: type[Struct], section: str | None) -> str:
    documents = _documents(kind)
    defaults = {field.name: field.default for field in msgspec.structs.fields(kind)}
    about = [inspect.cleandoc(kind.__doc__), ""] if kind.__doc__ else []
    rows = [f"### `{title}`", "", *about, "| setting | default | must be | |", "|---|---|---|---|"]
    for name, wanted in setting_types(kind).items():
        shown = "–" if defaults[name] in (None, "", ()) else f"`{msgspec.json.encode(defaults[name]).decode()}`"
        variable = f"<br>`{variable_name(section, name)}`" if section else ""
        rows.append(f"| `{name}`{variable} | {shown} | {describe(wanted)} | {documents[name]} |")
    return "\n".join(rows)


def _documents(kind: type[Struct]) -> dict[str, str]:
    """Setting → the text that stands under its field in the source."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[: kind.__mro__.index(Struct)]):
        (body,) = ast.parse(inspect.getsource(owner)).body
        for field, text in itertools.pairwise(body.body if isinstance(body, ast.ClassDef) else []):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(document))):
                    found[name] = " ".join(document.split())
    return found
