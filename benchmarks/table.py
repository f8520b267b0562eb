"""Write docs/speed.md from what the speed suite has measured.

python benchmarks/table.py [--write docs/speed.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measure import RESULTS

START, END = "<!-- measured: start -->", "<!-- measured: end -->"
ORDER = (
    "network",
    "one_image",
    "cold_predict",
    "many_images",
    "quick",
    "pass_size",
    "family_speed",
    "training_speed",
    "training_ways",
    "step_profile",
    "depthwise",
)


def figure(ratio: dict[str, float], digits: int = 2) -> str:
    return f"{ratio['median']:.{digits}f} [{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"


def machine(found: dict[str, Any]) -> str:
    """Say on what it was measured: processor, system, packages."""
    facts = found["machine"]
    packages = ", ".join(f"{key} {value}" for key, value in facts["packages"].items())
    return f"{facts['processor']}, {facts['threads']} threads; {facts['system']}; {packages}."


def section(found: dict[str, Any], *, elsewhere: bool) -> list[str]:
    """Return the lines of one benchmark; `elsewhere`: it ran on another machine than the first."""
    lines = [f"### `benchmarks/{found['name']}.py`", ""]
    if elsewhere:
        lines += [f"On another machine: {machine(found)}", ""]
    if found["name"] == "family_speed":
        return [*lines, *_family(found["details"], found["ratios"]), ""]
    if found["ratios"]:
        lines += ["| ratio | measured | goal |", "|---|---|---|"]
        for name, ratio in found["ratios"].items():
            lines.append(f"| {name} | {figure(ratio)} | {ratio.get('goal', '')} |")
        lines.append("")
    lines += _details(found["details"])
    return lines


def _family(rows: dict[str, Any], ratios: dict[str, Any]) -> list[str]:
    lines = [
        "Float32; in brackets the 10th and 90th percentile. `benchmarks/results/speed/family_speed.json` has the rest.",
        "",
        "| network | px | one image, ms | tf.function / ours | model.predict / ours "
        "| images/s, 4 at once | graph, MB | peak memory, MB | difference to Keras |",
        "|---" * 9 + "|",
    ]
    for name, row in rows.items():
        keras = [figure(ratios[f"{name}, one image, {way} / dermlens"], 1) for way in ("tf.function", "model.predict")]
        cells = [
            name,
            str(row["size_px"]),
            figure(row["f32, one image, ms"], 1),
            *keras,
            figure(row["f32, batch, images/s"], 1),
            f"{row['graph, MB']:.1f}",
            f"{row['peak memory of one prediction, MB']:.0f}",
            f"{row['difference to Keras']:.1e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _details(details: dict[str, Any]) -> list[str]:
    rows: list[str] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and "median" not in value:
            for key, inner in value.items():
                walk(f"{prefix}, {key}" if prefix else key, inner)
        elif isinstance(value, dict):
            rows.append(f"| {prefix} | {figure(value, 1)} |")
        else:
            rows.append(f"| {prefix} | {value:.4g} |" if isinstance(value, float) else f"| {prefix} | {value} |")

    walk("", details)
    return ["<details><summary>All figures</summary>", "", "| | |", "|---|---|", *rows, "", "</details>", ""]


def page() -> str:
    lines: list[str] = []
    first = ""
    for name in ORDER:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if not lines:
                first = machine(found)
                lines += [first, ""]
            lines += section(found, elsewhere=machine(found) != first)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, default=Path("docs/speed.md"))
    options = parser.parse_args()
    text = options.write.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    options.write.write_text(f"{before}{START}\n{page()}\n{END}{after}", encoding="utf-8")
    print(f"Written: {options.write}")


if __name__ == "__main__":
    main()
