"""LiteLLM's proxy between us and a real llama-server: a second opinion of Anthropic's language and of Gemini's.

Found by running it (1.103.6). By itself it makes Anthropic's messages into OpenAI's responses and then asks for 16
tokens where fewer are wanted, so it is told to use chats. What it refuses is always status 400, also an unknown key.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Server, free_port, serving
from tests.upstream.llama_server import LlamaServer
from tests.upstream.test_llama_server import LOCAL, refused, streamed, text

pytestmark = pytest.mark.soak  # half a gigabyte of packages, and half a minute to start

COMMAND = Path(__file__).parent.parent.parent / ".venvs" / "litellm" / "bin" / "litellm"
KEY = "sk-of-the-tests"
START_S = 120
ENVIRONMENT = {
    "DISABLE_ADMIN_UI": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    "LITELLM_TELEMETRY": "false",
    "LITELLM_USE_CHAT_COMPLETIONS_URL_FOR_ANTHROPIC_MESSAGES": "true",
}
MODELS = ("team/messages", "team/gemini")
PROMPTS = ("Once upon a time", "The king said", "東京 – Ω≈ç√ 🦊")


@pytest.fixture(scope="module")
def proxy(llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert COMMAND.exists(), f"{COMMAND} is missing: `make soak` makes it"
    home = tmp_path_factory.mktemp("litellm")
    model = {"model": "openai/tale", "api_base": f"{llama.url}/v1", "api_key": "none"}
    settings = {
        "model_list": [{"model_name": "tale", "litellm_params": model}],
        "general_settings": {"master_key": KEY},
    }
    (home / "config.yaml").write_text(json.dumps(settings))
    port = free_port()
    command: list[str | Path] = [COMMAND, "--config", home / "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, cwd=home, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        until_alive(url, process, home / "log")
        yield url
    finally:
        process.kill()
        process.wait()


def until_alive(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/health/liveliness", timeout=START_S):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"not there after {START_S} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def behind(proxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server before the proxy."""
    settings = "".join(
        f"""
[models."{name}"]
address = "{proxy}/{path}"
language = "{language}"
model = "{model}"
key = "{KEY}"
"""
        for name, path, language, model in (
            ("team/messages", "v1", "anthropic_messages", "tale"),
            ("team/gemini", "v1beta", "gemini", "tale"),
            ("team/no-messages", "v1", "anthropic_messages", "nobody"),
            ("team/no-gemini", "v1beta", "gemini", "nobody"),
        )
    )
    with serving(tmp_path_factory.mktemp("behind"), settings=settings) as running:
        yield running


@pytest.mark.parametrize("model", MODELS)
def test_a_greedy_answer_is_the_embedded_engines_behind_the_template(
    llama: LlamaServer, behind: Server, model: str
) -> None:
    for prompt in PROMPTS:
        assert text(behind, model, prompt) == text(behind, LOCAL, llama.templated(prompt))


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_says_what_a_whole_reply_does(behind: Server, model: str) -> None:
    whole = behind.complete(model=model, temperature=0, max_tokens=12)["choices"][0]
    chunks = streamed(behind, model, temperature=0, max_tokens=12, stream_options={"include_usage": True})
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"] == "length"
    assert len(choices) > 6
    assert chunks[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("model", MODELS)
def test_a_stop_ends_the_text(behind: Server, model: str) -> None:
    choice = behind.complete(model=model, temperature=0, max_tokens=24, stop=[" going"])["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("\"I'm not", "stop")


@pytest.mark.parametrize("model", MODELS)
def test_usage_is_what_was_processed(llama: LlamaServer, behind: Server, model: str) -> None:
    own = behind.complete(model=LOCAL, prompt=llama.templated("Once upon a time"), max_tokens=5, temperature=0)
    usage = behind.complete(model=model, max_tokens=5, temperature=0)["usage"]
    assert usage["prompt_tokens"] == own["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == 5


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_beyond_the_context_is_the_callers_to_shorten(behind: Server, model: str) -> None:
    error = refused(behind, model, status=400, prompt="word " * 1100)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("model", ["team/no-messages", "team/no-gemini"])
def test_a_model_that_it_has_not_is_refused(behind: Server, model: str) -> None:
    error = refused(behind, model, status=502)
    assert error["code"] == "upstream_refused"
    assert "Invalid model name" in error["message"]
