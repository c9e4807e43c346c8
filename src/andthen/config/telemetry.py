"""What is set about telemetry, checked. The address may hold a password, so no message quotes it."""

from __future__ import annotations

import importlib.util
from urllib.parse import urlsplit

from andthen.config.file import SettingsFile
from andthen.config.values import ConfigError, variable_name
from andthen.telemetry.settings import TelemetrySettings


def checked_telemetry(settings: TelemetrySettings, file: SettingsFile) -> TelemetrySettings:
    """The settings as they are. Raises ConfigError."""
    if settings.endpoint and (what := _wrong(settings.endpoint)):
        keys = ("telemetry", "endpoint")
        if file.at(keys) == settings.endpoint:
            raise file.error(keys, f"[telemetry] endpoint {what}")
        raise ConfigError(f"{variable_name(*keys)}: {what}")
    return settings


def _wrong(endpoint: str) -> str:
    """What is wrong, if something is; goes on from the setting's name."""
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not endpoint.isprintable() or " " in endpoint or parts.query or parts.fragment:
        return "is no address of a collector: write http://host:4318 or https://…, without /v1/traces"
    if not _has_exporter():
        return "needs the packages of OpenTelemetry: install `andthen[otel]`"
    return ""


def _has_exporter() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False
