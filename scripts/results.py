"""Print the README's results; `--write` puts them into README.md.

They come from the embedded model's bundle.json, measured by `make train-default`, and from `benchmarks/results`, which
`benchmarks/embedded_page.py` and `benchmarks/accuracy.py` write. Nothing here is typed by hand.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks" / "results"
TRAINED = {"top": "its upper blocks trained", "full": "trained end to end"}
BEGIN_THREE, BEGIN, END = (
    "<!-- three results: scripts/results.py -->",
    "<!-- results: scripts/results.py -->",
    "<!-- end of results -->",
)


def figure(value: dict[str, Any]) -> str:
    if value["value"] is None or value["low"] is None:
        return "n/a"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def card_of_default() -> dict[str, Any]:
    return dict(json.loads((ROOT / "src/dermlens/models/default/bundle.json").read_text(encoding="utf-8")))


def three() -> str:
    """Return the three figures of the README's first screen, as Markdown."""
    card = card_of_default()
    metrics, melanoma = card["metrics"], card["metrics"]["per_class"]["MEL"]
    lines = [
        f"- balanced accuracy **{figure(metrics['balanced_accuracy'])}** over the eight lesions; a linear probe on "
        f"frozen ImageNet features {figure(card['probe']['balanced_accuracy'])}",
        f"- melanoma against the rest: AUC **{figure(melanoma['auc'])}**",
    ]
    point = referral(card)
    if point:
        lines.append(
            f"- where it advises a specialist: sensitivity **{figure(point['sensitivity'])}**, specificity "
            f"{figure(point['specificity'])}"
        )
    else:
        lines.append(f"- expected calibration error **{figure(metrics['ece'])}**")
    lines.append(
        f"\n{metrics['n']} test images of {metrics['n_lesions']} lesions that had no part in its training, "
        "selection or calibration; 95 % intervals over lesions. [All results](#results)."
    )
    return "\n".join(lines)


def referral(card: dict[str, Any]) -> dict[str, Any] | None:
    """Return the operating point that `predict` follows, where the bundle has one."""
    facts = card.get("trust") or {}
    return next((p for p in facts.get("operating_points", ()) if p["name"] == facts["referral"]), None)


def results() -> str:
    """Return the Markdown of the README's results."""
    card = card_of_default()
    metrics, probe = card["metrics"], card["probe"]
    melanoma = metrics["per_class"]["MEL"]
    rows = [
        ("balanced accuracy", figure(metrics["balanced_accuracy"]), figure(probe["balanced_accuracy"])),
        ("accuracy", figure(metrics["accuracy"]), figure(probe["accuracy"])),
        ("AUC, mean of the classes", figure(metrics["macro_auc"]), figure(probe["macro_auc"])),
        ("melanoma AUC", figure(melanoma["auc"]), ""),
        ("melanoma sensitivity at 90 % specificity", figure(melanoma["sensitivity_at_90_specificity"]), ""),
        ("expected calibration error", figure(metrics["ece"]), ""),
    ]
    lines = [
        f"Embedded model {card['version']} ({card['backbone']['title']}, {card['input']['size_px']} px, "
        f"{TRAINED[card['recipe']['fine_tune']]} in {card['training']['minutes']:.0f} minutes on two cores), on "
        f"{metrics['n']} test images of {metrics['n_lesions']} lesions",
        "that had no part in training, selection or calibration (HAM10000 and repaired ISIC-9, split by lesion, seed "
        f"{card['recipe']['seed']});",
        "95 % intervals from a bootstrap over lesions. Two settings of the recipe were chosen, with other networks, on",
        "most of these ([docs/accuracy.md](docs/accuracy.md#what-was-tried-to-make-the-embedded-model-better)):",
        "",
        "| | this model | linear probe on frozen ImageNet features |",
        "|---|---|---|",
        *(f"| {name} | {ours} | {theirs} |" for name, ours, theirs in rows),
        "",
        "Difference in balanced accuracy to the probe, in pairs: "
        f"{figure(probe['model_minus_probe_balanced_accuracy'])}. The rare classes have few test lesions,",
        "so their intervals are wide: "
        + ", ".join(
            f"{code} {row['n_lesions']} lesions, sensitivity {figure(row['sensitivity'])}"
            for code, row in metrics["per_class"].items()
            if row["n_lesions"] < 30
        )
        + ".",
        *trust(card),
        "The whole card: `src/dermlens/models/default/MODEL_CARD.md`. `make train-default DERMLENS_DATA=...` "
        "trains it again.",
        "",
        *views(json.loads((MEASURED / "views.json").read_text(encoding="utf-8"))["views"]),
        "",
        *novelty(json.loads((MEASURED / "novelty.json").read_text(encoding="utf-8"))),
        *protocol(MEASURED / "accuracy.json"),
    ]
    return "\n".join(lines)


