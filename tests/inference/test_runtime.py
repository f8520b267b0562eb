"""The runtime: the same answers for any number of images, alone or side by side."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tiny
from dermlens import Predictor
from dermlens.inference.runtime import MOST_IN_A_PASS, Outputs, Runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "b")


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Runtime:
    return Runtime(folder / "graph.xml", threads=2)


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, tiny.SIZE_PX, tiny.SIZE_PX, 3), dtype=np.uint8)


def assert_same(found: Outputs, wanted: Outputs) -> None:
    for name in ("logits", "embedding", "feature_map"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-4, err_msg=name)


def one_by_one(runtime: Runtime, images: np.ndarray) -> Outputs:
    alone = [runtime.run(image[None]) for image in images]
    return Outputs(*(np.concatenate([getattr(a, n) for a in alone]) for n in ("logits", "embedding", "feature_map")))


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 13, 37])
def test_any_number_of_images_gives_what_each_gives_alone(runtime: Runtime, n: int) -> None:
    assert_same(runtime.run(pixels(n)), one_by_one(runtime, pixels(n)))


def test_more_callers_than_lanes_do_not_mix_their_images(runtime: Runtime) -> None:
    parts = [pixels(1 + n % MOST_IN_A_PASS) + np.uint8(n) for n in range(60)]
    with ThreadPoolExecutor(2 * runtime.lanes + 1) as pool:
        for part, found in zip(parts, pool.map(runtime.run_beside, parts), strict=True):
            assert_same(found, one_by_one(runtime, part))


def test_lanes_are_made_when_there_is_work_for_all_of_them(folder: Path) -> None:
    predictor = Predictor(folder, threads=2)
    runtime = predictor._runtime
    few = [tiny.colour("RED")] * runtime.worthwhile
    assert len(list(predictor.predict_many(few))) == len(few) and runtime._free is None
    assert len(list(predictor.predict_many([*few, tiny.colour("RED")]))) == len(few) + 1 and runtime._free is not None


def test_an_abandoned_stream_leaves_every_lane_free(folder: Path) -> None:
    predictor = Predictor(folder, threads=2)
    stream = predictor.predict_many([tiny.colour("BLUE")] * 200)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert predictor._runtime._free is not None
    assert predictor._runtime._free.qsize() == predictor._runtime.lanes


FIRST_PASSES = """
import sys, threading
from pathlib import Path
import numpy as np
from dermlens.inference.runtime import Runtime
runtime = Runtime(Path(sys.argv[1]), threads=2)
runtime._free_lanes()
side, ready = int(sys.argv[2]), threading.Barrier(4)
def first():
    ready.wait()
    runtime.run_beside(np.zeros((runtime.images_a_pass, side, side, 3), np.uint8))
threads = [threading.Thread(target=first) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


TYPES = """
import openvino
asked, made = [], openvino.Type.to_dtype
openvino.Type.to_dtype = lambda kind: asked.append(kind) or made(kind)
import dermlens.inference.runtime
raise SystemExit(0 if asked else 1)
"""


def test_the_first_passes_of_a_process_do_not_wait_for_each_other_for_ever(folder: Path) -> None:
    """Without the line in `runtime.py` that asks for NumPy's types, up to half of such processes hung."""
    assert subprocess.run([sys.executable, "-c", TYPES], timeout=120, check=False).returncode == 0
    command = [sys.executable, "-c", FIRST_PASSES, str(folder / "graph.xml"), str(tiny.SIZE_PX)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_large_network_takes_fewer_images_a_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermlens.inference.runtime.FULL_PASS_PX", tiny.SIZE_PX // 2)
    large = Runtime(folder / "graph.xml", threads=1)
    assert large.images_a_pass == 1
    assert_same(large.run(pixels(3)), one_by_one(large, pixels(3)))
