"""Checkpoints from which a training resumes: a folder of files, each under 16 MiB, so that they travel one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PART_BYTES = 15 * 2**20
KEPT = 2


def save(folder: Path, step: int, model: nn.Module, optimizers: Sequence[Optimizer], *, small: bool) -> None:
    """Writes `folder/step-N`, N steps done; `small`: weights in bfloat16 and no moments, a sixth of the size."""
    tensors = {f"weight {name}": tensor for name, tensor in model.state_dict().items()}
    if small:
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    else:
        for which, optimizer in enumerate(optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"state {which} {index} {name}": tensor for name, tensor in state.items()}
    target = folder / f"step-{step:07d}"
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, part in enumerate(_parts(tensors)):
        torch.save(part, partial / f"part-{number:02d}.pt")
    (partial / "step.json").write_text(json.dumps({"step": step}))
    partial.replace(target)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old)


def resume(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> int:
    """Loads the newest checkpoint in `folder` and returns the number of steps it has behind it; 0 if there is none."""
    checkpoints = _all(folder)
    if not checkpoints:
        return 0
    tensors: dict[str, Tensor] = {}
    for part in sorted(checkpoints[-1].glob("part-*.pt")):
        tensors |= torch.load(part, map_location="cpu")
    model.load_state_dict({name[7:]: tensor.float() for name, tensor in tensors.items() if name.startswith("weight ")})
    for which, optimizer in enumerate(optimizers):
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"state {which} "):
                _, _, index, key = name.split(" ")
                states.setdefault(int(index), {})[key] = tensor
        if states:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return int(json.loads((checkpoints[-1] / "step.json").read_text())["step"])


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")


def _parts(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Splits by size; a tensor larger than a part has one to itself."""
    parts: list[dict[str, Tensor]] = [{}]
    room = PART_BYTES
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if parts[-1] and size > room:
            parts.append({})
            room = PART_BYTES
        parts[-1][name] = tensor.detach().cpu().clone()
        room -= size
    return parts
