"""The page at `/docs` says what the OpenAPI document says."""

from __future__ import annotations

import json

from playwright.sync_api import expect

from tests.page.browsing import Reader
from tests.serving import Server


def test_every_route_field_and_error_is_there(reader: Reader, server: Server) -> None:
    document = json.loads(server.get("/openapi.json"))
    reader.page.goto(f"{reader.url}/docs")
    main = reader.page.get_by_role("main")
    expect(main).not_to_have_attribute("aria-busy", "true")
    shown = main.locator(".routes li").all_text_contents()
    assert sorted(shown) == sorted(
        f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods
    )
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        for field in schema.get("properties", {}):
            expect(main.locator(f"[id='{name}.{field}']")).to_have_count(1)
    codes = set(main.locator("#errors td:nth-child(2)").all_text_contents())
    told = json.dumps(document["paths"])
    assert codes == {code for code in schemas["ErrorDetail"]["properties"]["code"]["enum"] if f"`{code}`: " in told}


def test_links_lead_somewhere(reader: Reader) -> None:
    reader.page.goto(f"{reader.url}/docs")
    expect(reader.page.get_by_role("main")).not_to_have_attribute("aria-busy", "true")
    lost = reader.page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map((a) => decodeURIComponent(a.hash.slice(1)))"
        ".filter((id) => !document.getElementById(id))"
    )
    assert lost == []


def test_an_example_can_be_pasted(reader: Reader) -> None:
    reader.page.goto(f"{reader.url}/docs")
    example = reader.page.locator("figure code").first
    expect(example).to_contain_text(f"curl '{reader.url}/v4/beta/completions'")
    expect(example).to_contain_text('-H "x-api-key: $KEY"')


def test_an_example_says_its_method_where_curl_would_take_another(reader: Reader) -> None:
    reader.page.goto(f"{reader.url}/docs")
    codes = reader.page.locator("figure code")
    expect(codes.first).to_be_visible()
    shown = [text.split(" -H")[0].split(" \\\n")[0] for text in codes.all_text_contents()]
    for method in ("-X PATCH ", "-X DELETE ", ""):
        assert f"curl {method}'{reader.url}/admin/keys/id'" in shown
    assert f"curl '{reader.url}/admin/keys'" in shown
