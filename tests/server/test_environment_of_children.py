"""What the server's processes get of the environment that it was started in."""

from __future__ import annotations

from pathlib import Path

import pytest

from andthen.vendors.rows import vendors
from tests.server.running import running

SECRET = "sesame-5e5a4e"
SECRETS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
    "ANDTHEN_SERVER_METRICS_KEY", "NVIDIA_API_KEY", "LLAMA_API_KEY", "GITHUB_TOKEN", "DATABASE_URL", "REDIS_URL",
    "VK_TOKEN", "LD_SDK_KEY", "SOME_PASSWORD",
)  # fmt: skip
EVERYBODYS = ("PATH", "TMPDIR", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONUNBUFFERED", "TZ")
OWN = {
    "engine": ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "GOMP_SPINCOUNT"),
    "worker-0": ("PGPASSFILE", "SSL_CERT_FILE", "OTEL_SERVICE_NAME", "https_proxy"),
}


def test_no_child_gets_a_secret_that_it_does_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {row.key_variable for row in vendors().values() if "{" not in row.address}
    assert {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"} <= keys
    for name in {*SECRETS, *(name.removesuffix("?") for key in keys for name in key.split())}:
        monkeypatch.setenv(name, SECRET)
    for name in {*EVERYBODYS[2:], *OWN["engine"], *OWN["worker-0"]}:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    with running(tmp_path / "home", "workers = 2") as server:
        server.until(server.ready, "it serves")
        for place, own in OWN.items():
            lines = Path(f"/proc/{server.pid(place)}/environ").read_text().rstrip("\0").split("\0")
            got = dict(line.split("=", 1) for line in lines)
            assert SECRET not in "".join(got.values()), place
            assert {*EVERYBODYS, *own} <= set(got), place
