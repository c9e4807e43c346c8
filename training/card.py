"""Writes the model card from what a training left behind: `report.json` and `log.jsonl`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from training import plot

WIDTH = 100
CANT = """
- It knows nothing: names, facts, numbers and places are made up, and a question gets the next line of a story.
- It keeps the manner of a sentence, not a thread: who is speaking, where, and why is forgotten within a few sentences.
- Decoded greedily it soon goes in circles; sample it.
- It has read English from before 1923 only. Other languages and code come out as noise, and the attitudes of that time,
  some of them ugly, are in the text that it learnt from. Paragraphs with slurs were left out; nothing else was done.
- It follows no instructions and is no chat model.
"""


def write(out: Path, path: Path) -> None:
    """From the folder of a finished training to the card at `path`."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    log = plot.read(out / "log.jsonl")
    sections = [
        f"# {report['recipe']['about']['name']}: the model that ships",
        report["recipe"]["about"]["description"] + " It is there so that an app can be tried without a network: true "
        "tokens, true log-probabilities, fill-in-the-middle, the same bytes for the same seed.",
        _facts(report, log),
        "## What it can't do\n" + CANT.rstrip(),
        "## Held-out text\n\n" + _held_out(report),
        "## Gaps\n\n" + _gaps(report),
        "## The curve\n\n" + _curve(log),
        "## Samples\n\n" + _samples(report),
    ]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _facts(report: dict[str, Any], log: list[dict[str, Any]]) -> str:
    recipe = report["recipe"]
    shape = recipe["shape"]
    sizes = (
        f"{shape['layers']} layers, dim {shape['dim']}, {shape['heads']} heads on {shape['kv_heads']}, ff {shape['ff']}"
    )
    steps = sum(stage["steps"] for stage in recipe["stages"])
    tokens = sum(stage["steps"] * stage["rows"] * stage["row_tokens"] for stage in recipe["stages"])
    parts = ", ".join(f"`{part}`, sha256 `{digest}`" for part, digest in report["corpus_sha256"].items())
    facts = {
        "shape": f"llama, {report['parameters']:,} parameters: {sizes}",
        "vocabulary": f"{shape['vocab_size']:,} tokens, byte-level BPE",
        "context": f"{shape['context']:,} tokens",
        "file": f"{report['file_bytes']:,} bytes, F16 with norms in F32",
        "licence": f"{recipe['about']['license']}; the text that it learnt from is in the public domain",
        "data": f"{report['data']}: {parts}",
        "recipe": f"`training/recipes/{report['recipe_file']}`: seed {recipe['seed']}, {recipe['optimizer']}, "
        f"{steps:,} steps, {tokens / 1e6:.1f} million tokens",
        "made": f"{report['machine']}, PyTorch {report['torch']}: {_minutes(log):.0f} minutes",
    }
    return _table(["", ""], list(facts.items()))


def _minutes(log: list[dict[str, Any]]) -> float:
    """Of all pieces of the training: each counts from its own start."""
    times = [line["minutes"] for line in log if "minutes" in line]
    ends = [time for time, after in zip(times, [*times[1:], 0.0], strict=True) if after < time]
    return float(sum(ends))


def _curve(log: list[dict[str, Any]]) -> str:
    return (
        "Training loss over steps, in nat per token; the middles of gaps count more than once, as the recipe says:\n\n"
        f"```text\n{plot.text(plot.points(log, 'loss'))}\n```\n\n"
        "Held-out bits per byte on a part of the held-out text, in windows of the rows' length at that step:\n\n"
    ) + _table(["step", "bits per byte"], plot.points(log, "bits_per_byte"))


def _held_out(report: dict[str, Any]) -> str:
    gaps = report["gaps"]
    rows = [
        ("**this model**, windows of 1,024 tokens", f"**{report['bits_per_byte']:.3f}**"),
        *((name, f"{bits:.3f}") for name, bits in report["baselines"].items()),
    ]
    return (
        "Bits per byte on whole books that were kept out of the training text:\n\n"
        + _table(["", "bits per byte"], rows)
        + "\n\nThe 5-gram model counts the same tokens in the whole training text (interpolated Kneser–Ney) and would "
        "be many times the size of this file; gzip and xz have read nothing before.\n\n"
        f"Of {gaps['every']['gaps']} held-out passages of at most 800 characters, read alone: "
        f"{gaps['bits_per_byte_plain']:.3f} as plain text, {gaps['bits_per_byte_cut']:.3f} cut, the middle last."
    )


def _gaps(report: dict[str, Any]) -> str:
    gaps = report["gaps"]
    every, short = gaps["every"], gaps["short"]
    readings = [
        (reading, f"{nats:.3f}", f"{short['nats_per_token'][reading]:.3f}")
        for reading, nats in every["nats_per_token"].items()
    ]
    gain = (f"{kind['gain_per_gap']:+.2f} ± {kind['gain_error']:.2f}" for kind in (every, short))
    titles = ["read before the middle", f"all {every['gaps']} gaps", f"{short['gaps']} of at most 60 characters"]
    return (
        "Mean log-probability of the true middle of held-out gaps, in nat per token; gaps begin and end at words:\n\n"
        + _table(titles, [*readings, ("the suffix gains over plain text, nat per gap", *gain)])
        + f"\n\nDecoded greedily, {gaps['short_ended']} of {short['gaps']} short gaps end by themselves; in "
        f"{gaps['short_whole_words']} of those every word, also across the seams, is a word of the training text."
    )


def _samples(report: dict[str, Any]) -> str:
    intro = (
        "The beginnings of ten held-out paragraphs, spread evenly; no choosing. Each is continued by 100 tokens at "
        "temperature 0.8 with top_p 0.95 and the sample's number as the seed, then greedily."
    )
    shown = [
        f"**{number}.** {_inline(sample['prompt'])}\n\n"
        f"```text\n{_wrapped(sample['sampled'])}\n```\n\n```text\n{_wrapped(sample['greedy'])}\n```"
        for number, sample in enumerate(report["samples"], 1)
    ]
    return "\n\n".join([intro, *shown])


def _inline(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ⏎ ") + "`"


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.fill(line, WIDTH) for line in text.split("\n"))


def _table(titles: list[str], rows: list[Any]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
