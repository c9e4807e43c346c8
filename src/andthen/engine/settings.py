"""What the engine can be told; filled in by the configuration, carried to the engine's process as JSON."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

ENVIRONMENT = {
    # Spinning at OpenMP's barriers ruins decoding whenever another process wants a core. Read when libgomp loads.
    "GOMP_SPINCOUNT": "0",
    # A failed assertion in ggml else starts a debugger and prints a trace for seconds before the process ends.
    "GGML_NO_BACKTRACE": "1",
    # Sampling's temporary rows are larger than glibc's bound for mapped memory: without these, each is mapped, touched
    # and unmapped anew. Measured: truncation of 32 rows of 4,096 takes a third of the time.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}
"""What has to be said before the engine's process starts, or its library loads."""


_BEAT_S = 1.0
_BEATS = 8
"""So often within `hang_s`, at least."""


INHERITED = re.compile(
    r"(OMP|GOMP|KMP|OPENBLAS|MKL|BLIS|GGML|CUDA|HIP|HSA|ROCR|ROCM|SYCL|ONEAPI|ZE)_\w+"
    r"|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES)|VK_(ICD_FILENAMES|DRIVER_FILES|LAYER_PATH)"
)
"""Names of the environment's variables that its process gets: what its libraries read of the machine."""


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """One model file and how to run it."""

    path: str
    """A GGUF file."""
    context: Annotated[int, Meta(ge=0)] = 0
    """Longest sequence in tokens; 0 takes the model's own."""
    cells: Annotated[int, Meta(ge=0)] = 0
    """Tokens that the key-value pool holds for all sequences together; 0 chooses 48 contexts if
    they fit into 2 GiB, each for one sequence; else as many as fit, at most 32, shared by all."""
    gpu_layers: int = 0
    """Layers to place on a GPU where the library has one; −1 is all."""
    deterministic: bool = False
    """A seed gives the same text under any load, on a CPU. Each sequence then has cells of its own, so that fewer run
    at once."""
    suffix_first: bool | None = None
    """Whether the model has learnt to fill in the middle with the suffix before the prefix. Unset: as the file says
    under `andthen.suffix_first`, else after it, as most models have."""


class EngineSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The embedded engine: one process, all local models."""

    models: dict[str, ModelSettings] = {}
    """By whole name, `local/NAME`; the first is the default of the tokenizer routes."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Threads that compute; 0 is one fewer than the machine's cores, at least one."""
    memory_bytes: Annotated[int, Meta(ge=0)] = 0
    """Bound of all loaded models' weights and key-value pools; models idle longest are unloaded to keep it.
    0 is half of the machine's memory."""
    max_waiting: Annotated[int, Meta(ge=1)] = 256
    """Requests that may wait for their turn. Past it the newest request of the key that has most of them waiting gets
    503 `no_capacity`."""
    max_sequences: Annotated[int, Meta(ge=1, le=254)] = 128
    """Sequences that a model runs at once."""
    batch_tokens: Annotated[int, Meta(ge=32, le=4096)] = 256
    """Tokens that one step computes at most: the bound of what a long prompt may delay the others."""
    hang_s: Annotated[float, Meta(ge=0, le=86_400)] = 10.0
    """An engine that shows no sign of life for so long is killed and started again; with 0 none is. On a CPU each part
    of a step is such a sign, on a GPU only its end: set more there if a step takes as long."""

    @property
    def beat_s(self) -> float:
        """How often its threads show life while they have nothing to do."""
        return min(_BEAT_S, self.hang_s / _BEATS) if self.hang_s else _BEAT_S