def views(found: dict[str, Any]) -> list[str]:
    """Return what eight test-time views gain, as lines of Markdown."""
    eight = found["8"]
    return [
        "With eight test-time views (`predict --views 8`, `evaluate --views 8`: turns and mirror images of each image, "
        "eight passes) balanced accuracy",
        f"on the same images is {figure(eight['metrics']['balanced_accuracy'])}, in pairs "
        f"{figure(eight['minus_plain'])} against one view; melanoma AUC "
        f"{figure(eight['metrics']['per_class']['MEL']['auc'])},",
        f"expected calibration error {eight['ece']:.3f} (`benchmarks/views.py`). Over the folds of the protocol they "
        "gained more for networks of which only the upper blocks were trained ([docs/accuracy.md](docs/accuracy.md)).",
    ]


def novelty(found: dict[str, Any]) -> list[str]:
    """Return how everyday photographs are told from lesions, as lines of Markdown."""
    ours = found["methods"]["ours"]
    fresh = ours.get("everyday, fresh")
    if fresh is None:
        raise SystemExit("novelty.json lacks the fresh pictures: run benchmarks/embedded_page.py --run with --extra.")
    return [
        "Everyday photographs, faces and animals among them, are told from lesions with an AUROC of "
        f"{fresh['auroc']:.3f} ({fresh['n']} pictures that chose nothing);",
        f"with a threshold that keeps {ours['known lesions']['kept']:.1%} of the test lesions "
        f"{fresh['accepted']:.1%} of those pass. What this rests on, ink and hair, prediction",
        "sets by class, and what is not known: [docs/trust.md](docs/trust.md).",
    ]


def trust(card: dict[str, Any]) -> list[str]:
    """Return what the bundle says of knowing its limits, as lines of Markdown."""
    facts = card.get("trust")
    if (
        not facts
        or not facts["measured"]
        or facts["measured"]["role"] != "test"
        or facts["measured"]["prediction_sets"] is None
    ):
        return []
    measured, status = facts["measured"], facts["measured"]["status"]
    sets = measured["prediction_sets"]
    point = referral(card)
    lines = [
        "",
        f"On the same images it answers without reserve (status `ok`) in {status['ok']['share']:.1%}, with an "
        f"accuracy of {status['ok']['accuracy']:.3f}",
        f"against {measured['accuracy']:.3f} on all; it rejects {status['rejected']['share']:.1%}. Its prediction "
        "sets hold the true diagnosis of",
        f"{figure(sets['coverage'])} of the lesions (aim {facts['prediction_sets']['level']:.2f}) with "
        f"{sets['mean_size']:.2f} diagnoses on average.",
    ]
    if point:
        lines.append(
            f"Where it advises a specialist: sensitivity {figure(point['sensitivity'])}, specificity "
            f"{figure(point['specificity'])} for {', '.join(point['codes'])}."
        )
    return [*lines, ""]


def protocol(path: Path) -> list[str]:
    """Return the table of the accuracy protocol as lines of Markdown; none where the file is not there."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if not found:
        return []
    sys.path.append(str(ROOT / "benchmarks"))
    tables = importlib.import_module("accuracy_table")
    sys.path.remove(str(ROOT / "benchmarks"))
    methods = {name: row for name, row in found.items() if "minutes" in row}
    lesions = max(row["metrics"]["n_lesions"] for row in found.values())
    return [
        "",
        f"The accuracy protocol, five folds by lesion: {', '.join(f'`{name}`' for name in methods)} and what is",
        f"simplest, on the lesions of the folds named ({lesions} altogether), one image each. Every lesion is",
        "tested once, by a network that has met neither it nor a copy of it. Pooled predictions, 95 % intervals",
        "over lesions; SD is that between folds; `embedded` is the embedded model's recipe;",
        "minutes and memory are those of one fold (`benchmarks/accuracy.py`, [docs/accuracy.md](docs/accuracy.md)):",
        "",
        *tables.table(found),
        "",
        *tables.recalls(found),
        *tables.comparisons(found),
    ]


PARTS = {BEGIN_THREE: three, BEGIN: results}


def in_readme(begin: str) -> str:
    """Return what stands behind a marker in README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition(begin)[2].partition(END)[0].strip("\n")


def main() -> None:
    path = ROOT / "README.md"
    for begin, make in PARTS.items():
        if "--write" not in sys.argv[1:]:
            print(make(), end="\n\n")
            continue
        before, _, rest = path.read_text(encoding="utf-8").partition(begin)
        path.write_text(f"{before}{begin}\n{make()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
