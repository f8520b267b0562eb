"""The figures of the embedded model in the documents: measured anew by one command, and written from what was measured.

    DERMLENS_DATA=/path/to/data python benchmarks/embedded_page.py --run --extra FRESH    # after a new model
    python benchmarks/embedded_page.py                                        # only the pages, from benchmarks/results

`--extra DIR` is for novelty.py: pictures of people, faces and animals that chose nothing (its first lines say which). A
test holds the pages to `benchmarks/results` and to the embedded bundle, so figures of an older model cannot stay in
them. What README says of the model is written by `scripts/results.py --write`, from the same files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from folds import markdown  # beside this file

from dermlens.text import figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
BUNDLE = ROOT / "src" / "dermlens" / "models" / "default" / "bundle.json"
RUNS = {
    "novelty": ["--seed", "0"],
    "crossfit": ["--folds", "5", "--repeats", "4", "--seed", "0"],
    "biases": ["--model", "default"],
    "subgroups": ["--seed", "0", "--page", str(DOCS / "trust.md")],
    "controls": ["--images", "600", "--seed", "0"],
    "explanations": ["--images", "40", "--seed", "0"],
    "views": [],
}
RIVALS = {"ViM": "ViM (Wang 2022)", "10th neighbour": "10th neighbour (Sun 2022)"} | {
    "Mahalanobis": "Mahalanobis (Lee 2018)",
    "relative": "relative Mahalanobis (Ren 2021)",
    "energy": "energy (Liu 2020)",
}


def status(bundle: Mapping[str, Any]) -> list[str]:
    """Say what stands behind each status on the test role."""
    measured = bundle["trust"]["measured"]
    parts = [
        f"`{name}` {row['share']:.1%} of them, accuracy {row['accuracy']:.3f}"
        for name, row in measured["status"].items()
        if name in ("ok", "uncertain", "rejected")
    ]
    images = bundle["metrics"]["n"]
    return [f"On the {images} test images: accuracy {measured['accuracy']:.3f} on all; {'; '.join(parts)}."]


def novelty(found: Mapping[str, Any]) -> list[str]:
    """Show what is strange by kind, with the other scores beside ours, and what other thresholds do."""
    ours, rejected = found["methods"]["ours"], found["rejected_in_all"]
    rows = [
        [
            kind,
            ours[kind]["n"],
            f"{ours[kind]['auroc']:.3f}",
            f"{ours[kind]['accepted']:.0%}",
            f"{share:.0%}",
            *(f"{found['methods'][name][kind]['auroc']:.3f}" for name in RIVALS.values()),
        ]
        for kind, share in rejected.items()
    ]
    lines = markdown(
        ["kind", "n", "AUROC", "accepted by novelty", "rejected in all", *(f"AUROC of {name}" for name in RIVALS)], rows
    )
    everyday = " and ".join(f"the {ours[kind]['n']} {kind}" for kind in rejected if kind.startswith("everyday"))
    lines += ["", f'What another threshold would do ("everyday accepted" takes {everyday} pictures):', ""]
    header = ["calibration lesions kept", "threshold", "test lesions kept", "accuracy on them", "everyday accepted"]
    lines += markdown(
        header,
        [
            [
                f"{r['kept_in_calibration']:.1%}",
                f"{r['threshold']:.2f}",
                f"{r['known_lesions_kept']:.1%}",
                f"{r['accuracy_on_kept']:.3f}",
                f"{r['everyday_accepted']:.1%}",
            ]
            for r in found["by_threshold"]
        ],
    )
    forgotten = found["held_out_diagnosis"]
    accepted = [r["accepted"] for r in forgotten.values()]
    return [
        *lines,
        "",
        "One diagnosis at a time forgotten by the statistics (the network itself had learned from it): AUROC "
        + ", ".join(f"{code} {r['auroc']:.2f}" for code, r in forgotten.items())
        + ".",
        f"Of a forgotten diagnosis {min(accepted):.0%} to {max(accepted):.0%} are accepted: this is no way to notice "
        "an unknown disease.",
    ]


def crossfit(found: Mapping[str, Any]) -> list[str]:
    """Tell coverage and calibration over all lesions that taught the network nothing."""
    every = found["all"]
    lines = [
        f"{found['images']} images of {every['lesions']} lesions that taught the network nothing, {found['folds']} "
        f"folds by lesion, {found['repeats']} repeats, seed {found['seed']}; fitted on all folds but one,",
        f"measured on that one. Coverage {figure({'value': every['coverage'], **every})} (aim {found['level']}), "
        f"{every['mean_size']:.2f} diagnoses on average. Calibrated and not:",
        f"calibration error with each lesion counted once {found['ece_after_each_lesion_once']:.3f} and "
        f"{found['ece_before_each_lesion_once']:.3f}, with each image counted once {found['ece_after']:.3f} and "
        f"{found['ece_before']:.3f};",
        f"log loss {found['log_loss_after']:.4f} and {found['log_loss_before']:.4f}.",
        "",
    ]
    return lines + markdown(
        ["class", "lesions", "coverage", "mean size"],
        [
            [code, r["lesions"], figure({"value": r["coverage"], **r}), f"{r['mean_size']:.2f}"]
            for code, r in found["per_class"].items()
        ],
    )


def biases(found: Mapping[str, Any]) -> list[str]:
    """Tell what a bias for each class gains, and what it would cost the decision."""
    import biases as beside  # in this folder

    choice = found["choice"]
    used = "so they are used" if choice["kept"] else "so they are not used"
    return [
        f"The embedded model's biases lower the log loss by {choice['gain']:.4f} at a standard error of "
        f"{choice['standard_error']:.4f}, {used}.",
        "",
        *beside.lines(found),
    ]


def referral(bundle: Mapping[str, Any]) -> list[str]:
    """Show every operating point on the test role."""
    return markdown(
        ["operating point", "classes", "threshold", "sensitivity", "specificity", "net benefit"],
        [
            [
                point["name"],
                " ".join(point["codes"]),
                f"{point['threshold']:.3f}",
                *(figure(point[key]) for key in ("sensitivity", "specificity", "net_benefit")),
            ]
            for point in bundle["trust"]["operating_points"]
        ],
    )


def controls(found: Mapping[str, Any]) -> list[str]:
    """Show how often artefacts change the diagnosis, and what is read without the lesion."""
    lines = [f"{found['images']} images of {found['lesions']} test lesions drawn with seed 0, each against itself.", ""]
    lines += markdown(
        ["artefact", "diagnoses that change", "change of P(melanoma)", "change of accuracy"],
        [
            [name, *(figure(r[key]) for key in ("flip_rate", "watched_change", "accuracy_change"))]
            for name, r in found["artefacts"].items()
        ],
    )
    plain, erased, border = (found["without_lesion"][key] for key in ("as it is", "lesion erased", "border only"))
    return [
        *lines,
        "",
        f"Balanced accuracy {figure(plain['balanced_accuracy'])} on these images as they are; "
        f"{figure(erased['balanced_accuracy'])} with the lesion hidden and",
        f"{figure(border['balanced_accuracy'])} with the border alone, where chance is {plain['chance']:.3f}.",
    ]


def explanations(found: Mapping[str, Any]) -> list[str]:
    """Tell whether the heat map points at what matters."""
    return [
        f"{found['images']} test images. Blurring away what the map names first, minus a random order: mean "
        f"probability of the diagnosis {figure(found['delete_map_minus_random'])};",
        f"minus the order from the middle outwards {figure(found['delete_map_minus_middle'])}. Lower is better. "
        "Bringing it back into a blurred picture:",
        f"{figure(found['insert_map_minus_random'])} and {figure(found['insert_map_minus_middle'])}; higher is better. "
        "With a randomised last layer the map is another one",
        f"(correlation {figure(found['correlation_with_randomised_head'])}). A lesion pasted into one quarter of "
        "another picture is where the map points in",
        f"{figure(found['pasted_lesion_pointed_at'], 2)} of the cases (chance "
        f"{found['pasted_lesion_pointed_at']['chance']}).",
    ]


def baselines(bundle: Mapping[str, Any]) -> list[str]:
    """Set the embedded model beside the linear probe and the most common class, on its test role."""
    found, keys = bundle["baselines"], ("balanced_accuracy", "accuracy")
    names = {"model": "embedded model", "linear_probe": "linear probe", "majority": "always " + found["majority_class"]}
    rows = [(what, found["methods"][name]) for name, what in names.items()]
    rows += [(f"model minus {names[name]}", gain) for name, gain in found["model_minus"].items()]
    images = f"The embedded model {bundle['version']} on its {bundle['metrics']['n']:,} test images"
    return [
        f"{images} ({found['lesions']:,} lesions), from its bundle:",
        "",
        *markdown(
            ["", "balanced accuracy", "accuracy"], [[what, *(figure(r[key]) for key in keys)] for what, r in rows]
        ),
    ]


def views(found: Mapping[str, Any]) -> list[str]:
    """Show what test-time views gain."""
    rows = [
        [
            count,
            figure(r["metrics"]["balanced_accuracy"]),
            "" if count == "1" else figure(r["minus_plain"]),
            figure(r["metrics"]["accuracy"]),
            figure(r["metrics"]["per_class"]["MEL"]["auc"]),
            f"{r['ece']:.3f}",
        ]
        for count, r in found["views"].items()
    ]
    header = ["views", "balanced accuracy", "minus plain, in pairs", "accuracy", "melanoma AUC", "ECE"]
    return markdown(header, rows)


BLOCKS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "status": ("trust.md", "", status),
    "novelty": ("trust.md", "novelty", novelty),
    "crossfit": ("trust.md", "crossfit", crossfit),
    "biases": ("trust.md", "biases", biases),
    "referral": ("trust.md", "", referral),
    "controls": ("trust.md", "controls", controls),
    "explanations": ("trust.md", "explanations", explanations),
    "baselines": ("accuracy.md", "", baselines),
    "views": ("accuracy.md", "views", views),
}


def marks(name: str) -> tuple[str, str]:
    return f"<!-- benchmarks/embedded_page.py {name}: start -->", f"<!-- benchmarks/embedded_page.py {name}: end -->"


def measured(source: str) -> dict[str, Any]:
    """Return what a benchmark found, or the embedded bundle's own card where no benchmark is named."""
    path = RESULTS / f"{source}.json" if source else BUNDLE
    return dict(json.loads(path.read_text(encoding="utf-8")))


