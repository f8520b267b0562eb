"""What an installation consists of: a CycloneDX SBOM and a list of licences for each extra.

    make sbom                        # core, serve, batch, train: what people install
    .venv/bin/python scripts/sbom.py serve

Read from the environment that this runs in, cut down to what requirements/EXTRA.txt pins. It ends with 1 where a
licence is unknown or not one that the project takes (CONTRIBUTING.md).
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "sbom"
USUAL = ("core", "serve", "batch", "train")
REFUSED = re.compile(r"\bA?GPL|General Public|Commons Clause|SSPL|BUSL|NonCommercial", re.IGNORECASE)
WEAK = re.compile(r"\bLGPL|Lesser|MPL|Mozilla|linking exception|GCC Runtime", re.IGNORECASE)


def pinned(extra: str) -> set[str]:
    """Return the packages of an extra for this Python, by canonical name."""
    lines = (ROOT / "requirements" / f"{extra}.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate()}


def licence(package: Distribution) -> str:
    """Return what a package says of its licence: expression, classifiers, or a short text; "" for nothing."""
    facts = package.metadata
    expression = facts.get("License-Expression")
    classified = [
        line.rpartition(" :: ")[2] for line in facts.get_all("Classifier") or [] if line.startswith("License")
    ]
    text = (facts.get("License") or "").strip()
    short = text if len(text) <= 60 and "\n" not in text and text.upper() != "UNKNOWN" else ""
    named = "; ".join(c for c in classified if c != "OSI Approved")
    return expression or named or short or _from_file(package)


def taken(said: str) -> bool:
    """Say whether the project takes a licence; an unknown one it does not."""
    return bool(said) and (not REFUSED.search(said) or bool(WEAK.search(said)))


def _from_file(package: Distribution) -> str:
    """Name a licence by its text, where a package brings nothing else."""
    for file in package.files or []:
        if re.match(r"(licen[cs]e|copying)", file.name, re.IGNORECASE):
            text = file.locate().read_text(encoding="utf-8", errors="replace")[:3000]
            for words, name in _TEXTS.items():
                if words in " ".join(text.split()):
                    return f"{name} (by its text)"
    return ""


_TEXTS = {
    "GNU AFFERO GENERAL PUBLIC LICENSE": "AGPL-3.0",
    "GNU GENERAL PUBLIC LICENSE": "GPL",
    "Apache License Version 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Permission is hereby granted, free of charge": "MIT",
    "Redistribution and use in source and binary forms": "BSD",
}


def environment() -> dict[str, Any]:
    """Return the SBOM of the whole environment."""
    command = [Path(sys.executable).with_name("cyclonedx-py"), "environment", "--pyproject", ROOT / "pyproject.toml"]
    done = subprocess.run(
        [*map(str, command), "--output-reproducible", "--of", "JSON", "-o", "-", sys.executable],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def cut_down(bom: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the SBOM with the named packages alone, and the project itself as its subject."""
    kept = [c for c in bom["components"] if canonicalize_name(c["name"]) in names]
    root = bom["metadata"]["component"]["bom-ref"]
    refs = {c["bom-ref"] for c in kept} | {root}
    edges = [
        {**d, **({"dependsOn": [r for r in d["dependsOn"] if r in refs]} if "dependsOn" in d else {})}
        for d in bom["dependencies"]
        if d["ref"] in refs
    ]
    return {**bom, "components": kept, "dependencies": edges}


def write(extra: str, bom: dict[str, Any], installed: dict[str, Distribution]) -> list[str]:
    """Write both files of an extra and return what is wrong."""
    names = pinned(extra)
    text = json.dumps(cut_down(bom, names), indent=1, ensure_ascii=False) + "\n"
    wrong = [f"{extra}: {name} is pinned and not installed" for name in sorted(names - installed.keys())]
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    wrong += [f"{extra}: the SBOM is not valid: {error}"] if error else []
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{extra}.cdx.json").write_text(text, encoding="utf-8")
    with (OUT / f"{extra}-licences.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["package", "version", "licence"])
        for name in sorted(names & installed.keys()):
            said = licence(installed[name])
            writer.writerow([name, installed[name].version, said or "unknown"])
            if not taken(said):
                wrong.append(f"{extra}: {name} {installed[name].version}: licence {said or 'unknown'}")
    print(f"{OUT.relative_to(ROOT)}/{extra}.cdx.json, {extra}-licences.csv: {len(names & installed.keys())} packages")
    return wrong


def main(extras: list[str]) -> int:
    bom = environment()
    installed = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    wrong = [line for extra in extras or USUAL for line in write(extra, bom, installed)]
    print("\n".join(wrong) or "Every licence is known and permissive.")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
