"""The page at `/`, as its reader meets it."""

from __future__ import annotations

import re
import subprocess

import pytest
from playwright.sync_api import Browser, expect

from tests.page.browsing import WAIT_MS, Reader, shades, stretches, visible
from tests.server.running import Running, running
from tests.serving import Server

PROMPT = "Once 🦊 upon\n a time"


def test_a_text_goes_on_in_place_as_the_endpoint_says(reader: Reader, server: Server) -> None:
    reader.open()
    reader.set(seed=7, max_tokens=24)
    reader.text.fill(PROMPT)
    reader.text.press("Control+Enter")
    reader.done()
    (choice,) = server.complete(prompt=PROMPT, seed=7, max_tokens=24, logprobs=5)["choices"]
    expect(reader.text).to_have_value(PROMPT + choice["text"])
    assert [token for token in reader.tokens.all_text_contents() if token] == stretches(choice)
    for name, value in {"finish": choice["finish_reason"], "model": server.model, "plan": "seed=native"}.items():
        expect(reader.page.locator(f"#facts .{name} dd")).to_contain_text(value)


def test_a_second_run_goes_on_from_the_first_and_is_taken_back(reader: Reader) -> None:
    reader.open()
    reader.set(max_tokens=8, min_tokens=8)
    reader.run()
    reader.done()
    first = reader.text.input_value()
    shaded = reader.tokens.count()
    reader.run()
    expect(reader.text).not_to_have_value(first)
    reader.done()
    assert reader.text.input_value().startswith(first)
    assert reader.tokens.count() > shaded
    reader.page.get_by_role("button", name="Take back").click()
    expect(reader.text).to_have_value(first)
    expect(reader.tokens).to_have_count(shaded)


def test_tokens_are_shaded_and_tell_their_alternatives_to_the_pointer(reader: Reader, server: Server) -> None:
    reader.open()
    reader.set(seed=3, max_tokens=8)
    reader.run()
    reader.done()
    (choice,) = server.complete(seed=3, max_tokens=8, logprobs=5)["choices"]
    shown = reader.tokens.evaluate_all("nodes => nodes.map((n) => Number(n.style.getPropertyValue('--surprise')))")
    assert shown == pytest.approx(shades(choice), abs=0.0006)
    box = reader.tokens.first.bounding_box()
    assert box is not None
    reader.page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2)
    expect(reader.card).to_be_visible()
    top = choice["logprobs"]["top_logprobs"][0]
    best_first = sorted(top, key=lambda text: -top[text])
    assert [text for text, _ in reader.ways()] == [visible(text) for text in best_first]
    reader.page.mouse.move(1, 1)
    expect(reader.card).to_be_hidden()


def test_the_keyboard_reaches_tokens_and_takes_another(reader: Reader, server: Server) -> None:
    reader.open()
    reader.set(seed=3, max_tokens=8)
    reader.run()
    reader.done()
    reader.text.press("Tab")
    expect(reader.tokens.nth(0)).to_be_focused()
    reader.page.keyboard.press("ArrowRight")
    expect(reader.tokens.nth(1)).to_be_focused()
    expect(reader.card).to_be_visible()
    (choice,) = server.complete(seed=3, max_tokens=8, logprobs=5)["choices"]
    logprobs = choice["logprobs"]
    others = {text: value for text, value in logprobs["top_logprobs"][1].items() if text != logprobs["tokens"][1]}
    reader.page.keyboard.press("ArrowDown")
    reader.page.keyboard.press("Enter")
    expect(reader.text).to_have_value("Once upon a time" + logprobs["tokens"][0] + max(others, key=others.__getitem__))
    expect(reader.text).to_be_focused()
    expect(reader.tokens).to_have_count(2)


def test_an_edit_takes_the_shade_from_all_that_follows(reader: Reader) -> None:
    reader.open()
    reader.set(max_tokens=8)
    reader.run()
    reader.done()
    kept = "Once upon a time" + "".join(reader.tokens.all_text_contents()[:2])
    reader.text.evaluate("(area, at) => area.setSelectionRange(at, at)", len(kept))
    reader.text.press("X")
    expect(reader.tokens).to_have_count(2)


@pytest.mark.parametrize("width", [360, 777, 1280])
def test_what_is_edited_and_what_is_seen_break_their_lines_alike(reader: Reader, width: int) -> None:
    reader.page.set_viewport_size({"width": width, "height": 800})
    reader.open()
    reader.set(max_tokens=200, min_tokens=200, seed=1, temperature=2)
    reader.text.fill(
        "AVA To\tWe, ffi 'Tis\n\n語の長い文、区切りなし。" * 3 + "long" * 90 + " a  b   c " * 40 + "שלום עולם 🦊🦊 \n"
    )
    reader.run()
    reader.done()
    heights = """() => {
        const [area, ink] = [document.getElementById("text"), document.getElementById("ink")];
        area.style.height = ink.style.minHeight = "0";
        return [area.scrollHeight, ink.offsetHeight];
    }"""
    edited, seen = reader.page.evaluate(heights)
    assert edited == pytest.approx(seen, abs=2)


def test_candidates_stand_side_by_side(reader: Reader, server: Server) -> None:
    reader.open()
    reader.set(seed=5, n=2, max_tokens=12)
    reader.run()
    reader.done()
    first, second = server.complete(seed=5, n=2, max_tokens=12)["choices"]
    expect(reader.text).to_have_value("Once upon a time" + first["text"])
    radios = reader.page.get_by_role("radio")
    assert [card.locator(".text").text_content() for card in radios.all()] == [first["text"], second["text"]]
    radios.nth(0).press("ArrowRight")
    expect(radios.nth(1)).to_be_focused()
    expect(reader.text).to_have_value("Once upon a time" + second["text"])


