"""What may be set about telemetry, and what providers are called there."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import msgspec
import pytest

from andthen.config import ConfigError, load
from andthen.vendors.rows import vendors

PROVIDERS = {
    "anthropic", "aws.bedrock", "azure.ai.inference", "azure.ai.openai", "cohere", "deepseek", "gcp.gemini",
    "gcp.gen_ai", "gcp.vertex_ai", "groq", "ibm.watsonx.ai", "mistral_ai", "moonshot_ai", "openai", "perplexity",
    "x_ai",
}  # fmt: skip
"""The conventions' values of `gen_ai.provider.name`."""
NO_ROWS = {"azure.ai.inference", "gcp.gen_ai", "ibm.watsonx.ai"}


def test_vendors_are_called_as_the_conventions_call_them() -> None:
    assert {row.provider for row in vendors().values() if row.provider} <= PROVIDERS
    assert {row.provider or prefix for prefix, row in vendors().items()} >= PROVIDERS - NO_ROWS


def test_it_is_off_unless_an_address_is_set(tmp_path: Path) -> None:
    home = {"ANDTHEN_HOME": str(tmp_path)}
    assert load(home | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}).telemetry.endpoint == ""
    found = load(home | {"ANDTHEN_TELEMETRY_ENDPOINT": "https://me:secret@collector.example/otlp"}).telemetry
    assert (found.endpoint, found.traces, found.metrics) == ("https://me:secret@collector.example/otlp", True, True)


@pytest.mark.parametrize(
    "endpoint",
    [
        "secret",
        "secret:4318",
        "grpc://secret:4317",
        "http://",
        "http://secret@:4318",
        "http://secret:x",
        "http://host/?secret=1",
        "http://host/#secret",
        "http://se cret",
        "http://secret\n",
    ],
)
def test_what_is_no_address_is_told_without_what_it_says(tmp_path: Path, endpoint: str) -> None:
    home = {"ANDTHEN_HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="ANDTHEN_TELEMETRY_ENDPOINT: is no address of a collector") as from_variable:
        load(home | {"ANDTHEN_TELEMETRY_ENDPOINT": endpoint})
    (tmp_path / "andthen.toml").write_text(f"[telemetry]\nendpoint = {msgspec.json.encode(endpoint).decode()}\n")
    with pytest.raises(ConfigError, match=r"line 2: \[telemetry\] endpoint is no address of a collector") as from_file:
        load(home)
    assert "secret" not in f"{from_variable.value}{from_file.value}"


@pytest.mark.parametrize("lacks", ["opentelemetry.exporter", "opentelemetry.exporter.otlp.proto.http"])
def test_where_its_packages_are_not_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        if name == lacks:
            return None
        if name.startswith(f"{lacks}."):
            raise ModuleNotFoundError(name)
        return found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(ConfigError, match=r"needs the packages of OpenTelemetry: install `andthen\[otel\]`"):
        load({"ANDTHEN_HOME": str(tmp_path), "ANDTHEN_TELEMETRY_ENDPOINT": "http://127.0.0.1:4318"})
