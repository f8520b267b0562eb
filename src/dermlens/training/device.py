"""What the machine offers and what follows from it: mode, precision, threads, devices, and the batch that fits."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from dermlens.errors import RecipeError
from dermlens.networks.backend import keep_freed_memory, leaves
from dermlens.networks.family import Backbone, block_cuts
from dermlens.training.recipe import Recipe
from dermlens.training.step import foldable_norms

CUT_DEPTH = 7 / 16  # share of the blocks below the cut: for lite0 the second block at 14 x 14
CLEARLY_FASTER = 1.1
BATCH_SIZE, BATCH_STEP = 64, 8  # where the recipe leaves it open: as much as fits, in multiples of 8
BYTES_PER_ACTIVATION = 4 * 1.15  # float32; most outputs are kept for the gradients (benchmarks)
WORKSPACE_BYTES = 500_000_000  # of a step, whatever the batch
COPIES_OF_WEIGHTS = 7  # weights, gradients, two moments, average, best, and one in passing


def on_gpu() -> bool:
    """Say whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def resolve(recipe: Recipe, row: Backbone) -> Recipe:
    """Return the recipe with every "auto" and default that depends on backbone or device made concrete.

    Raises:
        RecipeError: a setting that the backbone does not have, such as a block beyond its last.
    """
    random = recipe.weights == "none"  # then there is nothing in a frozen trunk
    mode = recipe.fine_tune if recipe.fine_tune != "auto" else ("full" if on_gpu() or random else "top")
    updated = "updated" if random else "frozen"
    normed = updated if recipe.batch_norm == "auto" else recipe.batch_norm
    precision = recipe.precision
    if precision == "auto":
        precision = faster_precision() if on_gpu() else "float32"
    recipe = replace(recipe, batch_size=recipe.batch_size or BATCH_SIZE)
    return replace(
        recipe,
        backbone=row.name,
        size_px=recipe.size_px or row.input_size_px,
        fine_tune=mode,
        cut_block=_cut(recipe.cut_block, mode, row),
        batch_norm=normed,
        precision=precision,
        devices=_devices(recipe, mode),
        threads=recipe.threads or _processors(),
    )


def devices(recipe: Recipe) -> list[str]:
    """Return the names of the devices over which a resolved recipe spreads its batches."""
    return [f"{device.device_type}:{place}" for place, device in enumerate(_logical()[: recipe.devices])]


