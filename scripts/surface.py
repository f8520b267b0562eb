"""What users can rely on, as JSON: public names, verbs and options, API routes and schemas, keys of an answer.

    .venv/bin/python scripts/surface.py > after.json
    .venv/bin/python scripts/surface.py --against before.json

To take it of another checkout, run it there or put its src first on PYTHONPATH. Two surfaces are compared line by line.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any


def options() -> dict[str, list[str]]:
    """Return each verb with its arguments and options, as `dermlens VERB --help` has them."""
    from typer.main import get_command

    from dermlens.cli.app import app

    found = {}

    def visit(command: Any, name: str) -> None:
        found[name] = sorted("/".join([*p.opts, *p.secondary_opts]) for p in command.params)
        for verb, inner in getattr(command, "commands", {}).items():
            visit(inner, f"{name} {verb}")

    visit(get_command(app), "dermlens")
    return found


def names() -> dict[str, list[str]]:
    """Return the public names of the package, each with the parameters of its public methods."""
    import dermlens

    found: dict[str, list[str]] = {}
    for name in dermlens.__all__:
        thing = getattr(dermlens, name)
        members = inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else []
        public = [(key, method) for key, method in members if not key.startswith("_") or key == "__init__"]
        found[name] = [f"{key}({', '.join(inspect.signature(method).parameters)})" for key, method in public]
    return found


def routes() -> dict[str, list[str]]:
    """Return the paths of /openapi.json with their methods, parameters and answers, and the fields of each schema."""
    from fastapi.testclient import TestClient

    from dermlens import Predictor
    from dermlens.serving.app import create_app
    from dermlens.serving.settings import Settings

    with TestClient(create_app(Predictor("default"), Settings()), base_url="http://127.0.0.1") as client:
        described = client.get("/openapi.json").json()
    found = {}
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            given = [p["name"] for p in about.get("parameters", [])]
            found[f"{method.upper()} {path}"] = [*sorted(given), *sorted(about.get("responses", {}))]
    for name, schema in described["components"]["schemas"].items():
        found[f"schema {name}"] = sorted(schema.get("properties", {}))
    return found


def answer() -> dict[str, list[str]]:
    """Return the keys of an answer and of the recipe."""
    from dermlens import Predictor
    from dermlens.training.recipe import Recipe

    image = min((Path(__file__).resolve().parent.parent / "examples" / "images").glob("*.jpg"))
    answer = Predictor("default").predict(image).as_dict()
    return {"dermlens/prediction": sorted(answer), "recipe": sorted(field.name for field in fields(Recipe))}


def surface() -> dict[str, Any]:
    """Return the whole surface."""
    return {"names": names(), "options": options(), "routes": routes(), "answer": answer()}


def lines_of(found: dict[str, Any]) -> set[str]:
    """Return a surface as one line for each thing that a user can rely on."""
    return {f"{area}: {key}: {item}" for area, keys in found.items() for key, items in keys.items() for item in items}


if __name__ == "__main__":
    if "--against" in sys.argv:
        before = lines_of(json.loads(Path(sys.argv[sys.argv.index("--against") + 1]).read_text(encoding="utf-8")))
        after = lines_of(surface())
        print(
            "\n".join(
                [*(f"- {line}" for line in sorted(before - after)), *(f"+ {line}" for line in sorted(after - before))]
            )
        )
    else:
        print(json.dumps(surface(), indent=1, sort_keys=True))
