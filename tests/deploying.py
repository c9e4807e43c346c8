"""deploy/compose.yaml by hand: what its services would be told, for processes of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
CONTAINER_SECRETS = "/run/secrets"
CONTAINER_SETTINGS = "/etc/andthen"


def environment(service: Mapping[str, Any], secrets: Path) -> dict[str, str]:
    """A service's variables, its files where they are on this machine."""
    return {
        name: str(value).replace(CONTAINER_SECRETS, str(secrets)).replace(CONTAINER_SETTINGS, str(DEPLOY / "settings"))
        for name, value in service["environment"].items()
    }


def written_secrets(folder: Path, **secrets: str) -> Path:
    """A folder of such files."""
    for name, value in secrets.items():
        (folder / name).write_text(f"{value}\n")
    return folder