def _devices(recipe: Recipe, mode: str) -> int:
    """Return how many devices share a batch; each gets two images at least."""
    if mode != "full":
        if recipe.devices > 1:
            raise RecipeError(
                f"Recipe setting devices is {recipe.devices}, and fine_tune is {mode}. Only full spreads its batches.",
                remedy="Leave devices out, or choose --fine-tune full.",
            )
        return 1
    there, most = len(_logical()), max(1, recipe.batch_size // 2)
    if recipe.devices > min(there, most):
        raise RecipeError(
            f"Recipe setting devices is {recipe.devices}. TensorFlow sees {there} here, and a batch of "
            f"{recipe.batch_size} can be spread over {most}.",
            remedy=f"Choose devices from 1 to {min(there, most)}, or 0 for as many as there are.",
        )
    return recipe.devices or min(there, most)


def _logical() -> list[tf.config.LogicalDevice]:
    """Return the GPUs, or the processor where there is none."""
    return tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")


def _cut(cut: int, mode: str, row: Backbone) -> int:
    if mode == "head":
        return row.blocks
    if mode == "full":
        return 0
    if cut < 0:
        at_stride_16 = next(c.block for c in block_cuts(row.name) if c.stride == 16)
        return max(at_stride_16, round(row.blocks * CUT_DEPTH))
    if cut >= row.blocks:
        raise RecipeError(
            f"With cut_block {cut} no block of {row.title} is left to train: it has {row.blocks}. cut_block may be 0 "
            f"(after the stem) to {row.blocks - 1}, --unfreeze 1 to {row.blocks}.",
            remedy="Choose a block in that range; a later one trains less and faster.",
            code="cut_out_of_range",
        )
    return cut


def set_up(recipe: Recipe, console: Console) -> None:
    """Fix the threads, switch deterministic operations on where the recipe says so, and seed everything.

    Where TensorFlow has already computed something in this process its threads stay, and deterministic operations
    stay on once they are.
    """
    keep_freed_memory()
    threads = recipe.threads or _processors()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        if tf.config.threading.get_intra_op_parallelism_threads() not in (0, threads):
            console.print(f"TensorFlow is already running and keeps its threads; the recipe asks for {threads}.")
    if recipe.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(recipe.seed)


def faster_precision(repeats: int = 10) -> str:
    """Time a convolution with its gradient in float32 and in float16 and name the faster policy."""
    took = {policy: _trial(dtype, repeats) for policy, dtype in (("float32", "float32"), ("mixed_float16", "float16"))}
    return "mixed_float16" if took["float32"] > CLEARLY_FASTER * took["mixed_float16"] else "float32"


def _trial(dtype: str, repeats: int) -> float:
    x = tf.zeros((16, 28, 28, 96), dtype)
    kernel = tf.Variable(tf.zeros((1, 1, 96, 576), dtype))

    @tf.function(jit_compile=False)
    def run() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")))
        return tape.gradient(loss, kernel)

    run().numpy()
    start = time.perf_counter()
    for _ in range(repeats):
        made = run()
    made.numpy()
    return time.perf_counter() - start


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fit_batch(model: keras.Model, recipe: Recipe, console: Console) -> Recipe:
    """Return the recipe with the largest batch up to its own that the memory holds, in multiples of 8."""
    free = None if on_gpu() else free_bytes()
    fits = recipe.batch_size if free is None else _batch_that_fits(model, free)
    if fits >= recipe.batch_size:
        return recipe
    size = fits // BATCH_STEP * BATCH_STEP
    if size < BATCH_STEP:
        check_memory(model, recipe)
    console.print(
        f"batch_size is {size}: the largest multiple of {BATCH_STEP} that fits into the free memory (the default is "
        f"{recipe.batch_size}). To choose another: --set batch_size=N.",
        soft_wrap=True,
    )
    return replace(recipe, batch_size=size)


def check_memory(model: keras.Model, recipe: Recipe, *, begun: bool = False) -> None:
    """Refuse a batch that the machine's memory cannot hold; a run or search that has `begun` must keep its batch.

    Raises:
        RecipeError: names the batch that fits, for a start from the beginning. On a GPU, or where the free memory is
            unknown, nothing is refused.
    """
    free = None if on_gpu() else free_bytes()
    if free is None or recipe.batch_size <= (fits := _batch_that_fits(model, free)):
        return
    need = fixed_bytes(model) + recipe.batch_size * bytes_per_image(model)
    remedy = f"A batch of {fits} fits: --set batch_size={fits}."
    if fits < 1:
        remedy = "Choose a smaller backbone or size_px, or train less of it with --fine-tune top."
    if begun:
        remedy = f"Free some memory and give the same command again, or start anew in another --out. {remedy}"
    raise RecipeError(
        f"A training step with batch_size {recipe.batch_size} needs about {need / 1e9:.1f} GB; "
        f"{free / 1e9:.1f} GB are free.",
        remedy=remedy,
        code="memory_too_small",
    )


def _batch_that_fits(model: keras.Model, free: int) -> int:
    return max(0, (free - fixed_bytes(model)) // bytes_per_image(model))


def out_of_memory(recipe: Recipe) -> RecipeError:
    """Return the error for a step that ran out of the device's memory."""
    half = max(1, recipe.batch_size // 2)
    return RecipeError(
        f"The device ran out of memory with batch_size {recipe.batch_size} at {recipe.size_px} px.",
        remedy=f"{'On a GPU the batch is not chosen by memory. ' if on_gpu() else ''}Try --set batch_size={half}; with "
        "--overwrite the run continues from its caches.",
        code="memory_too_small",
    )


def bytes_per_image(model: keras.Model) -> int:
    """Return about what one image costs in a training step of the trainable part, in bytes."""
    inside = {id(norm) for norm in foldable_norms(model).values()}  # of their convolutions, in `make_step`
    elements = sum(_elements(layer) for layer in leaves(model) if id(layer) not in inside)
    return int(elements * BYTES_PER_ACTIVATION)


def fixed_bytes(model: keras.Model) -> int:
    """Return about what a training step costs whatever the batch, in bytes: mostly copies of the weights."""
    return WORKSPACE_BYTES + 4 * COPIES_OF_WEIGHTS * sum(int(np.prod(v.shape)) for v in model.weights)


def _elements(layer: keras.layers.Layer) -> int:
    shapes = [node.outputs[0].shape for node in layer._inbound_nodes[:1]]
    return sum(int(np.prod([n for n in shape[1:] if n])) for shape in shapes)


def free_bytes() -> int | None:
    """Return the memory that this process may still take, by system and control group; None where unknown."""
    known = [value for value in (_available(), _group_left()) if value is not None]
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
        cached = int(stat["active_file"]) + int(stat["inactive_file"])  # given back on demand
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()) + cached
    except (OSError, ValueError, KeyError):  # no such group, or "max"
        return None
