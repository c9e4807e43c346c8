"""Settings: where they come from, and what is said when they can't be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from andthen import config
from andthen.config import ConfigError, database, load
from andthen.config.markdown import settings_markdown
from andthen.config.values import describe, parsed_variable, setting_types, variable_name


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    return {"ANDTHEN_HOME": str(home), "PATH": "/usr/bin"}


@pytest.fixture
def gguf(home: Path) -> Path:
    path = home / "draft.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    return path


def write(home: Path, text: str) -> Path:
    path = home / "andthen.toml"
    path.write_text(text)
    return path


def test_without_any_setting_the_shipped_model_is_served(environ: dict[str, str], home: Path) -> None:
    found = load(environ)
    assert (found.home, found.file, found.database) == (home, None, str(home / "andthen.db"))
    assert list(found.engine.models) == ["local/tale"]
    assert found.engine.models["local/tale"].deterministic
    assert Path(found.engine.models["local/tale"].path).read_bytes()[:4] == b"GGUF"


def test_the_command_line_is_above_the_variable_and_that_above_the_file(environ: dict[str, str], home: Path) -> None:
    write(home, "[server]\nport = 1\nworkers = 1\ndrain_s = 1\nhost = '::1'\n")
    environ |= {"ANDTHEN_SERVER_PORT": "2", "ANDTHEN_SERVER_WORKERS": "2", "ANDTHEN_SERVER_DRAIN_S": ""}
    server = load(environ, options={("server", "port"): 3, ("server", "workers"): None}).server
    assert (server.port, server.workers, server.drain_s, server.host) == (3, 2, 1, "::1")


def test_a_file_is_named_by_the_option_then_by_the_variable_then_by_its_place(
    environ: dict[str, str], home: Path
) -> None:
    write(home, "[server]\nport = 1\n")
    for number in (2, 3):
        (home / f"{number}.toml").write_text(f"[server]\nport = {number}\n")
    assert load(environ).server.port == 1
    environ["ANDTHEN_CONFIG"] = str(home / "2.toml")
    assert load(environ).server.port == 2
    assert load(environ, file=home / "3.toml").server.port == 3


def test_variables_are_read_as_their_setting_wants_them(environ: dict[str, str]) -> None:
    environ |= {
        "ANDTHEN_SERVER_CORS_ORIGINS": "https://a.example, https://b.example",
        "ANDTHEN_SERVER_ACCESS_LOG": "false",
        "ANDTHEN_SERVER_STREAM_OPEN_AFTER_S": "0.5",
        "ANDTHEN_SERVER_METRICS_KEY": "17",
        "ANDTHEN_LOGS_LEVEL": "debug",
        "ANDTHEN_LIMITS_MAX_STOPS": "16",
    }
    found = load(environ)
    assert found.server.cors_origins == ("https://a.example", "https://b.example")
    assert not found.server.access_log
    assert found.server.stream_open_after_s == 0.5
    assert found.server.metrics_key == "17"
    assert found.logs.level == "debug"
    assert found.limits.max_stops == 16


LIST_SETTINGS = [
    (section, name)
    for section, kind in config.SECTIONS.items()
    for name, wanted in setting_types(kind).items()
    if "a list" in describe(wanted) and "each one of" not in describe(wanted)
]


@pytest.mark.parametrize(("section", "name"), LIST_SETTINGS)
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('["http://a"]', ("http://a",)),
        (' [ "http://a", "http://b,c" ]\n', ("http://a", "http://b,c")),
        ("[]", ()),
        ("http://a", ("http://a",)),
        ("http://a, http://b,", ("http://a", "http://b")),
    ],
)
def test_a_list_in_a_variable_is_json_or_has_commas(
    environ: dict[str, str], section: str, name: str, text: str, wanted: tuple[str, ...]
) -> None:
    found = load(environ | {variable_name(section, name): text})
    assert getattr(getattr(found, section), name) == wanted


@pytest.mark.parametrize(("section", "name"), LIST_SETTINGS)
@pytest.mark.parametrize("text", ['["http://a"', "[http://a]", '["http://a", 1]', '["http://a"] x', '[["http://a"]]'])
def test_a_list_in_a_variable_that_is_no_json_is_refused(
    environ: dict[str, str], section: str, name: str, text: str
) -> None:
    variable = variable_name(section, name)
    with pytest.raises(ConfigError, match=rf'{variable}: must be a list.* as JSON: \["a", "b"\], or with commas'):
        load(environ | {variable: text})


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (dict[str, int] | None, "{}", {}),
        (dict[str, int], "a=1", None),
        (dict[str, int], "[]", None),
        (tuple[int, int], "[1, 2]", (1, 2)),
        (tuple[int, int], "1, 2", (1, 2)),
        (tuple[int, ...] | None, "1", (1,)),
        (tuple[int, int], "[1]", None),
        (tuple[int, int], "1", None),
    ],
)
def test_every_list_and_table_in_a_variable_may_be_json(wanted: object, text: str, value: object) -> None:
    if value is None:
        with pytest.raises(ConfigError, match=r"ANDTHEN_X: must be .* as JSON: [{\[]"):
            parsed_variable(text, wanted, "ANDTHEN_X")
    else:
        assert parsed_variable(text, wanted, "ANDTHEN_X") == value


FILE_ERRORS = {
    "no TOML": ("[server]\nport = \n", r"andthen\.toml: Invalid value \(at line 2, column 8\)"),
    "a model's name without quotes": ("[models.local/x]\n", r'at line 1.*write|\[models\."local/NAME"\]'),
    "unknown section": ("\n[serve]\n", r"line 2: there is no section \[serve\]\. Did you mean `server`\?"),
    "a setting outside of its section": ("port = 1\n", r"line 1: `port` is a setting of \[server\]: write it below"),
    "unknown setting": ("[server]\n\nprot = 1\n", r"line 3: \[server\] has no setting `prot`\. Did you mean `port`\?"),
    "nothing like it": ("[logs]\nzzz = 1\n", r"line 2: .*`zzz`\. There are: format, level\."),
    "a section that is none": ("server = 1\n", r"line 1: `server` is a table: write \[server\]"),
    "out of range": (
        "[server]\nport = 99999\n",
        r"line 2: \[server\] port must be an integer, at least 0, at most 65535",
    ),
    "another type": (
        "[server]\nport = '80'\n",
        r"line 2: \[server\] port must be an integer.* Change or remove the line",
    ),
    "a truth for a number": ("[server]\ndrain_s = true\n", "drain_s must be a number"),
    "no such choice": ("[logs]\nlevel = 'loud'\n", "level must be one of debug, error, info, warning"),
    "a bad list": ("[server]\ncors_origins = ['a', 1]\n", "cors_origins must be a list, each a text"),
    "after a long value": ("[server]\nhost = '''\n[logs]\n'''\ncors_origins = [\n'a',\n]\nport = 'x'\n", "line 8: "),
    "within a long value": ("[server]\nport = 1\ncors_origins = [\n'a',\n1\n]\n", "line 3: "),
    "a dotted key": ("logs.format = 'json'\nserver.port = 'x'\n", "line 2: "),
    "an inline table": ("\nserver = {port = 'x'}\n", "line 2: "),
    "models that are none": ("models = 1\n", r"line 1: `models` holds a table"),
    "a model that is none": ("[models]\n'local/x' = 1\n", r"line 2: `local/x` is a table"),
    "a name that is none": ("[models.'x']\n", r'line 1: \[models\."x"\]: a model is named vendor/model'),
    "a model without a file": ("[models.'local/x']\ncontext = 1\n", r'line 1: .*needs either `path = "x.gguf"`'),
    "a model with two files": ("[models.'local/x']\npath = 'a'\nhf = 'a/b:c.gguf'\n", "line 1: .*needs either"),
    "a model's unknown setting": (
        "[models.'local/x']\npth = 'a'\n",
        r"line 2: .*no setting `pth`\. Did you mean `path`",
    ),
    "a model's bad setting": (
        "[models.'local/x']\npath = 'a'\ncontext = -1\n",
        "line 3: .* context must be an integer",
    ),
    "a missing file": ("[models.'local/x']\npath = 'no.gguf'\n", r"line 2: .*/no\.gguf can't be read: No such file"),
    "no hub name": ("[models.'local/x']\nhf = 'a'\n", "line 2: .*not of the form hf:owner/repo:file.gguf"),
    "not pulled": ("[models.'local/x']\nhf = 'a/b:c.gguf'\n", "line 2: .*run `andthen models pull hf:a/b:c.gguf`"),
    "no model at all": ("[models.'local/tale']\nenabled = false\n", "no model is enabled"),
}


@pytest.mark.parametrize(("text", "message"), FILE_ERRORS.values(), ids=FILE_ERRORS)
def test_an_error_in_the_file_names_the_line_and_the_remedy(
    environ: dict[str, str], home: Path, text: str, message: str
) -> None:
    path = write(home, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(environ)
    assert str(path) in str(caught.value) or "no model" in message


def test_a_file_that_is_no_model_is_told(environ: dict[str, str], home: Path) -> None:
    path = write(home, "[models.'local/x']\npath = 'andthen.toml'\n")
    with pytest.raises(ConfigError, match=rf"line 2: .*{path} is no GGUF file: it does not begin with `GGUF`"):
        load(environ)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ANDTHEN_SERVER_PORT", "http", "ANDTHEN_SERVER_PORT: must be an integer.* Change or unset"),
        ("ANDTHEN_SERVER_PROT", "1", "no such setting. Did you mean `ANDTHEN_SERVER_PORT`"),
        ("ANDTHEN_SERVER_ACCESS_LOG", "perhaps", "must be true or false"),
        ("ANDTHEN_MODELS", "x", "no such setting"),
        ("ANDTHEN_CONFIG", "/nowhere/andthen.toml", "/nowhere/andthen.toml: there is no such settings file"),
    ],
)
def test_an_error_in_a_variable_names_it(environ: dict[str, str], variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(environ | {variable: value})
    assert variable == "ANDTHEN_CONFIG" or variable in str(caught.value)


def test_no_error_repeats_a_value(environ: dict[str, str], home: Path) -> None:
    write(home, "[server]\nmetrics_key = ['hunter2']\n")
    with pytest.raises(ConfigError, match="metrics_key must be a text") as caught:
        load(environ)
    assert "hunter2" not in str(caught.value)


def test_a_named_file_must_be_there(environ: dict[str, str], home: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such settings file: check --config"):
        load(environ, file=home / "no.toml")


def test_a_file_that_is_not_utf8_is_told(environ: dict[str, str], home: Path) -> None:
    (home / "andthen.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(environ)


def test_a_setting_is_checked_also_where_another_is_above_it(environ: dict[str, str], home: Path) -> None:
    write(home, "[server]\nport = 'x'\n")
    with pytest.raises(ConfigError, match="line 2: "):
        load(environ | {"ANDTHEN_SERVER_PORT": "1"}, options={("server", "port"): 2})


def test_a_bad_option_is_told(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="--workers must be an integer, at least 1"):
        load(environ, options={("server", "workers"): 0})


def test_models_come_from_options_then_the_file_then_the_house(environ: dict[str, str], home: Path, gguf: Path) -> None:
    write(home, "[models.'local/b']\npath = 'draft.gguf'\ncontext = 64\n[models.'local/a/b']\npath = 'draft.gguf'\n")
    models = load(environ, models=[f"draft={gguf}", f"local/b={gguf}"]).engine.models
    assert list(models) == ["local/draft", "local/b", "local/a/b", "local/tale"]
    assert models["local/b"].context == 0
    assert {model.path for model in models.values()} >= {str(gguf)}


def test_a_path_in_the_file_starts_at_the_file(environ: dict[str, str], home: Path, gguf: Path) -> None:
    write(home, "[models.'local/x']\npath = 'draft.gguf'\ncells = 512\n")
    model = load(environ).engine.models["local/x"]
    assert (model.path, model.cells, model.deterministic) == (str(gguf), 512, False)


def test_the_house_model_can_be_set_replaced_and_left_out(environ: dict[str, str], home: Path, gguf: Path) -> None:
    write(home, "[models.'local/tale']\ncontext = 32\n")
    tale = load(environ).engine.models["local/tale"]
    assert (tale.context, tale.deterministic) == (32, True)
    write(home, "[models.'local/tale']\npath = 'draft.gguf'\n")
    tale = load(environ).engine.models["local/tale"]
    assert (tale.path, tale.deterministic) == (str(gguf), False)
    write(home, "[models.'local/tale']\nenabled = false\n")
    assert list(load(environ, models=[f"x={gguf}"]).engine.models) == ["local/x"]


@pytest.mark.parametrize("option", ["x", "=x", "x=", "x y=/tmp", "openai/x=/tmp", "local/=x", "x=hf:nothing", "x=/no"])
def test_a_bad_model_option_is_told(environ: dict[str, str], option: str) -> None:
    with pytest.raises(ConfigError, match=f"--model {option}: "):
        load(environ, models=[option])


def test_a_model_named_twice_is_told(environ: dict[str, str], gguf: Path) -> None:
    with pytest.raises(ConfigError, match="local/x is named twice"):
        load(environ, models=[f"x={gguf}", f"local/x={gguf}"])


def test_every_setting_says_what_it_is_for() -> None:
    page = settings_markdown()
    for section, kind in config.SECTIONS.items():
        for name in setting_types(kind):
            assert f"`{name}`<br>`{variable_name(section, name)}`" in page
    for line in page.splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.split(" | "))


def test_settings_are_only_what_can_be_carried_between_processes() -> None:
    for kind in config.SECTIONS.values():
        assert msgspec.json.decode(msgspec.json.encode(kind()), type=kind) == kind()


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://me:secret@cache.example/1",
        "rediss://[::1]",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_redis_is_named_by_its_address(environ: dict[str, str], url: str) -> None:
    found = load(environ | {"ANDTHEN_BOOKS_REDIS": url, "ANDTHEN_BOOKS_REDIS_GONE": "open", "ANDTHEN_CACHE_REDIS": url})
    assert (found.books.redis, found.books.redis_gone, found.cache.redis) == (url, "open", url)


@pytest.mark.parametrize("section", ["books", "cache"])
@pytest.mark.parametrize(
    "url",
    [
        "secret",
        "http://secret@host",
        "redis://:secret@",
        "redis://secret@host:x",
        "redis://secret@host?timeout=1",
        "unix://secret",
        "redis://secret@host\n",
    ],
)
def test_what_is_no_address_of_redis_is_told_without_its_password(
    environ: dict[str, str], home: Path, url: str, section: str
) -> None:
    variable = f"ANDTHEN_{section.upper()}_REDIS"
    with pytest.raises(ConfigError, match=f"{variable}: is no address of Redis") as from_variable:
        load(environ | {variable: url})
    write(home, f"[server]\nport = 1\n[{section}]\nredis = {msgspec.json.encode(url).decode()}\n")
    with pytest.raises(ConfigError, match=rf"line 4: \[{section}\] redis is no address of Redis") as from_file:
        load(environ)
    assert "secret" not in f"{from_variable.value}{from_file.value}"


@pytest.mark.parametrize("read", [load, database])
@pytest.mark.parametrize("url", ["mysql://me:secret@host/x", "sqlite:///secret.db", "secret.db", "secret:5432/x"])
def test_what_is_no_address_of_postgres_becomes_no_file(
    environ: dict[str, str], home: Path, url: str, read: Callable[[dict[str, str]], object]
) -> None:
    with pytest.raises(ConfigError, match="ANDTHEN_BOOKS_DATABASE: is no address of PostgreSQL") as from_variable:
        read(environ | {"ANDTHEN_BOOKS_DATABASE": url})
    write(home, f"[server]\nport = 1\n[books]\ndatabase = {msgspec.json.encode(url).decode()}\n")
    with pytest.raises(ConfigError, match=r"line 4: \[books\] database is no address of PostgreSQL") as from_file:
        read(environ)
    assert "secret" not in f"{from_variable.value}{from_file.value}"


def test_a_wrong_entry_of_a_list_is_told_by_its_place(environ: dict[str, str], home: Path) -> None:
    write(home, "[models.'team/any']\ndeployments = [{ model = 'local/tale' }, { model = 'local/tale', wieght = 2 }]\n")
    with pytest.raises(ConfigError, match=r"\(`\[1\]`: Object contains unknown field `wieght`\)"):
        load(environ)
