"""The verbs as a person uses them: exit codes, one line for a mistake, JSON for every input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

import pictures
import tiny
from dermlens import cli
from dermlens.cli import options
from dermlens.cli.audit import failing_kinds
from dermlens.data.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import UsageError
from dermlens.files import CACHE_MAX_BYTES, Cache
from dermlens.reporting.proven import read_proven
from dermlens.training.recipe import Recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("model") / "b"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for code in tiny.CODES:
        cv2.imwrite(str(folder / f"{code}.png"), tiny.colour(code)[:, :, ::-1])
    return folder


def call(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


def test_predict_prints_a_table_and_the_warning_once(
    model: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", str(images), "--model", model) == 0
    out = capsys.readouterr().out
    assert out.count(DISCLAIMER) == 1 and "Reads plain colours." in out
    for code in tiny.CODES:
        assert f"{code}.png" in out and f"█░  {code.lower()} " in out
    assert "– Not assessed" in out and out.count("No advice on referral") == 1


def test_json_gives_one_object_for_every_input_in_order(
    model: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "C.jpg").write_text("not an image")
    (images / "empty.png").write_bytes(b"")
    missing = str(images / "missing.png")
    assert call("predict", str(images), missing, "--model", model, "--json") == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    names = [f"{images}/{n}" for n in ("BLUE.png", "C.jpg", "GREEN.png", "RED.png", "empty.png")] + [missing]
    assert [row["image"] for row in rows] == names
    codes = [None if row["error"] is None else row["error"]["code"] for row in rows]
    assert codes == [None, "unsupported_format", None, None, "empty_file", "not_found"]
    assert DISCLAIMER not in captured.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "{empty}"], "No images found"),
        (["predict", "x.png", "--model", "nothing"], "No model 'nothing'"),
        (["train", "{missing}", "--out", "{out}"], "missing"),
        (["train", "{empty}", "--out", "{out}"], "image"),
        (["train", "{images}", "--out", "{out}", "--backbone", "b99"], "b99"),
        (["train", "{images}", "--out", "{out}", "--set", "epoch=3"], "epochs"),
        (["train", "{images}", "--out", "{out}", "--seed", "-1"], "seed is -1"),
        (["train", "{images}", "--out", "{out}", "--set", "cut_block=40"], "40"),
        (["train", "{images}", "--out", "{out}", "--resume"], "no run"),
        (["train", "{images}", "--out", "{out}", "--resume", "--seed", "1"], "no run"),
        (["train", "{images}", "--out", "{out}", "--fine-tune", "full", "--unfreeze", "5"], "--fine-tune top"),
        (["evaluate", "{model}", "{missing}", "--out", "{out}"], "missing"),
    ],
)
def test_a_mistake_is_one_line_with_exit_2(
    arguments: list[str], words: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for code in tiny.CODES:
        (tmp_path / "images" / code).mkdir(parents=True)
        for index in range(6):
            cv2.imwrite(str(tmp_path / "images" / code / f"{index}.png"), tiny.colour(code, (40, 40 + index)))
    names = {name: str(tmp_path / name) for name in ("empty", "missing", "out", "images")} | {"model": model}
    assert call(*(argument.format(**names) for argument in arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and words in errors[0]


def test_a_run_folder_is_not_overwritten_by_default(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write(tmp_path / "run" / "bundle")
    assert call("train", str(images), "--out", str(tmp_path / "run")) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_another_case_mix_changes_the_probabilities_and_is_said(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clinic.csv").write_text("code,share\nRED,1\nGREEN,1\nBLUE,98\n")
    seen = []
    for given in ("equal", "training", str(tmp_path / "clinic.csv")):
        assert call("predict", str(images / "RED.png"), "--model", model, "--case-mix", given, "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        seen.append((answer["case_mix"]["name"], answer["probabilities"]["BLUE"]))
    assert [name for name, _ in seen] == ["equal", "training", "clinic.csv"] and len({p for _, p in seen}) == 3
    assert call("predict", str(images), "--model", model, "--case-mix", str(tmp_path / "clinic.csv")) == 0
    assert "as common as in clinic.csv" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "verb",
    [
        ["predict", "{in}"],
        ["batch", "{in}", "--out", "{in}/o"],
        ["serve"],
        ["evaluate", "{model}", "{in}", "--out", "o"],
    ],
)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RED,1\nGREEN,1\n", "has no share for BLUE"),
        ("RED,1\nGREEN,1\nBLUE,0\n", "no number above 0: BLUE 0.0"),
        ("RED,1\nGREEN,1\nBLUE,1\nPINK,1\n", "has 'PINK', which is no class"),
        (None, "There is no case mix"),
    ],
)
def test_a_bad_case_mix_is_one_clear_line(
    verb: list[str], text: str | None, words: str, model: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = images.parent / "mix.csv"
    if text is not None:
        mix.write_text(text)
    names = {"in": str(images), "model": model}
    given = [word.format(**names) for word in verb] + ([] if verb[0] == "evaluate" else ["--model", model])
    assert call(*given, "--case-mix", str(mix)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and words in errors[0] and "Allowed are equal, training" in errors[0]


def test_proven_diagnoses_stand_beside_the_answers_and_not_in_the_json(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("image,diagnosis\nRED.png,RED\nBLUE.png,GREEN\n")
    proven, page = ("--proven", str(tmp_path / "p.csv")), tmp_path / "a.html"
    assert call("predict", str(images), "--model", model, *proven, "--html", str(page)) == 0
    out = capsys.readouterr().out
    assert "✓ red" in out and "✗ green" in out and "1 of 2 first diagnoses are right" in out
    assert page.read_text("utf-8").count("Proven: ") == 2
    lines = []
    for more in ((), proven):
        assert call("predict", str(images), "--model", model, "--json", *more) == 0
        lines.append([json.loads(line) | {"elapsed_ms": 0} for line in capsys.readouterr().out.splitlines()])
    assert lines[0] == lines[1]
    assert call("predict", str(images), "--model", model, "--proven", str(tmp_path / "gone.csv")) == 2
    assert "is no file" in capsys.readouterr().err


def test_the_demo_has_a_proven_diagnosis_for_every_example() -> None:
    root = Path(__file__).resolve().parents[1]
    (line,) = [line for line in (root / "Makefile").read_text("utf-8").splitlines() if "--proven" in line]
    codes = read_proven(root / line.split("--proven ")[1].split()[0]).codes
    assert {path.name for path in (root / "examples" / "images").glob("*.jpg")} == set(codes)
    assert all(name.startswith(f"{code}_") for name, code in codes.items())


def test_html_is_written_beside_the_terminal_answer(model: str, images: Path, tmp_path: Path) -> None:
    assert call("predict", str(images), "--model", model, "--html", str(tmp_path / "a.html")) == 0
    assert (tmp_path / "a.html").read_text("utf-8").count("<article") == 3


def test_a_file_name_that_is_no_text_is_answered_like_any_other(model: str, images: Path, tmp_path: Path) -> None:
    odd = os.fsencode(images) + b"/\xff.png"
    with open(odd, "wb") as file:
        file.write((images / "RED.png").read_bytes())
    page = str(tmp_path / "a.html")
    for arguments in (["--json"], ["--html", page]):
        command = [sys.executable, "-m", "dermlens", "predict", str(images), "--model", model, *arguments]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        if arguments == ["--json"]:
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            assert [row["image"] for row in rows][-1] == os.fsdecode(odd)


def test_limits_can_be_raised(model: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(images / "RED.png")
    assert call("predict", path, "--model", model, "--max-pixels", "1000") == 1
    assert call("predict", path, "--model", model, "--max-pixels", "1600") == 0


def test_the_limits_on_the_command_line_are_those_of_the_pixel_path() -> None:
    assert (options.DEFAULT_MAX_BYTES, options.DEFAULT_MAX_PIXELS) == (DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS)


def test_models_and_doctor_answer_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "--json") == 0
    (facts,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert facts["name"] == "default" and len(facts["classes"]) == 8 and facts["size_mb"] <= 20
    assert call("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["status"] == "ok"


@pytest.mark.parametrize("verb", ["", "audit", "train", "evaluate", "calibrate", "predict", "models", "doctor"])
def test_every_verb_has_help_and_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*([verb] if verb else []), "--help") == 0
    out = capsys.readouterr().out
    assert "Usage" in out and (not verb or "Example" in out)


def test_wrong_use_of_an_option_is_exit_2() -> None:
    assert call("predict", "--top", "0", "x.png") == 2
    assert call("fly") == 2


def test_a_closed_pipe_is_no_traceback(model: str, images: Path) -> None:
    many = " ".join([str(images)] * 400)  # more than a pipe holds
    command = f"{sys.executable} -m dermlens predict {many} --model {model} --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr and done.stdout.count("\n") == 1


def test_audit_finds_fails_and_repairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out, manifest = pictures.spoiled_set(tmp_path / "set"), tmp_path / "out", tmp_path / "fixed.csv"
    assert call("audit", str(data), "--out", str(out)) == 0
    captured = capsys.readouterr()
    assert "has two diagnoses" in captured.out and "Report:" in captured.err
    assert (out / "audit.html").is_file()
    arguments = ["audit", str(data), "--json", "--fail-on", "contradicting_labels"]
    assert call(*arguments, "--repair", "--manifest", str(manifest)) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"] == json.loads((out / "audit.json").read_text("utf-8"))["counts"]
    assert printed["counts"]["label_suspects"] is not None
    arguments = ["audit", str(manifest), "--images", str(data), "--no-embedding"]
    assert call(*arguments, "--fail-on", "contradicting_labels") == 0
    assert "are marked as not included in fixed.csv (2 contradictory, " in capsys.readouterr().err


def test_kinds_to_fail_on() -> None:
    assert failing_kinds(["blurred"]) == {"blurred"}
    assert len(failing_kinds(["any"])) == 23
    with pytest.raises(UsageError, match="any, unreadable, contradicting_labels"):
        failing_kinds(["c"])


def test_audit_against_a_folder_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures.spoiled_set(tmp_path / "set")
    pictures.save(tmp_path / "pictures" / "a.png", pictures.lesion(1))
    arguments = ["--against", str(tmp_path / "pictures"), "--no-embedding", "--json"]
    assert call("audit", str(data), *arguments) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["against"]["same_picture"] == 1


def test_the_cache_says_what_it_holds_and_is_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DERMLENS_CACHE", str(folder))
    assert call("cache") == 0 and "0.0 MB used" in capsys.readouterr().out and not folder.exists()
    Cache("numbers-1").save({"a": bytes(1000), "b": bytes(500)})
    (folder / "embedder" / "lite0").mkdir(parents=True)
    (folder / "embedder" / "lite0" / "graph.bin").write_bytes(bytes(2000))
    assert call("cache", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == str(folder) and facts["bytes"] == 3500 and facts["max_bytes"] == CACHE_MAX_BYTES
    assert facts["parts"]["numbers-1"] == {"entries": 2, "bytes": 1500} and facts["parts"]["embedder"]["bytes"] == 2000
    assert call("cache", "--clear") == 0 and f"Cleared: {folder}" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_an_audit_without_the_network_says_so_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    monkeypatch.setattr("dermlens.networks.embedder.embedder_graph", missing)
    data = pictures.spoiled_set(tmp_path / "set")
    assert call("audit", str(data), "--json") == 0
    captured = capsys.readouterr()
    assert "tensorflow is missing" in captured.err and captured.err.count("label errors") == 1
    assert json.loads(captured.out)["counts"]["label_suspects"] is None


def test_audit_refuses_what_makes_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures.spoiled_set(tmp_path / "set")
    manifest = tmp_path / "m.csv"
    for words, arguments in (
        ("--repair and --manifest", ["--repair"]),
        ("--repair and --manifest", ["--manifest", str(manifest)]),
        ("no kind of finding", ["--fail-on", "nothing"]),
        ("does not exist", ["--reference", str(tmp_path / "gone.csv")]),
        ("does not exist", ["--against", str(tmp_path / "gone")]),
    ):
        assert call("audit", str(data), *arguments) == 2
        assert words in capsys.readouterr().err
    manifest.write_text("image,diagnosis\nTrain/NV/0.png,NV\n")
    assert call("audit", str(manifest), "--images", str(data), "--repair", "--manifest", str(manifest)) == 2
    assert "is the data set itself" in capsys.readouterr().err


def test_resume_takes_settings_that_are_the_runs_and_names_those_that_are_not(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    Recipe(seed=3).save(run / "recipe.json")
    assert call("train", str(images), "--out", str(run), "--resume", "--seed", "1", "--set", "epochs=10") == 2
    told = capsys.readouterr().err
    assert "seed is 3, got 1" in told and "epochs" not in told
    assert call("train", str(images), "--out", str(run), "--resume", "--seed", "1", "--case-mix", "training") == 2
    assert "case_mix" not in capsys.readouterr().err, "a run resumes with another one"


@pytest.mark.parametrize(("flags", "named"), [([], True), (["--no-neighbours"], False), (["--resume"], False)])
def test_a_model_names_no_training_image_where_that_is_asked_and_resume_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], named: bool
) -> None:
    for code in tiny.CODES:
        (tmp_path / "in" / code).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "in" / code / "a.png"), tiny.colour(code)[:, :, ::-1])
    out = tmp_path / "run"
    out.mkdir()
    Recipe().save(out / "recipe.json")
    (out / "state.json").write_text('{"neighbours": false}')
    asked: list[bool] = []
    monkeypatch.setattr("dermlens.training.run.train", lambda *args, **options: asked.append(args[3].neighbours))
    assert call("train", str(tmp_path / "in"), "--out", str(out), *flags) == 0
    assert asked == [named]
