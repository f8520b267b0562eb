"""Bundles on the Hugging Face hub: the folder to push, with its model card, and what `hf://owner/name` means.

The network part is `huggingface_hub`, the ordinary client, behind the extra `hub` and imported here alone. What the
client has already, whole, is taken without asking the network.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from dermlens.bundle.bundle import CARD, FILES, MODEL_CARD, NEIGHBOURS_FILE, TRUST_FILE, Bundle, load_bundle
from dermlens.bundle.card import Metrics
from dermlens.errors import BundleError, MissingExtraError, UsageError, os_errors
from dermlens.text import Figure

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,96}))?")
_FILES = [CARD, MODEL_CARD, TRUST_FILE, NEIGHBOURS_FILE, *sorted(FILES)]
_LICENCES = (
    ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
    ("CC BY-NC 4.0", "cc-by-nc-4.0"),
    ("CC BY-SA 4.0", "cc-by-sa-4.0"),
    ("CC BY 4.0", "cc-by-4.0"),
    ("CC0", "cc0-1.0"),
    ("Apache-2.0", "apache-2.0"),
    ("MIT", "mit"),
)


def fetch(address: str) -> Path:
    """Return a folder with the files of `hf://owner/name[@revision]`, from the client's cache or the network.

    Raises:
        UsageError: no such form of address. MissingExtraError: the client is not installed. BundleError: the hub has
        no such model, or cannot be reached.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(
            f"{address!r} is no model on a hub. Allowed is hf://owner/name or hf://owner/name@revision.",
            remedy="For example: dermlens models add hf://owner/name",
            code="hub_address",
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "hf:// needs huggingface_hub, which the light core does not install.",
            remedy='In the clone of dermlens run `python -m pip install -e ".[hub]"`.',
        ) from error
    wanted: dict[str, Any] = {"repo_id": match[1], "revision": match[2], "allow_patterns": _FILES}
    try:
        with suppress(LocalEntryNotFoundError, BundleError):
            found = Path(snapshot_download(**wanted, local_files_only=True))
            load_bundle(found)  # a fetch that was cut off leaves a snapshot with files missing
            return found
        return Path(snapshot_download(**wanted))
    except Exception as error:  # the client raises its own errors, those of HTTP and of the system
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(
            f"{address} could not be fetched: {said}",
            remedy="Check the name and the connection; for a private model log in with `hf auth login`.",
            code="hub_unreachable",
        ) from error


def write_repository(bundle: Bundle, folder: Path) -> None:
    """Write a folder as the hub wants it: the bundle's files, and README.md with front matter.

    Raises:
        UsageError: the folder is not empty. StorageError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder.", remedy="Name a new folder.", code="not_empty")
    with os_errors(f"The repository could not be written to {folder}", "Choose another folder, or free some space."):
        folder.mkdir(parents=True, exist_ok=True)
        bundle.copy_to(folder)
        (folder / "README.md").write_text(readme(bundle), encoding="utf-8")


def readme(bundle: Bundle) -> str:
    """Return the hub's model card: front matter from the bundle's facts, then its own card and how to use it."""
    use = (
        "## How to use it\n\n```sh\ndermlens models add hf://OWNER/NAME --sha256 "
        f"{bundle.sha256}\ndermlens predict photo.jpg --model {bundle.name}\n```\n\n"
        "The SHA-256 is that of `bundle.json`, which holds those of all other files.\n"
    )
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front_matter(bundle).items())
    return f"---\n{front}---\n\n{bundle.model_card()}\n{use}"


def front_matter(bundle: Bundle) -> dict[str, Any]:
    """Return what the hub reads of a model card."""
    weights = bundle.card.licence.weights
    code = next((code for words, code in _LICENCES if weights.startswith(words)), "other")
    named: dict[str, Any] = {"license_name": weights} if code == "other" else {}
    figures = [
        {"type": kind, "value": figure["value"], "name": words} for kind, words, figure in _figures(bundle.card.metrics)
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": "held-out", "name": "test images of unseen lesions"},
        "metrics": figures,
    }
    return {
        "license": code,
        **named,
        "library_name": "dermlens",
        "pipeline_tag": "image-classification",
        "tags": ["dermatology", "skin-lesion", "efficientnet", "openvino", *(["leaky"] if bundle.leaky else [])],
        **({"model-index": [{"name": bundle.name, "results": [result]}]} if figures and not bundle.leaky else {}),
    }


def _figures(metrics: Metrics) -> list[tuple[str, str, Figure]]:
    found = []
    for kind in ("balanced_accuracy", "accuracy", "macro_auc"):
        figure: Figure = getattr(metrics, kind)
        words = kind.replace("_", " ")
        if figure["low"] is not None and figure["high"] is not None:
            words += f" [{figure['low']:.3f}, {figure['high']:.3f}], 95 % interval over lesions"
        if figure["value"] is not None:
            found.append((kind, words, figure))
    return found
