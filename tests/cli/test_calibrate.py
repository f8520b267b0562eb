"""`dermlens calibrate`, as a person runs it: from labelled lesions to a model that can be added and used."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from dermlens.bundle.bundle import load_bundle
from dermlens.cli import main

COLOURS = {"NV": "BLUE", "BKL": "GREEN", "MEL": "RED"}


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> str:
    known = tiny.known(), tiny.known(seed=1)
    return str(
        tiny.write(tmp_path / "run" / "bundle", calibrate=known[0], test=known[1], **tiny.named(*COLOURS)).parent
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for code, colour in COLOURS.items():
        (tmp_path / "clinic" / code).mkdir(parents=True)
        for i in range(40):
            shown = colour if i % 5 else "GREEN"
            pixels = np.clip(tiny.colour(shown) * rng.uniform(0.5, 1) + rng.normal(0, 25, (40, 40, 3)), 0, 255)
            cv2.imwrite(str(tmp_path / "clinic" / code / f"{i}.png"), pixels.astype(np.uint8)[:, :, ::-1])
    return tmp_path / "clinic"


def test_a_clinic_gets_its_own_model(
    model: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DERMLENS_MODELS", str(tmp_path / "models"))
    out = str(tmp_path / "new")
    wishes = ("--sensitivity", "0.9", "--held-out", "0.3", "--case-mix", "training", "--name", "ours", "--seed", "5")
    assert run("calibrate", model, str(data), "--out", out, *wishes) == 0
    told = capsys.readouterr().err
    for words in ("as it came", "fitted here", "balanced accuracy", "status rejected", "not a diagnosis", out):
        assert words in told
    bundle = load_bundle(out)
    site = bundle.card.site
    assert site is not None and (site.held_out, site.seed, bundle.case_mix.name) == (0.3, 5, "training")
    assert bundle.card.trust.sensitivity == 0.9 and site.lesions["MEL"] == (28, 12)
    assert run("models", "add", out) == 0
    assert "fitted to clinic: 84 lesions" in capsys.readouterr().out
    assert run("models", "--json") == 0
    listed = {facts["name"]: facts for facts in map(json.loads, capsys.readouterr().out.splitlines())}
    assert listed["ours"]["version"] == "0.0.1+site" and listed["ours"]["site"]["lesions_held_out"] == 36
    assert listed["default"]["site"] is None
    assert run("calibrate", model, str(data), "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    (data / "NV" / "broken.png").write_bytes(b"no picture")
    assert run("calibrate", model, str(data), "--out", out, "--overwrite") == 1, "an image could not be read"
    assert "1 unreadable (NV/broken.png)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sensitivity", "0.3"], "--sensitivity is 0.3. Allowed are 0.5 to 0.999."),
        (["--held-out", "1"], "--held-out is 1. Allowed are 0.1 to 0.9."),
        (["--case-mix", "trainig"], "Did you mean 'training'?"),
        (["--held-out", "0.6"], "16 malignant or premalignant lesions (MEL 16)"),
    ],
)
def test_a_mistake_is_one_line_with_exit_2(
    words: list[str], said: str, model: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("calibrate", model, str(data), "--out", str(tmp_path / "new"), *words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and said in errors[0] and not (tmp_path / "new").exists()
