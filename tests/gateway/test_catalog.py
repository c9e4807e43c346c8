"""What names stand for, also those that callers make up and those of an engine that is not there yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import pytest

from andthen.contract.errors import EngineRestarted, ModelNotFound, UnsupportedParameter
from andthen.gateway import catalog
from andthen.gateway.backend import Deployment
from andthen.gateway.catalog import Catalog
from andthen.http.client import HttpClient
from andthen.vendors.rows import Profile
from andthen.vendors.settings import Remote, Share, Upstream, UpstreamSettings
from tests.upstream.vendor import LIMITS, begun, remote

OPENAI = Remote(vendor="OpenAI", prefix="openai", address="https://example.invalid/v1", language="openai_chat")


def starting() -> NoReturn:
    raise EngineRestarted("The engine is starting: send the request again.")


def made(local: Mapping[str, Deployment] | None = None, **upstream: Any) -> Catalog:
    fields: dict[str, Any] = {"vendors": {"openai": OPENAI}, "models": {"team/m": remote(9)}} | upstream
    return Catalog(starting if local is None else lambda: local, Upstream(**fields), HttpClient(), LIMITS)


def test_another_server_under_the_same_name_is_another() -> None:
    first = made(models={"team/m": remote(9)}).find("team/m")
    others = [remote(10), remote(9, "openai_chat"), remote(9, headers={"x-part": "b"})]
    others += [remote(9, over=Profile(takes={"seed": False})), remote(9, over=Profile(deterministic=True))]
    identities = {made(models={"team/m": other}).find("team/m").identity for other in others}
    assert len(identities | {first.identity}) == 6
    assert made(models={"team/m": remote(9)}).find("team/m").identity == first.identity
    models = made({})
    assert models.find("openai/a").identity != models.find("openai/b").identity


def test_names_that_callers_make_up_are_kept_in_bounds_and_never_become_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_MAX_UNLISTED", 3)
    models = made({})
    failing = models.find("team/m")
    models.breaker(failing).on_failure(0.0, 1000, UpstreamSettings())
    for number in range(10):
        one = models.find(f"openai/made-up-{number}")
        models.breaker(one)
        assert one.label == "openai/*"
    assert len(models._unlisted) == 3
    assert len(models._breakers) == 4
    assert models.find("team/m") is failing
    assert models.breaker(failing).failures == 1
    assert failing.label == "team/m"


def test_what_cools_down_goes_on_to_under_other_settings_where_it_is_the_same() -> None:
    before = made({})
    for name in ("team/m", "openai/unlisted", "openai/fine"):
        before.breaker(before.find(name))
    for name in ("team/m", "openai/unlisted"):
        before.breaker(before.find(name)).on_failure(0.0, 1000, UpstreamSettings())

    same = made({}, models={"team/m": remote(9), "team/new": remote(9)})
    same.take_breakers(before)
    for name in ("team/m", "openai/unlisted"):
        assert same.breaker(same.find(name)) is before.breaker(before.find(name)), "a request under way tells both"
    assert same.breaker(same.find("openai/fine")).failures == 0

    other = made({}, models={"team/m": remote(10)}, vendors={})
    other.take_breakers(before)
    assert other.breaker(other.find("team/m")).failures == 0, "it is another server now"
    assert list(other._breakers) == ["team/m"]


@pytest.mark.parametrize("model", ["x" * 257, "../files", "a/../b", "..", "a\\..\\b", "a b", "a\nb", "é", "\x00"])
def test_a_name_that_no_vendors_model_can_have_is_unknown(model: str) -> None:
    with pytest.raises(ModelNotFound):
        made({}).find(f"openai/{model}")


@pytest.mark.parametrize("model", ["gpt-5.5", "ft:gpt-4o:team::a1", "meta/llama:free", "./file..gguf", "@cf/a"])
def test_any_other_name_is_asked_of_the_vendor(model: str) -> None:
    assert made({}).find(f"openai/{model}").model == f"openai/{model}"


def test_a_refusal_is_told_while_no_engine_runs() -> None:
    with pytest.raises(UnsupportedParameter, match="no configured model takes it"):
        begun(made(), structured_outputs={"json": {}})


def test_the_others_behind_a_name_are_asked_while_no_engine_runs() -> None:
    both = (Share(model="local/tale"), Share(model="team/m", order=1))
    models = made(routes={"team/any": both, "team/own": both[:1]})
    assert [one.model for one in models.candidates("team/any")] == ["team/m"]
    with pytest.raises(EngineRestarted):
        models.candidates("team/own")


def test_a_name_that_stands_for_several_is_listed_once_and_names_nobody_twice() -> None:
    routes = {"openai/gpt-5.5": (Share(model="team/m"),), "team/any": (Share(model="openai/made-up"),)}
    models = made({}, routes=routes)
    names = [name for name, _ in models.listed()]
    assert len(names) == len(set(names))
    assert {"openai/gpt-5.5", "team/any", "team/m"} <= set(names)
    rows = [row.model for row in models.abilities()]
    assert len(rows) == len(set(rows))
    assert {"team/m", "openai/made-up"} <= set(rows)
    assert models.find("team/any").label == "openai/made-up", "the operator's, and no caller's"
