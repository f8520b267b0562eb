"""What the processor can do for a network, and how much of it this process may use."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

CPUINFO, CGROUP = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max")
_INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f", "avx512bw", "avx512vl"},
    "AVX-512 VNNI": {"avx512_vnni"},
    "AVX-512 BF16": {"avx512_bf16"},
    "AMX BF16": {"amx_tile", "amx_bf16"},
    "AMX INT8": {"amx_tile", "amx_int8"},
    "NEON": {"asimd"},
    "SVE": {"sve"},
    "BF16 (Arm)": {"bf16"},
}
"""Names that people know -> the flags of /proc/cpuinfo that all must be there."""


def instructions() -> list[str] | None:
    """Return the instruction sets that matter for networks; None where the system does not tell."""
    flags = _flags()
    return None if flags is None else [name for name, needed in _INSTRUCTIONS.items() if needed <= flags]


def _flags() -> set[str] | None:
    if sys.platform == "darwin":
        return _mac_flags()
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(values.split())
    return None


def _mac_flags() -> set[str] | None:
    if platform.machine() == "arm64":
        return {"asimd"}
    command = ["sysctl", "-n", "machdep.cpu.leaf7_features"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return set(said.lower().split())


def threads() -> dict[str, Any]:
    """Return the processors of the machine, those that this process may run on, and a container's share of them."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processors": os.cpu_count(), "allowed": own, "container_share": _container_share()}


def _container_share() -> float | None:
    """Return the processors that a container's quota amounts to; None without a quota."""
    try:
        quota, period = CGROUP.read_text(encoding="ascii").split()
        return None if quota == "max" else round(int(quota) / int(period), 2)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def advice(found: list[str] | None, processors: dict[str, Any]) -> list[str]:
    """Return what follows from the facts, a sentence each; none where all is as it should be."""
    said = []
    if found is None:
        said.append("This system does not tell which instructions the processor has.")
    elif not {"AVX2", "AVX-512", "NEON"} & set(found):
        said.append("The processor has neither AVX2 nor NEON: networks run several times slower.")
    share, allowed = processors["container_share"], processors["allowed"] or 1
    if share is not None and share < allowed:
        said.append(
            f"The container may use {share:g} of {allowed} processors: give Predictor a number of threads near it, or "
            "its threads wait for each other."
        )
    return said