def test_echo_shades_the_prompt_and_does_not_repeat_it(reader: Reader) -> None:
    reader.open()
    reader.set(echo=True, max_tokens=0)
    reader.run()
    reader.done()
    expect(reader.text).to_have_value("Once upon a time")
    assert "".join(reader.tokens.all_text_contents()) == "Once upon a time"


def test_several_stops_and_no_stream(reader: Reader, server: Server) -> None:
    reader.open()
    reader.set(seed=11, max_tokens=64, stream=False, stop="a")
    reader.page.get_by_label("stop 2").fill(r"\n")
    with reader.page.expect_request("**/completions") as sent:
        reader.run()
    reader.done()
    assert (sent.value.post_data_json or {})["stop"] == ["a", "\n"]
    (choice,) = server.complete(seed=11, max_tokens=64, stop=["a", "\n"])["choices"]
    expect(reader.text).to_have_value("Once upon a time" + choice["text"])


def test_the_best_of_several_comes_without_a_stream(reader: Reader, server: Server) -> None:
    reader.open()
    reader.set(seed=11, max_tokens=8, best_of=3)
    reader.run()
    reader.done()
    (choice,) = server.complete(seed=11, max_tokens=8, best_of=3)["choices"]
    expect(reader.text).to_have_value("Once upon a time" + choice["text"])


def test_a_refusal_marks_its_field(reader: Reader) -> None:
    reader.open()
    reader.set(temperature=3)
    reader.run()
    expect(reader.problem).to_contain_text("temperature")
    expect(reader.problem).to_contain_text("invalid_value")
    field = reader.page.get_by_label("temperature", exact=True)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    reader.set(temperature=1, max_tokens=2)
    expect(field).not_to_have_attribute("aria-invalid", "true")
    reader.run()
    reader.done()
    expect(reader.problem).to_be_hidden()


def test_a_wrong_key_is_told_at_the_key(reader: Reader) -> None:
    reader.page.goto(reader.url)
    reader.page.get_by_label("key", exact=True).fill("at-wrong")
    expect(reader.problem).to_contain_text("invalid_api_key")
    expect(reader.page.get_by_label("key", exact=True)).to_have_attribute("aria-invalid", "true")


def test_the_key_stays_in_the_tab(reader: Reader) -> None:
    reader.open()
    reader.page.reload()
    expect(reader.page.get_by_label("key", exact=True)).to_have_value(reader.key)
    assert reader.key not in reader.page.url
    assert reader.page.evaluate("localStorage.length") == 0
    assert reader.page.evaluate("document.cookie") == ""


def test_the_command_can_be_pasted(reader: Reader) -> None:
    reader.open()
    reader.text.fill('It\'s $HOME "here"\nand `there`')
    reader.set(seed=2, max_tokens=6, stream=False)
    reader.page.get_by_text("As curl").click()
    command = reader.page.locator("#curl")
    assert reader.key not in (command.text_content() or "")
    reader.page.get_by_label("with my key").check()
    said = subprocess.run(
        ["bash", "-c", f"{command.text_content()} --silent"], capture_output=True, text=True, check=True
    )
    reader.run()
    reader.done()
    written = reader.page.evaluate("(said) => JSON.parse(said).choices[0].text", said.stdout)
    expect(reader.text).to_have_value('It\'s $HOME "here"\nand `there`' + written)


def test_stop_ends_the_work(at_scripted: Reader, scripted: Running) -> None:
    at_scripted.open()
    at_scripted.text.fill("slow")
    at_scripted.run()
    expect(at_scripted.text).to_have_value(re.compile("^slow 1 2"))
    assert scripted.jobs() == 1
    at_scripted.page.get_by_role("button", name=re.compile("^Stop")).click()
    expect(at_scripted.page.locator("#status")).to_contain_text("Stopped")
    scripted.until_jobs(0)
    expect(at_scripted.problem).to_be_hidden()


def test_an_error_in_the_stream_is_no_clean_end(at_scripted: Reader) -> None:
    at_scripted.open()
    at_scripted.text.fill("break")
    at_scripted.run()
    expect(at_scripted.problem).to_contain_text("internal_error")
    expect(at_scripted.text).to_have_value("break 1 2")
    expect(at_scripted.page.locator("#status")).to_be_empty()


def test_a_server_that_dies_is_no_clean_end(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("dies")) as server, browser.new_context() as context:
        reader = Reader(context.new_page(), f"http://127.0.0.1:{server.port}", server.key)
        reader.open()
        reader.text.fill("slow")
        reader.run()
        expect(reader.text).to_have_value(re.compile("^slow 1 2"))
        server.process.kill()
        expect(reader.problem).to_contain_text("cut off")
        reader.run()
        expect(reader.problem).to_contain_text("does not answer", timeout=WAIT_MS)


def test_a_stream_without_its_end_is_no_clean_end(reader: Reader) -> None:
    reader.open()
    chunk = '{"choices":[{"index":0,"text":" there","logprobs":null,"finish_reason":"stop"}],"usage":null}'
    reader.page.route(
        "**/completions", lambda route: route.fulfill(content_type="text/event-stream", body=f"data: {chunk}\n\n")
    )
    reader.run()
    expect(reader.problem).to_contain_text("cut off")
    expect(reader.text).to_have_value("Once upon a time there")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_narrow_screen_needs_no_scrolling_sideways(reader: Reader, path: str) -> None:
    reader.page.set_viewport_size({"width": 360, "height": 740})
    reader.page.goto(reader.url + path)
    expect(reader.page.locator("#p-n, #errors")).to_be_visible()
    assert reader.page.evaluate("document.documentElement.scrollWidth") == 360
