"""Settings of what stands upstream: vendors by their keys, models and servers of one's own, names for several."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from andthen.config import Config, ConfigError, load
from andthen.vendors.rows import vendors
from andthen.vendors.settings import Share, Upstream

SECRET = "sk-hunter2-hunter2"  # what must not be shown


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"ANDTHEN_HOME": str(tmp_path)}


def upstream(environ: dict[str, str], text: str = "") -> Upstream:
    (Path(environ["ANDTHEN_HOME"]) / "andthen.toml").write_text(text)
    return load(environ).upstream


def test_nothing_stands_upstream_unless_it_is_set(environ: dict[str, str]) -> None:
    assert upstream(environ) == Upstream()


def test_a_vendor_is_switched_on_by_its_key_variable(environ: dict[str, str]) -> None:
    found = upstream(environ | {"OPENAI_API_KEY": f" {SECRET}\n"})
    assert list(found.vendors) == ["openai"]
    openai = found.vendors["openai"]
    assert (openai.vendor, openai.prefix, openai.key) == ("OpenAI", "openai", SECRET)
    assert openai.address == vendors()["openai"].address
    assert found.find("openai/any-model") == (openai, "any-model")
    assert found.find("other/any-model") is None
    assert upstream(environ | {"OPENAI_API_KEY": ""}).vendors == {}


def test_a_key_of_several_parts_needs_all_but_the_optional(environ: dict[str, str]) -> None:
    environ |= {"AWS_ACCESS_KEY_ID": "id", "AWS_REGION": "eu-west-1"}
    assert upstream(environ).vendors == {}
    environ["AWS_SECRET_ACCESS_KEY"] = SECRET
    assert upstream(environ).vendors["bedrock"].key == f"id\n{SECRET}\n"
    assert upstream(environ | {"AWS_SESSION_TOKEN": "t"}).vendors["bedrock"].key == f"id\n{SECRET}\nt"


def test_an_address_may_come_from_the_environment(environ: dict[str, str]) -> None:
    environ["AZURE_OPENAI_API_KEY"] = SECRET
    assert upstream(environ).vendors == {}
    with pytest.raises(ConfigError, match="can't be switched on: set AZURE_OPENAI_ENDPOINT in the environment"):
        upstream(environ, "[vendors.azure]\nenabled = true\n")
    public = upstream(environ | {"AZURE_OPENAI_ENDPOINT": "https://team.example/"}).vendors["azure"]
    assert (public.address, public.access.private) == ("https://team.example", False)
    assert upstream(environ | {"AZURE_OPENAI_ENDPOINT": "http://10.0.0.7"}).vendors["azure"].access.private
    assert upstream(environ | {"AZURE_OPENAI_ENDPOINT": "nowhere"}).vendors == {}


def test_a_server_without_a_key_is_switched_on_by_its_table(environ: dict[str, str]) -> None:
    assert "vllm" not in upstream(environ).vendors
    assert upstream(environ, "[vendors.vllm]\n").vendors["vllm"].access.private


def test_a_vendor_is_switched_off_by_its_table(environ: dict[str, str]) -> None:
    environ["OPENAI_API_KEY"] = SECRET
    assert upstream(environ, "[vendors.openai]\nenabled = false\n").vendors == {}
    only_one = upstream(environ, "[vendors.openai]\nenabled = false\n[models.'openai/one']\n")
    assert (list(only_one.vendors), list(only_one.models)) == ([], ["openai/one"])
    assert only_one.models["openai/one"].key == SECRET


def test_a_key_may_stand_in_the_table_or_in_a_variable_that_it_names(environ: dict[str, str]) -> None:
    assert upstream(environ, f"[vendors.openai]\nkey = '{SECRET}'\n").vendors["openai"].key == SECRET
    named = upstream(environ | {"TEAM_KEY": SECRET}, "[vendors.openai]\nkey_variable = 'TEAM_KEY'\n")
    assert named.vendors["openai"].key == SECRET
    assert upstream(environ, "[vendors.openai]\nfirst_token_s = 5\n").vendors == {}


def test_an_address_of_ones_own_switches_a_vendor_on_without_a_key(environ: dict[str, str]) -> None:
    table = "[vendors.openai]\naddress = 'http://127.0.0.1:9/v1/'\nheaders = {X-Team = 'red'}\n"
    openai = upstream(environ, table).vendors["openai"]
    assert (openai.address, openai.key, openai.headers) == ("http://127.0.0.1:9/v1", "", {"x-team": "red"})
    assert openai.access.private
    assert upstream(environ | {"OPENAI_API_KEY": SECRET}, table).vendors["openai"].key == SECRET


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("10.0.0.7", True),
        ("[::1]:80", True),
        ("localhost:1", True),
        ("api.example.org", False),
        ("8.8.8.8", False),
    ],
)
def test_an_address_written_as_a_private_one_is_permission_to_call_it(
    environ: dict[str, str], host: str, private: bool
) -> None:
    table = f"[models.'team/x']\naddress = 'http://{host}'\nlanguage = 'openai_completions'\n"
    assert upstream(environ, table).models["team/x"].access.private == private
    assert upstream(environ, table + "private = true\n").models["team/x"].access.private
    assert not upstream(environ, table + "private = false\n").models["team/x"].access.private


def test_a_vendor_of_ones_own_needs_no_row(environ: dict[str, str]) -> None:
    found = upstream(
        environ,
        "[vendors.team]\nname = 'The team'\naddress = 'http://10.0.0.7'\nlanguage = 'openai_completions'\n"
        "takes = {seed = false}\n[models.'team/fim']\ntakes = {suffix = true}\n",
    )
    assert (found.vendors["team"].vendor, found.vendors["team"].prefix) == ("The team", "")
    assert found.vendors["team"].resolved("any").profile.takes["seed"] is False
    fim = found.models["team/fim"]
    assert (fim.model, fim.address) == ("fim", "http://10.0.0.7")
    assert fim.resolved().profile.takes["seed"] is False
    assert fim.resolved().profile.takes["suffix"] is True


def test_a_model_may_have_another_name_here_than_at_its_vendor(environ: dict[str, str]) -> None:
    environ["OPENAI_API_KEY"] = SECRET
    found = upstream(environ, "[models.'team/small']\nvendor = 'openai'\nmodel = 'gpt-x'\ntakes = {top_p = [0, 0.5]}\n")
    remote, model = found.find("team/small") or pytest.fail("not found")
    assert (remote.vendor, remote.prefix, model, remote.key) == ("OpenAI", "openai", "gpt-x", SECRET)
    assert remote.resolved().profile.takes["top_p"] == (0, 0.5)
    assert remote.target(at_s=1.0).model == "gpt-x"
    assert next(iter(found.listed())) == "team/small"


def test_a_vendors_key_goes_to_no_other_address(environ: dict[str, str]) -> None:
    environ["OPENAI_API_KEY"] = SECRET
    table = "[vendors.openai.headers]\nx-team = 'red'\n[models.'openai/mine']\naddress = 'https://mine.example'\n"
    mine = upstream(environ, table).models["openai/mine"]
    assert (mine.key, mine.headers) == ("", {})
    assert upstream(environ, table + "key_variable = 'OPENAI_API_KEY'\n").models["openai/mine"].key == SECRET


def test_times_and_ways_are_the_sections_unless_a_table_says_otherwise(environ: dict[str, str]) -> None:
    found = upstream(
        environ | {"OPENAI_API_KEY": SECRET, "ANDTHEN_UPSTREAM_PROXY": "http://proxy:3128"},
        "[upstream]\nfirst_token_s = 7\ntotal_s = 70\n[vendors.openai]\ntotal_s = 9\n"
        "[models.'openai/slow']\nproxy = ''\nfirst_token_s = 300\n",
    )
    openai, slow = found.vendors["openai"].access, found.models["openai/slow"].access
    assert (openai.timeouts.first_token_s, openai.timeouts.total_s, openai.timeouts.connect_s) == (7, 9, 10)
    assert (slow.timeouts.first_token_s, slow.timeouts.total_s) == (300, 9)
    assert (openai.proxy, slow.proxy) == ("http://proxy:3128", "")


def test_names_for_several_are_taken_apart_into_models(environ: dict[str, str]) -> None:
    found = upstream(
        environ | {"OPENAI_API_KEY": SECRET},
        "[models.'team/any']\ndeployments = [{model = 'team/big', weight = 2}, {model = 'local/tale', order = 1}]\n"
        "[models.'team/big']\ndeployments = [{model = 'openai/a', weight = 3}, {model = 'openai/b'},"
        " {model = 'openai/c', order = 9}]\n"
        "[models.'team/it']\nalias = 'openai/a'\n"
        "[models.'team/off']\nalias = 'openai/a'\nenabled = false\n",
    )
    assert found.routes["team/it"] == (Share(model="openai/a"),)
    assert found.routes["team/any"] == (
        Share(model="openai/a", weight=1.5),
        Share(model="openai/b", weight=0.5),
        Share(model="openai/c", weight=2, order=1),
        Share(model="local/tale", order=2),
    )
    assert "team/off" not in found.routes


SERVER = "address = 'https://x.example'\nlanguage = 'openai_chat'\n"
ERRORS = {
    "a vendor that nobody knows": ("[vendors.opnai]\n", r"line 1: \[vendors.opnai\] needs.*Did you mean `openai`"),
    "a prefix that is none": ("[vendors.'a/b']\n", r"line 1: .*a prefix is letters, digits"),
    "the engine's prefix": ("[vendors.local]\n", r"line 1: .*and not `local`"),
    "an unknown setting": (
        "[vendors.openai]\nadress = 'x'\n",
        r"line 2: .*no setting `adress`. Did you mean `address`",
    ),
    "a model's unknown setting": ("[models.'a/b']\naliases = 'x'\n", r"line 2: .*`aliases`. Did you mean `alias`"),
    "vendors that are none": ("vendors = 1\n", r"line 1: `vendors` holds a table for each: write \[vendors.PREFIX\]"),
    "a vendor that is none": ("[vendors]\nopenai = 1\n", r"line 2: `openai` is a table: write \[vendors.openai\]"),
    "a key that lacks": ("[vendors.openai]\nenabled = true\n", "can't be switched on: set OPENAI_API_KEY in the"),
    "a named key that lacks": (
        "[vendors.openai]\nkey_variable = 'TEAM_KEY'\n",
        "line 2: .*names TEAM_KEY, which the environment lacks",
    ),
    "two keys": ("[vendors.openai]\nkey = 'x'\nkey_variable = 'Y'\n", "line 2: .*write one of the two"),
    "a key that cannot be sent": ("[vendors.openai]\nkey = 'é'\n", "line 2: .*a header can't carry"),
    "a model whose vendor has no key": ("[models.'openai/x']\n", r"line 1: .*needs a key: set OPENAI_API_KEY"),
    "no server": ("[models.'a/b']\n", "line 1: .*needs the `address` and the `language`"),
    "an unknown vendor": ("[models.'a/b']\nvendor = 'opnai'\n", "line 2: .*vendor is 'opnai'. Did you mean `openai`"),
    "an unknown language": (
        "[models.'a/b']\naddress = 'https://x'\nlanguage = 'openai_chad'\n",
        "line 3: .*language is 'openai_chad'. Did you mean `openai_chat`",
    ),
    "another scheme": ("[vendors.openai]\naddress = 'ftp://x'\n", "line 2: .*must begin with http:// or https://"),
    "no host": ("[vendors.openai]\naddress = 'https:///v1'\n", "line 2: .*and name a host"),
    "a bad port": ("[vendors.openai]\naddress = 'https://x:99999'\n", "line 2: .*is no address"),
    "a password in an address": ("[vendors.openai]\naddress = 'https://a:b@x'\n", "line 2: .*write them as `key`"),
    "a query in an address": ("[vendors.openai]\naddress = 'https://x?a=b'\n", "line 2: .*only the base"),
    "an address's variable that lacks": (
        "[vendors.openai]\naddress = 'https://{RESOURCE}.example'\n",
        "line 2: .*address names RESOURCE, which the environment lacks",
    ),
    "a field that is none": (
        "[models.'a/b']\n" + SERVER + "takes = {temprature = true}\n",
        "line 4: .*`temprature`, which is no field of a request. Did you mean `temperature`",
    ),
    "a field always sent that is none": (
        "[models.'a/b']\n" + SERVER + "always = ['x']\n",
        "line 4: .*always names `x`",
    ),
    "a range backwards": ("[models.'a/b']\n" + SERVER + "takes = {top_p = [1, 0]}\n", "line 4: .*end is before"),
    "a take that is none": (
        "[models.'a/b']\n" + SERVER + "takes = {top_p = 1}\n",
        "line 4: .*takes must be a table, each",
    ),
    "a dialect that is none": (
        "[models.'a/b']\n" + SERVER + "dialect = {zzz = 1}\n",
        "line 4: .*which openai_chat has not",
    ),
    "a header that is none": ("[vendors.openai]\nheaders = {'a b' = 'x'}\n", "line 2: .*'a b', which is no header"),
    "a header of the call's own": ("[vendors.openai]\nheaders = {Host = 'x'}\n", "line 2: .*set by the call itself"),
    "a proxy with TLS": ("[upstream]\nproxy = 'https://x'\n", r"line 2: \[upstream\] proxy must begin with http://"),
    "no certificates": ("[upstream]\nca_file = 'andthen.toml'\n", "line 2: .*holds no certificates in PEM form"),
    "a missing file": ("[vendors.openai]\nca_file = 'no.pem'\n", "line 2: .*no.pem, which can't be read"),
    "a time that is none": ("[vendors.openai]\ntotal_s = 0\n", "line 2: .*total_s must be a number, above 0"),
    "both ways to stand for others": (
        "[models.'a/b']\nalias = 'local/tale'\ndeployments = [{model = 'local/tale'}]\n",
        "line 1: .*one of `alias` and `deployments`",
    ),
    "an unknown target": (
        "[models.'a/b']\nalias = 'local/tail'\n",
        "stands for local/tail: .*Did you mean `local/tale`",
    ),
    "a target that is switched off": (
        "[models.'a/b']\nalias = 'openai/x'\n",
        "OpenAI is not switched on: set OPENAI_API_KEY",
    ),
    "a circle": ("[models.'a/b']\nalias = 'a/c'\n[models.'a/c']\nalias = 'a/b'\n", "stands for itself in the end"),
    "itself": ("[models.'a/b']\nalias = 'a/b'\n", r'line 1: \[models."a/b"\] stands for itself'),
    "a share that is none": ("[models.'a/b']\ndeployments = [{modl = 'x'}]\n", "must be a list, each a table of model"),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_names_the_line_the_setting_and_the_remedy(environ: dict[str, str], text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        upstream(environ, text)
    assert f"{environ['ANDTHEN_HOME']}/andthen.toml, line " in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ANDTHEN_UPSTREAM_PROXY", "proxy:3128", "ANDTHEN_UPSTREAM_PROXY: is no address"),
        ("ANDTHEN_UPSTREAM_CA_FILE", "/no.pem", "ANDTHEN_UPSTREAM_CA_FILE: names /no.pem, which can't be read"),
        ("ANDTHEN_UPSTREAM_RETRIES", "-1", "ANDTHEN_UPSTREAM_RETRIES: must be an integer, at least 0"),
    ],
)
def test_an_error_in_a_variable_names_it(environ: dict[str, str], variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        upstream(environ | {variable: value})


def test_no_error_and_no_dump_shows_a_secret(environ: dict[str, str]) -> None:
    config = shown(environ, f"[vendors.openai]\nkey = '{SECRET}'\nproxy = 'http://a:{SECRET}@p:1'\n")
    text = f"{config!r} {config.upstream.vendors} {config.upstream.vendors['openai'].access!s} {config.__rich_repr__()}"
    assert SECRET not in text
    for wrong in (f"key = '{SECRET}é'", f"key = ['{SECRET}']", f"address = 'https://a:{SECRET}@x'"):
        with pytest.raises(ConfigError) as caught:
            upstream(environ, f"[vendors.openai]\n{wrong}\n")
        assert SECRET not in str(caught.value)


def shown(environ: dict[str, str], text: str) -> Config:
    upstream(environ, text)
    return load(environ)


def test_it_is_carried_between_processes_whole(environ: dict[str, str]) -> None:
    found = upstream(
        environ | {"OPENAI_API_KEY": SECRET},
        "[models.'openai/x']\ntakes = {n = [1, 2], seed = 'it is not there', logprobs = {max = 3, how = 'other'}}\n"
        "[models.'team/x']\nalias = 'openai/x'\n",
    )
    assert msgspec.json.decode(msgspec.json.encode(found), type=Upstream) == found


def test_a_server_may_have_no_local_model(environ: dict[str, str]) -> None:
    (Path(environ["ANDTHEN_HOME"]) / "andthen.toml").write_text("[models.'local/tale']\nenabled = false\n")
    assert load(environ | {"OPENAI_API_KEY": SECRET}).engine.models == {}
    with pytest.raises(ConfigError, match="no model is enabled"):
        load(environ)
