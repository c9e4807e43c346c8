"""The files under deploy/ say of andthen only what is so: its settings, its commands, its routes, its files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from packaging.requirements import Requirement

from andthen import config
from andthen.cli import COMMANDS
from andthen.contract.limits import Limits
from andthen.server.routes import Access, Routes
from checks.lock import COMPILED_HERE, recipes
from tests.deploying import CONTAINER_SECRETS, CONTAINER_SETTINGS, DEPLOY, ROOT, environment, written_secrets

COMPOSE: dict[str, Any] = msgspec.yaml.decode((DEPLOY / "compose.yaml").read_bytes())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].endswith("andthen}")}
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()


def test_there_are_two_replicas_that_differ_in_their_state_alone() -> None:
    first, second = (dict(OURS[name]) for name in ("replica-1", "replica-2"))
    folders = [service.pop("volumes") for service in (first, second)]
    assert first == second
    assert folders[0] != folders[1]
    assert all(len({volume.partition(":")[2] for volume in folder} & {"/var/lib/andthen"}) == 1 for folder in folders)


@pytest.mark.parametrize("name", OURS)
def test_its_settings_are_settings(name: str, tmp_path: Path) -> None:
    secrets = written_secrets(tmp_path, database_url="postgresql://andthen:x@database/andthen", metrics_key="metrics")
    loaded = config.load(environment(OURS[name], secrets) | {"ANDTHEN_HOME": str(tmp_path)})
    assert loaded.file == DEPLOY / "settings" / "andthen.toml"
    assert loaded.database == "postgresql://andthen:x@database/andthen"
    assert loaded.books.redis == "redis://limits:6379/0"
    assert loaded.server.metrics_key == "metrics"
    stopping_s = loaded.server.drain_s + 10
    assert name == "migrate" or float(OURS[name]["stop_grace_period"].removesuffix("s")) > stopping_s


@pytest.mark.parametrize("name", OURS)
def test_it_runs_a_command_in_the_image_that_is_built(name: str) -> None:
    service = OURS[name]
    assert service["command"][0] in COMMANDS
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Containerfile"
    assert f"{CONTAINER_SETTINGS}:ro" in [volume.partition(":")[2] for volume in service["volumes"]]
    assert (DEPLOY / "settings").is_dir()


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_declared(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    files = {value for key, value in service.get("environment", {}).items() if key.endswith("_FILE")}
    assert files == {f"{CONTAINER_SECRETS}/{secret}" for secret in service.get("secrets", [])}
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert (DEPLOY / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
    for other, wanted in service.get("depends_on", {}).items():
        checked = "healthcheck" in SERVICES[other] or other in OURS
        assert checked or wanted["condition"] != "service_healthy"


def test_the_tables_are_made_before_a_replica_starts() -> None:
    for name in ("replica-1", "replica-2"):
        assert OURS[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert OURS["migrate"]["command"] == ["migrate"]
    assert OURS["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_no_secret_is_in_the_repository() -> None:
    for secret in COMPOSE["secrets"].values():
        assert Path(secret["file"]).parts[0] == "secrets"
    assert "/secrets/" in (DEPLOY / ".gitignore").read_text().splitlines()
    text = "".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file() and path.parent.name != "secrets")
    assert not re.search(r"://[^\s/]*:[^\s/]*@", text)


def test_the_proxy_asks_what_there_is() -> None:
    variables = SERVICES["proxy"]["environment"]
    port = re.findall(r"ANDTHEN_SERVER_PORT=(\d+)", CONTAINERFILE)
    assert variables["REPLICAS"].split() == [f"{name}:{port[0]}" for name in OURS if name != "migrate"]
    rules = (DEPLOY / "Caddyfile").read_text()
    assert all(f"{{${name}" in rules for name in variables)
    (checked,) = re.findall(r"health_uri (\S+)", rules)
    assert Routes(Limits()).find(checked).access is Access.OPEN
    (kept_s,) = re.findall(r"keepalive (\d+)s", rules)
    assert int(kept_s) < config.load({"ANDTHEN_HOME": "/nowhere"}).server.keep_alive_s


def test_the_image_is_made_of_what_there_is() -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", CONTAINERFILE, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    locks = {Path("requirements", path.name) for path in recipes(Path("requirements"))}
    assert {Path(name) for name in re.findall(r"-r (\S+)", CONTAINERFILE)} <= locks
    assert "requirements/image.txt" in CONTAINERFILE
    assert not re.search(r"index-url|find-links|trusted-host", CONTAINERFILE)
    allowed = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    copied = {
        source.split("/")[0]
        for line in re.findall(r"^COPY (?!--)(.+) ", CONTAINERFILE, re.M)
        for source in line.split()
    }
    assert copied == {line[1:] for line in allowed if line.startswith("!")}


def test_the_image_has_every_extra_that_is_locked_at_all() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {Requirement(one).name for extra, all_ in extras.items() if extra != COMPILED_HERE for one in all_}
    lock = (ROOT / "requirements" / "image.txt").read_text()
    assert {name for name in wanted if not re.search(rf"^{name}==", lock, re.MULTILINE)} == set()


def test_the_image_runs_as_nobody_of_note_and_tells_how_it_is() -> None:
    last = CONTAINERFILE.split("\nFROM ")[-1]
    assert re.search(r"^USER andthen$", last, re.MULTILINE)
    (checked,) = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", last)
    assert Routes(Limits()).find(checked).access is Access.OPEN
    assert 'ENTRYPOINT ["andthen"]' in last
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["andthen"]
    (command,) = re.findall(r'^CMD \["(\w+)"\]', last, re.MULTILINE)
    assert command in COMMANDS
    variables = dict(re.findall(r"(ANDTHEN_\w+)=(\S+)", last))
    assert config.load(variables).server.host == "0.0.0.0"
