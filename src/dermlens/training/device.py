"""What the machine offers and what follows from it: mode, precision, threads and devices."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import keras
import tensorflow as tf
from rich.console import Console

from dermlens.errors import RecipeError
from dermlens.networks.family import Backbone, block_cuts
from dermlens.training.recipe import Recipe

CUT_DEPTH = 7 / 16  # share of the blocks below the cut: for lite0 the second block at 14 x 14
CLEARLY_FASTER = 1.1


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
    """Fix the threads, switch deterministic operations on where wanted, and seed everything.

    Where TensorFlow has already computed something in this process its threads stay, and deterministic operations
    stay on once they are.
    """
    threads = recipe.threads or _processors()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        if tf.config.threading.get_intra_op_parallelism_threads() not in (0, threads):
            console.print(
                f"TensorFlow is running already; its threads stay, {threads} were asked for.", highlight=False
            )
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
