"""The local models: files of the embedded engine, by the names that requests call them by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from andthen.config.file import SettingsFile
from andthen.config.values import ConfigError
from andthen.engine.hub import HubFile
from andthen.engine.settings import ModelSettings

HOUSE_MODEL = "local/tale"
"""The model that ships with the package: configured unless a setting turns it off."""
LOCAL = "local/"
"""What the names of local models begin with, and no others."""

_HOUSE = Path(__file__).parent.parent / "engine" / "house"
_NAME_RULE = "a local model's name is local/ and then letters, digits, and . _ : - / inside, such as local/draft"
_NAME = re.compile(r"local/[A-Za-z0-9][\w.:-]*(?:/[\w.:-]+)*", re.ASCII)


class ModelTable(ModelSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A local model, under the name that requests call it by: `[models."local/NAME"]`. Either `path` or `hf`."""

    path: str = ""
    """A GGUF file; a relative path starts at the settings file's folder."""
    hf: str = ""
    """A file on the hub, `owner/repo:file.gguf`, fetched before by `andthen models pull`."""
    enabled: bool = True
    """`false` leaves the model out, also the one that ships with the package."""


def local_models(file: SettingsFile, options: Sequence[str]) -> dict[str, ModelSettings]:
    """By name: the command line's first, then the file's, the house's last."""
    found: dict[str, ModelSettings] = {}
    for option in options:
        name, settings = _model_option(option)
        if name in found:
            raise ConfigError(f"--model {option}: {name} is named twice: give each model a name of its own")
        found[name] = settings
    tables = [name for name in file.tables("models", '[models."local/NAME"]') if name.startswith(LOCAL)]
    for name in [*(name for name in tables if name != HOUSE_MODEL), HOUSE_MODEL]:
        table = _model_table(file, name) if name in tables else ModelTable()
        if table.enabled and name not in found:
            found[name] = _model(file, name, table)
    return found


def _model_option(option: str) -> tuple[str, ModelSettings]:
    name, _, place = option.partition("=")
    if not (name and place):
        raise ConfigError(f"--model {option}: write --model NAME=PATH or --model NAME=hf:owner/repo:file.gguf")
    name = name if "/" in name else f"local/{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--model {option}: {_NAME_RULE}")
    try:
        path = _cached(place) if place.startswith("hf:") else Path(place).expanduser().absolute()
        return name, ModelSettings(path=str(_gguf(path)))
    except ValueError as error:
        raise ConfigError(f"--model {option}: {error}") from error


def _model_table(file: SettingsFile, name: str) -> ModelTable:
    keys = ("models", name)
    if not _NAME.fullmatch(name):
        raise file.error(keys, f'[models."{name}"]: {_NAME_RULE}')
    return file.read(keys, f'[models."{name}"]', ModelTable)


def _model(file: SettingsFile, name: str, table: ModelTable) -> ModelSettings:
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
            path = file.folder / Path(table.path).expanduser()
        path = _gguf(path)
    except ValueError as error:
        raise file.error((*keys, "hf" if table.hf else "path"), f'[models."{name}"] {error}') from error
    return ModelSettings(
        path=str(path),
        context=table.context,
        cells=table.cells,
        gpu_layers=table.gpu_layers,
        deterministic=table.deterministic or ours,
        suffix_first=table.suffix_first,
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
