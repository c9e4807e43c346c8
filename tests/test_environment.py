"""Secrets in files that variables name."""

from __future__ import annotations

from pathlib import Path

import pytest

from andthen import config
from andthen.config import ConfigError, load


def test_a_secret_may_be_in_a_file_and_is_read_anew(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    variables = {"ANDTHEN_HOME": str(tmp_path), "OPENAI_API_KEY_FILE": str(secret)}
    for value in ("one", "another"):
        secret.write_text(f"{value}\n")
        assert load(variables).upstream.vendors["openai"].key == value
    secret.write_text("\n")
    assert "openai" not in load(variables).upstream.vendors, "as an empty variable"


def test_a_setting_may_be_in_a_file(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("postgresql://andthen:secret@db:5432/andthen\n")
    variables = {"ANDTHEN_HOME": str(tmp_path), "ANDTHEN_BOOKS_DATABASE_FILE": str(place)}
    assert load(variables).database == config.database(variables) == "postgresql://andthen:secret@db:5432/andthen"


def test_one_whose_name_ends_so_is_a_setting_like_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ANDTHEN_UPSTREAM_CA_FILE: names .*nowhere"):
        load({"ANDTHEN_HOME": str(tmp_path), "ANDTHEN_UPSTREAM_CA_FILE": "/nowhere.pem"})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OPENAI_API_KEY": "x", "OPENAI_API_KEY_FILE": "y"}, "OPENAI_API_KEY and OPENAI_API_KEY_FILE are both set"),
        ({"OPENAI_API_KEY_FILE": "/nowhere"}, "OPENAI_API_KEY_FILE names /nowhere, which can't be read: No such file"),
        ({"ANDTHEN_SERVER_METRICS_KEY_FILE": "/nowhere"}, "ANDTHEN_SERVER_METRICS_KEY_FILE names /nowhere"),
        ({"ANDTHEN_SERVER_METRIC_KEY_FILE": "/x"}, "no such setting. Did you mean `ANDTHEN_SERVER_METRICS_KEY"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"ANDTHEN_HOME": str(tmp_path)} | variables)
    assert message in str(caught.value)
