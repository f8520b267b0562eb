"""Peak memory of decoding one large image, by format; each in a process of its own (Linux).

    python benchmarks/decode_memory.py [--side-px 7000]

The image is a made one, lines on black: what it shows hardly changes what its decoder allocates.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dermlens.data.images import InputSpec, load_image

FORMATS: dict[str, dict[str, Any]] = {
    "baseline.jpg": {},
    "progressive.jpg": {"progressive": True, "subsampling": 0},
    "rgb.png": {},
    "deflate.tif": {"compression": "tiff_deflate"},
    "lossy.webp": {"quality": 80, "method": 0},
}


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MB; `ru_maxrss` would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def measure(path: Path) -> None:
    data = path.read_bytes()
    load_image(np.zeros((64, 64, 3), np.uint8), InputSpec(size_px=224))
    before = peak_mb()
    load_image(data, InputSpec(size_px=224))
    print(f"{path.name:16} {len(data) / 1e6:6.1f} MB file  {peak_mb() - before:6.0f} MB more while it is decoded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side-px", type=int, default=7000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    pixels = np.zeros((options.side_px, options.side_px, 3), np.uint8)
    pixels[::64], pixels[:, ::50] = 200, 90
    with tempfile.TemporaryDirectory() as folder:
        for name, how in FORMATS.items():
            Image.fromarray(pixels).save(Path(folder) / name, **how)
            subprocess.run([sys.executable, __file__, "--measure", str(Path(folder) / name)], check=True)


if __name__ == "__main__":
    main()