def written(page: str, text: str) -> str:
    """Return a page of the documents with all its blocks written anew.

    Raises:
        SystemExit: the page has no place for a block.
    """
    for name, (where, source, lines) in BLOCKS.items():
        if where != page:
            continue
        start, end = marks(name)
        if text.count(start) != 1 or text.count(end) != 1:
            raise SystemExit(f"{page} needs the lines {start} and {end}, once each.")
        before, rest = text.split(start)
        block = "\n".join([start, *lines(measured(source)), end])
        text = before + block + rest.split(end)[1]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure anew first")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="measure these alone")
    parser.add_argument("--extra", type=Path, help="for novelty.py: a folder of pictures that chose nothing")
    options = parser.parse_args()
    if options.run and "novelty" in options.only and not options.extra:
        raise SystemExit("novelty needs --extra: README tells of pictures that had no part in choosing the score.")
    for name in options.only if options.run else ():
        extra = ["--extra", str(options.extra)] if name == "novelty" and options.extra else []
        script = str(Path(__file__).with_name(f"{name}.py"))
        subprocess.run([sys.executable, script, *RUNS[name], *extra, "--out", str(RESULTS)], check=True)
    for page in sorted({where for where, _, _ in BLOCKS.values()}):
        (DOCS / page).write_text(written(page, (DOCS / page).read_text(encoding="utf-8")), encoding="utf-8")
        print(f"Written: docs/{page}")


if __name__ == "__main__":
    main()
