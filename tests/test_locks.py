"""The locks: the public index alone, everything by hash, and what pyproject asks for."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from checks.lock import recipes

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PLATFORMS = {
    "linux x86-64": {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"},
    "linux arm64": {"sys_platform": "linux", "platform_machine": "aarch64", "platform_system": "Linux"},
    "macOS arm64": {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
}


def entries(lock: Path) -> list[str]:
    """The lock's logical lines, without comments."""
    joined = re.sub(r"\s*\\\n\s*", " ", lock.read_text())
    return [line for line in (re.sub(r"(^|\s)#.*", "", raw).strip() for raw in joined.splitlines()) if line]


def pins(lock: Path) -> list[Requirement]:
    return [Requirement(entry.split(" --hash=")[0]) for entry in entries(lock)]


def version(pin: Requirement) -> str:
    return str(pin.specifier).removeprefix("==")


def project() -> dict[str, list[str]]:
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime, dev = read["project"]["dependencies"], read["dependency-groups"]["dev"]
    return {"runtime": runtime, "dev": runtime + dev, "build": read["build-system"]["requires"]}


def test_each_recipe_has_its_lock_and_each_lock_its_recipe() -> None:
    assert {path.name for path in recipes(ROOT / "requirements")} == {path.name for path in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_entry_is_a_public_version_with_hashes(lock: Path) -> None:
    for entry in entries(lock):
        assert re.fullmatch(r"[\w.-]+==[\w.!]+( ; [^@]+?)?( --hash=sha256:[0-9a-f]{64})+", entry), entry


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_no_lock_says_where_from(lock: Path) -> None:
    assert not re.search(r"://|--index|--extra|--find-links|file:|@", lock.read_text())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_nothing_that_compiles_for_minutes_or_weighs_gigabytes(lock: Path) -> None:
    assert not {canonicalize_name(pin.name) for pin in pins(lock)} & {"torch", "llama-cpp-python"}


@pytest.mark.parametrize("name", ["runtime", "dev", "build"])
def test_lock_and_project_agree(name: str) -> None:
    locked: dict[str, list[Requirement]] = {}
    for pin in pins(ROOT / "requirements" / f"{name}.txt"):
        locked.setdefault(canonicalize_name(pin.name), []).append(pin)
    for asked in map(Requirement, project()[name]):
        found = locked.get(canonicalize_name(asked.name), [])
        assert found, f"{asked.name} is in no line of {name}.txt"
        for pin in found:
            assert asked.specifier.contains(version(pin)), f"{pin} is not {asked}"


def test_locks_that_share_an_environment_agree() -> None:
    seen: dict[tuple[str, str], str] = {}
    for name in ("runtime", "build", "dev"):
        for pin in pins(ROOT / "requirements" / f"{name}.txt"):
            key = (canonicalize_name(pin.name), str(pin.marker))
            assert seen.setdefault(key, version(pin)) == version(pin), pin.name


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_library_is_locked_for_every_platform(platform: str) -> None:
    """One package ships native code without a source build worth waiting for: it must be there for each platform."""
    environment = {**PLATFORMS[platform], "python_full_version": "3.11.0", "python_version": "3.11"}
    for name in ("runtime", "dev"):
        found = [pin for pin in pins(ROOT / "requirements" / f"{name}.txt") if pin.name == "xllamacpp"]
        assert [pin for pin in found if pin.marker is None or Marker(str(pin.marker)).evaluate(environment)]


def test_the_node_lock_says_what_and_not_where_from() -> None:
    text = (ROOT / "tests" / "clients" / "node" / "package-lock.json").read_text()
    packages = {name: entry for name, entry in json.loads(text)["packages"].items() if name}
    asked = json.loads((ROOT / "tests" / "clients" / "node" / "package.json").read_text())["dependencies"]
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not any("resolved" in entry for entry in packages.values())
    assert {name: packages[f"node_modules/{name}"]["version"] for name in asked} == asked
