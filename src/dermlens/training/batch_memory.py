"""The batch that the memory holds: what a training step needs, against what the machine has free."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from dermlens.errors import RecipeError
from dermlens.networks.backend import leaves
from dermlens.training.device import on_gpu
from dermlens.training.recipe import Recipe
from dermlens.training.step import norms_behind

BYTES_PER_ACTIVATION = 4 * 1.15  # float32; most outputs are kept for the gradients (`python -m benchmarks memory`)
WORKSPACE_BYTES = 500_000_000  # what a step takes whatever the batch
COPIES_OF_WEIGHTS = 7  # weights, gradients, two moments, average, best, and one in passing


def check_memory(model: keras.Model, recipe: Recipe) -> None:
    """Refuse a batch that the machine's memory cannot hold, before the system ends the process for it.

    Raises:
        RecipeError: names the batch that fits; nothing is known, and nothing raised, on a GPU.
    """
    free = None if on_gpu() else free_bytes()
    if free is None:
        return
    need = fixed_bytes(model) + recipe.batch_size * bytes_per_image(model)
    if need <= free:
        return
    fits = int((free - fixed_bytes(model)) // bytes_per_image(model))
    if fits < 1:
        remedy = "Choose a smaller backbone or size_px, or train less of it with --fine-tune top."
    else:
        remedy = f"A batch of {fits} fits: --set batch_size={fits}."
    raise RecipeError(
        f"A training step with batch_size {recipe.batch_size} needs about {need / 1e9:.1f} GB; "
        f"{free / 1e9:.1f} GB are free.",
        remedy=remedy,
        code="memory_too_small",
    )


def out_of_memory(recipe: Recipe) -> RecipeError:
    """Return the error for a step that ran out of the device's memory."""
    half = max(1, recipe.batch_size // 2)
    return RecipeError(
        f"The device ran out of memory with batch_size {recipe.batch_size} at {recipe.size_px} px.",
        remedy=f"Try --set batch_size={half}; the run continues with --overwrite from its caches.",
        code="memory_too_small",
    )


def bytes_per_image(model: keras.Model) -> int:
    """Return about what one image costs in a training step of the trainable part, in bytes."""
    inside = {id(norm) for norm in norms_behind(model).values()}  # a part of their convolutions in `make_step`
    elements = sum(_elements(layer) for layer in leaves(model) if id(layer) not in inside)
    return int(elements * BYTES_PER_ACTIVATION)


def fixed_bytes(model: keras.Model) -> int:
    """Return about what a training step costs whatever the batch, in bytes: mostly copies of the weights."""
    return WORKSPACE_BYTES + 4 * COPIES_OF_WEIGHTS * sum(int(np.prod(v.shape)) for v in model.weights)


def _elements(layer: keras.layers.Layer) -> int:
    shapes = [node.outputs[0].shape for node in layer._inbound_nodes[:1]]
    return sum(int(np.prod([n for n in shape[1:] if n])) for shape in shapes)


def free_bytes() -> int | None:
    """Return the memory that this process may still take, by system and control group; None where it is not told."""
    found = [_available(), _group_left()]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _group_left() -> int | None:
    try:
        group = Path("/sys/fs/cgroup")
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(stat["active_file"]) + int(stat["inactive_file"])  # given back when somebody needs it
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()) + cached
    except (OSError, ValueError, KeyError):  # no such group, or "max"
        return None
