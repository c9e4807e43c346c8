"""Makes a model: `python -m training RECIPE --corpus DIR --out DIR`. Run again, it goes on where it was cut off.

Leaves in OUT: `tokenizer.json`, `step-N/` (checkpoints), `log.jsonl`, `loss.svg`, `NAME.gguf`, `report.json` and
`CARD.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from training import baselines, card, checkpoint, corpus, evaluate, export, plot, recipe, samples, tokenizer
from training.model import Llama
from training.precision import decided
from training.train import Run, train

HELD_OUT_PART = "juvenile"
COMPARED_PROMPTS = 20
PROMPT_CHARACTERS = 400


def main() -> int:
    """0: the model is made; 3: out of time, run it again to go on; 1: llama.cpp and PyTorch disagree."""
    options = _options()
    made = recipe.read(options.recipe)
    options.out.mkdir(parents=True, exist_ok=True)
    # Weights that fade leave ever more numbers near zero, on which a CPU multiplies at half its speed. The threads that
    # it will start inherit this.
    torch.set_flush_denormal(True)
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = {part: corpus.read(options.corpus, part, "train") for part in made.mix}
    held_out = corpus.read(options.corpus, HELD_OUT_PART, "val")
    tokenizer_file = options.out / "tokenizer.json"
    if not tokenizer_file.exists():
        tokenizer.train(list(texts.values()), made.shape.vocab_size, tokenizer_file)
    encode = tokenizer.encoder(tokenizer.load(tokenizer_file))
    bfloat16 = decided(options.device, options.out)
    run = Run(
        options.out, options.device, bfloat16, options.minutes, options.save_every, options.small, options.compile
    )
    finished = train(made, run, texts, held_out, encode)
    plot.draw(options.out / "log.jsonl", options.out / "loss.svg")
    if not finished:
        return 3

    report = _report(options, made, texts, held_out)
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    card.write(options.out, options.out / "CARD.md")
    agreement = report["agreement"]
    return 1 if agreement["tokens_differing"] or agreement["continuations_differing"] else 0


def _report(
    options: argparse.Namespace, made: recipe.Recipe, texts: dict[str, corpus.Text], held_out: corpus.Text
) -> dict[str, Any]:
    """Exports the model and measures it."""
    tokenizer_file = options.out / "tokenizer.json"
    loaded = tokenizer.load(tokenizer_file)
    encode = tokenizer.encoder(loaded)
    model = Llama(made.shape).to(options.device)
    checkpoint.resume(options.out, model)
    gguf = options.out / f"{made.about['name']}.gguf"
    export.export(model, made, tokenizer_file, gguf)
    words = frozenset(word for text in texts.values() for word in evaluate.WORD.findall(text.characters))
    five_grams = baselines.five_grams(list(texts.values()), held_out, encode, made.shape.vocab_size)
    decode = tokenizer.decoder(loaded)
    gaps = evaluate.gaps(model, held_out, encode, decode, words, seed=made.seed, suffix_first=made.suffix_first)
    prompts = samples.prompts(held_out, COMPARED_PROMPTS, PROMPT_CHARACTERS)
    return {
        "recipe": dataclasses.asdict(made),
        "recipe_file": options.recipe.name,
        "data": corpus.sources(options.corpus, list(texts)),
        "corpus_sha256": {part: corpus.digest(options.corpus, part, "train") for part in made.mix},
        "parameters": made.shape.parameters,
        "file_bytes": gguf.stat().st_size,
        "torch": torch.__version__,
        "machine": _machine(options.device, bfloat16=decided(options.device, options.out)),
        "bits_per_byte": evaluate.bits_per_byte(model, held_out, encode, window=made.shape.context),
        "baselines": {"5-gram model": five_grams} | baselines.compressors(held_out),
        "gaps": dataclasses.asdict(gaps),
        "samples": [dataclasses.asdict(sample) for sample in samples.write(gguf, held_out)],
        "agreement": dataclasses.asdict(
            export.compare(model, gguf, prompts, [encode(prompt) for prompt in prompts])  # moves it to the CPU: last
        ),
    }


def _machine(device: str, *, bfloat16: bool) -> str:
    precision = "bfloat16" if bfloat16 else "float32"
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, {precision}"
    threads = torch.get_num_threads()
    return f"{threads} CPU {'thread' if threads == 1 else 'threads'} ({platform.machine()}), {precision}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a TOML file of training/recipes/")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of PART.train.txt.xz, PART.val.txt.xz")
    parser.add_argument("--out", type=Path, required=True, help="where results go; outside the repository")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop with a checkpoint after this long")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--small", action="store_true", help="checkpoints of bfloat16 weights only")
    parser.add_argument("--compile", action="store_true", help="torch.compile: twice as fast, wants a C++ compiler")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
