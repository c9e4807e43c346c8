"""In which precision a device multiplies."""

from __future__ import annotations

import torch


def bfloat16_pays(device: str) -> bool:
    """Whether the device multiplies in bfloat16 itself: a CPU that has to emulate it is ten times slower by it.

    Where an older PyTorch can't tell, it is taken that the CPU does not.
    """
    if device != "cpu":
        return True
    can: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
