"""Make the embedded model: its data, its training, its trust facts. Run it in the root of the repository.

    python -m scripts.default_model train --data DATA [--out RUN] [--recipe TOML] [--install] [--overwrite]
    python -m scripts.default_model fit-facts MODEL --data DATA
    python -m scripts.default_model lookalikes --data DATA
    python -m scripts.default_model describe --data DATA [--without ORIGIN]

DATA has `ham10000/`, `isic9/` and `isic_reference.csv`. `--install` copies the bundle to `src/dermlens/models/default`.
`lookalikes` searches all collections for pictures of one lesion and writes `lookalikes.csv`; `describe` counts the
pictures of each stage.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dermlens.bundle.bundle import MODELS_DIR, find_bundle, load_bundle
from dermlens.data.manifest import isic_ids_of_lesions
from dermlens.errors import DermlensError
from dermlens.files import atomic_folder
from dermlens.networks.backend import load_tensorflow
from dermlens.training.recipe import make_recipe, read_recipe


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    load_tensorflow()
    try:
        COMMANDS[options.command](options, console)
    except DermlensError as error:
        console.print(f"Error: {error}", style="red", highlight=False)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m scripts.default_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the embedded model")
    train.add_argument("--data", type=Path, required=True, help="folder with both data sets and the reference")
    train.add_argument("--out", type=Path, default=Path("runs/default"), help="run folder to write")
    train.add_argument("--recipe", type=Path, help="TOML file with settings that replace those of the recipe")
    train.add_argument("--install", action="store_true", help="copy the bundle to src/dermlens/models/default")
    train.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    facts = commands.add_parser("fit-facts", help="fit the trust facts of a finished model again")
    facts.add_argument("model", help="an embedded name, a run folder or a bundle folder")
    facts.add_argument("--data", type=Path, required=True, help="folder with both data sets and the reference")
    looks = commands.add_parser("lookalikes", help="search for pictures of one lesion across the collections")
    looks.add_argument("--data", type=Path, required=True, help="folder with all collections and the reference")
    describe = commands.add_parser("describe", help="count the pictures of each stage")
    describe.add_argument("--data", type=Path, required=True, help="folder with all collections and the reference")
    describe.add_argument("--without", metavar="ORIGIN", help="leave an archive out, such as MSK")
    return whole


def train_model(options: argparse.Namespace, console: Console) -> None:
    from dermlens.training.run import train
    from scripts.default_model.dataset import default_dataset, source_alone
    from scripts.default_model.recipe import ABOUT, RECIPE

    recipe = make_recipe(read_recipe(options.recipe), base=RECIPE) if options.recipe else RECIPE
    dataset = default_dataset(options.data, console)
    bundle = train(
        dataset,
        options.out,
        recipe,
        replace(ABOUT, extra={"source_alone": source_alone(dataset.records)}),
        overwrite=options.overwrite,
        console=console,
        isic_ids_of_lesion=isic_ids_of_lesions(options.data / "isic_reference.csv"),
    )
    if options.install:
        with atomic_folder(MODELS_DIR / "default") as staging:
            load_bundle(bundle).copy_to(staging)
        console.print(f"Installed in {MODELS_DIR / 'default'}.", highlight=False)
    else:
        console.print("To embed it in the package, run the same command with --install.", highlight=False)


def fit_facts_again(options: argparse.Namespace, console: Console) -> None:
    from scripts.default_model.dataset import default_dataset
    from scripts.default_model.facts import refit_facts

    folder = find_bundle(options.model)
    refit_facts(folder, default_dataset(options.data, console), console)
    console.print(f"The facts of {folder} are fitted again.", highlight=False)


def find_lookalikes(options: argparse.Namespace, console: Console) -> None:
    from dermlens.audit.embed import Embedder
    from dermlens.networks.embedder import VERSION, embedder_graph
    from scripts.default_model.joined import LOOKALIKES, read_pictures, search, write_pairs

    records, facts, _ = read_pictures(options.data, console)
    pairs = search(records, facts, Embedder(embedder_graph(console), VERSION), console)
    write_pairs(pairs)
    console.print(f"{len(pairs)} pairs are in {LOOKALIKES}.", highlight=False)


def describe_data(options: argparse.Namespace, console: Console) -> None:
    from scripts.default_model.joined import read_joined
    from scripts.default_model.stages import describe, left_out, stage_1, stage_2, unfamiliar

    joined, without = read_joined(options.data, console), options.without
    parts = [stage_1(joined, without=without), stage_2(joined, without=without), unfamiliar(joined)]
    for dataset in [*parts, left_out(joined, without)] if without else parts:
        roles = Counter(r.split or "no role" for r in dataset.records)
        console.print(f"{dataset.layout}: {len(dataset.records)} pictures; {dict(roles)}", highlight=False)
        for name, counts in describe(dataset.records).items():
            console.print(f"  {name}: {counts}", highlight=False, soft_wrap=True)
    for note in parts[1].notes:
        console.print(note, highlight=False, soft_wrap=True)


COMMANDS = {
    "train": train_model,
    "fit-facts": fit_facts_again,
    "lookalikes": find_lookalikes,
    "describe": describe_data,
}


if __name__ == "__main__":
    raise SystemExit(main())
