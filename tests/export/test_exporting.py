"""`dermlens export`: every format answers as Keras does, knows what it is, and is not written when it does not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import openvino as ov
import pytest
import tensorflow as tf

import tiny
from dermlens import cli
from dermlens.bundle.bundle import BASELINES_FILE, LESIONS_FILE, find_bundle, load_bundle, write_bundle
from dermlens.bundle.card import make_card
from dermlens.bundle.probabilities import probabilities
from dermlens.cli import options
from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import DermlensError, UsageError, WeightsError
from dermlens.export import converters, readback
from dermlens.export import export as exporting
from dermlens.export.export import Exported, export
from dermlens.export.formats import FORMATS
from dermlens.export.readback import Answer, read_back
from dermlens.networks.openvino import to_openvino

SUFFIX = {"openvino": "m.xml", "onnx": "m.onnx", "litert": "m.tflite", "saved-model": "m"}


def network(seed: int) -> keras.Model:
    """A network as `train` saves it, with what has made trouble: Normalization leaves captured constants."""
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((tiny.SIZE_PX, tiny.SIZE_PX, 3), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(pixels)
    x = keras.layers.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.04, 0.05, 0.06], name="normalise")(x)
    x = keras.layers.Conv2D(6, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Activation("swish", name="swish")(x)
    embedding = keras.layers.GlobalAveragePooling2D(name="embedding")(x)
    return keras.Model(pixels, [keras.layers.Dense(3, name="logits")(embedding), embedding, x])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: the Keras model, and its bundle."""
    folder = tmp_path_factory.mktemp("run")
    model = network(0)
    model.save(folder / "model.keras")
    write_bundle(
        folder / "bundle",
        make_card(tiny.card()),
        head=model.get_layer("logits").get_weights(),
        seen={},
        write_graph=lambda path: ov.save_model(to_openvino(model), path, compress_to_fp16=False),
        arrays={BASELINES_FILE: tiny.baselines(), LESIONS_FILE: tiny.lesions()},
    )
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(5):
        pixels = cv2.resize(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8), (40, 40))
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    return [str(folder)]


@pytest.fixture(scope="module", params=FORMATS)
def made(
    request: pytest.FixtureRequest, run: Path, images: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Exported]:
    """Each format in turn, exported once."""
    name = str(request.param)
    missing = [module for module in FORMATS[name].modules if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"NOT RUN: {', '.join(missing)} not installed (extra {FORMATS[name].extra})")
    out = tmp_path_factory.mktemp("exports") / SUFFIX[name]
    return name, export(str(run), name, out, images=images)


@pytest.fixture(scope="module")
def honest(run: Path, images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """What OpenVINO truly answers for the run's graph on the images."""
    answers: list[Answer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "read_back", lambda *given: answers.append(read_back(*given)) or answers[-1])
        export(str(run), "openvino", tmp_path_factory.mktemp("honest") / "m.xml", images=images)
    return answers[0]


def facts_openvino(path: Path) -> dict[str, str]:
    return {name: str(text) for name, text in ov.Core().read_model(path).get_rt_info(["dermlens"]).value.items()}


def facts_onnx(path: Path) -> dict[str, str]:
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def facts_litert(path: Path) -> dict[str, str]:
    flat = path.read_bytes()
    start = flat.index(b'{"schema": "dermlens/export/1"')
    return dict(json.JSONDecoder().raw_decode(flat[start : start + 20_000].decode("utf-8", "ignore"))[0])


def facts_saved_model(path: Path) -> dict[str, str]:
    return dict(json.loads((path / "assets.extra" / "dermlens.json").read_text(encoding="utf-8")))


FACTS: dict[str, Callable[[Path], dict[str, str]]] = {
    "openvino": facts_openvino,
    "onnx": facts_onnx,
    "litert": facts_litert,
    "saved-model": facts_saved_model,
}


def test_every_format_agrees_with_keras_and_says_what_it_is(run: Path, made: tuple[str, Exported]) -> None:
    name, exported = made
    assert exported.agreement.reference == "Keras" and exported.agreement.worst < 1e-4
    assert exported.agreement.same_diagnosis == exported.agreement.images == 5
    assert exported.bytes > 1000 and FORMATS[name].runtime in exported.runtime
    told = FACTS[name](exported.path)
    assert [each["code"] for each in json.loads(told["classes"])] == list(tiny.CODES)
    size = tiny.SIZE_PX
    assert json.loads(told["input"])["shape"] == [1 if name == "litert" else "n", size, size, 3]
    assert json.loads(told["input"])["framing"] == "centre_crop"
    assert json.loads(told["calibration"])["temperature"] == 2.0
    assert told["disclaimer"] == DISCLAIMER
    assert told["bundle_sha256"] == load_bundle(find_bundle(str(run))).sha256
    assert [p.name for p in exported.path.parent.iterdir() if p.name.startswith(".")] == []


def test_the_facts_are_enough_to_get_the_probabilities(run: Path, honest: Answer) -> None:
    told = honest.facts
    assert told["probabilities"] == "softmax(logits / temperature + bias + log(case_mix) - log(training_prior))"
    fitted = json.loads(told["calibration"])
    logits = np.array([[1.0, -2.0, 0.5]])
    mix = list(json.loads(told["case_mix"])["shares"].values())
    shift = np.log(mix) - np.log(fitted["training_prior"])
    scores = logits / fitted["temperature"] + fitted["bias"] + shift
    by_hand = np.exp(scores) / np.exp(scores).sum()
    assert np.allclose(by_hand, probabilities(logits, load_bundle(run / "bundle").calibration, mix))


def test_as_many_images_as_it_says_go_through_at_once(made: tuple[str, Exported]) -> None:
    name, path = made[0], made[1].path
    count = FORMATS[name].batch or 7
    pixels = np.random.default_rng(1).integers(0, 256, (count, tiny.SIZE_PX, tiny.SIZE_PX, 3), dtype=np.uint8)
    expected = np.asarray(network(0)(pixels.astype(np.float32), training=False)[0])
    if name == "litert":
        from ai_edge_litert.interpreter import Interpreter

        found = Interpreter(str(path)).get_signature_runner()(pixels=pixels)["logits"]
    elif name == "saved-model":
        loaded = tf.saved_model.load(str(path))
        found = loaded.signatures["serving_default"](pixels=tf.constant(pixels))["logits"].numpy()
    elif name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        assert [each.name for each in session.get_inputs()] == ["pixels"], "stray inputs"
        assert [each.name for each in session.get_outputs()] == ["logits", "embedding", "feature_map"]
        found = session.run(["logits"], {"pixels": pixels})[0]
    else:
        found = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"pixels": pixels})["logits"]
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda answer: replace(answer, outputs=[1.01 * output for output in answer.outputs]), "export_disagrees"),
        (lambda answer: replace(answer, outputs=[np.nan * output for output in answer.outputs]), "export_disagrees"),
        (lambda answer: replace(answer, outputs=[out[:, :2] for out in answer.outputs]), "export_disagrees"),
        (lambda answer: replace(answer, facts={**answer.facts, "classes": "[]"}), "export_facts_lost"),
    ],
    ids=["values", "nan", "shape", "facts"],
)
def test_what_disagrees_is_not_written_and_what_stood_there_stays(
    run: Path,
    images: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    honest: Answer,
    spoil: Callable[[Answer], Answer],
    code: str,
) -> None:
    monkeypatch.setattr(exporting, "read_back", lambda *arguments: spoil(honest))
    (tmp_path / "m.xml").write_text("an earlier export")
    with pytest.raises(WeightsError) as caught:
        export(str(run), "openvino", tmp_path / "m.xml", images=images, overwrite=True)
    assert caught.value.code == code
    assert [p.name for p in tmp_path.iterdir()] == ["m.xml"]
    assert (tmp_path / "m.xml").read_text() == "an earlier export"


def test_a_file_that_its_runtime_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net>")
    with pytest.raises(WeightsError, match="openvino cannot use") as caught:
        read_back("openvino", tmp_path / "m.xml", np.zeros((1, 8, 8, 3), np.uint8))
    assert caught.value.code == "export_unusable"


def test_a_runtime_that_never_answers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readback, "TIMEOUT_S", 0.01)
    with pytest.raises(WeightsError, match=r"no answer within 0\.01 seconds"):
        read_back("openvino", tmp_path / "m.xml", np.zeros((1, 8, 8, 3), np.uint8))


def test_a_network_that_cannot_be_converted_is_told(
    run: Path, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no such layer\nand much more")

    monkeypatch.setattr(converters, "_write_saved_model", fails)
    with pytest.raises(WeightsError, match="could not be converted to saved-model: no such layer") as caught:
        export(str(run), "saved-model", tmp_path / "m", images=images)
    assert caught.value.code == "export_failed" and list(tmp_path.iterdir()) == []


def test_a_keras_model_of_another_training_is_refused(run: Path, images: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "bundle").symlink_to(run / "bundle")
    network(1).save(other / "model.keras")
    with pytest.raises(WeightsError) as caught:
        export(str(other), "saved-model", tmp_path / "m", images=images)
    assert caught.value.code == "keras_mismatch" and not (tmp_path / "m").exists()


def test_a_bundle_without_keras_gives_its_graph_and_says_what_the_others_need(
    images: list[str], tmp_path: Path
) -> None:
    bundle = str(tiny.write(tmp_path / "bundle"))
    made = export(bundle, "openvino", tmp_path / "m.xml", images=images)
    assert made.agreement.reference == "the bundle's graph" and made.agreement.worst == 0
    with pytest.raises(WeightsError, match="make train-default") as caught:
        export("default", "onnx", tmp_path / "m.onnx", images=images)
    assert caught.value.code == "keras_missing"


def test_the_embedded_model_is_exported_without_tensorflow(tmp_path: Path) -> None:
    program = (
        "import sys; from dermlens.export.export import export; "
        f"made = export('default', 'openvino', __import__('pathlib').Path({str(tmp_path / 'm.xml')!r})); "
        "print(made.agreement.same_diagnosis, made.agreement.images, {'tensorflow', 'keras'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    same, count, loaded = done.stdout.split(maxsplit=2)
    assert same == count != "0" and loaded.strip() == "set()"


def test_nothing_is_overwritten_unasked_and_a_wrong_name_is_told(run: Path, images: list[str], tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_text("weights of something else")
    with pytest.raises(UsageError, match=r"m\.bin exists already"):
        export(str(run), "openvino", tmp_path / "m.xml", images=images)
    with pytest.raises(UsageError, match=r"does not end in \.xml"):
        export(str(run), "openvino", tmp_path / "m.onnx", images=images)
    export(str(run), "openvino", tmp_path / "m.xml", images=images, overwrite=True)
    assert (tmp_path / "m.bin").stat().st_size > 500


@pytest.mark.parametrize("name", ["openvino", "saved-model"])
def test_overwrite_replaces_no_folder_but_an_earlier_export(run: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / SUFFIX[name]
    other.mkdir()
    (other / "model.keras").write_text("hours of training")
    (other / "saved_model.pb").write_text("made into the run folder")
    with pytest.raises(UsageError, match="no earlier export"):
        export(str(run), name, other, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [other.name]
    assert (other / "model.keras").read_text() == "hours of training"


def test_an_earlier_saved_model_is_replaced_whole(run: Path, images: list[str], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for name in ("saved_model.pb", "of_the_earlier_one"):
        (tmp_path / "m" / name).write_text("earlier")
    export(str(run), "saved-model", tmp_path / "m", images=images[:1], overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "saved_model.pb").stat().st_size > 1000
    assert not (tmp_path / "m" / "of_the_earlier_one").exists()


@pytest.mark.parametrize("out", [".", "/", ".."])
@pytest.mark.parametrize("name", ["openvino", "saved-model"])
def test_an_out_without_a_name_is_told(run: Path, name: str, out: str) -> None:
    with pytest.raises(UsageError, match="names no file"):
        export(str(run), name, Path(out), overwrite=True)


def test_a_missing_extra_gives_the_line_that_installs_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {"tf2onnx", "onnxruntime"}
    found = importlib.util.find_spec
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    assert call("export", str(run), "--format", "onnx") == 2
    told = capsys.readouterr().err
    assert "tf2onnx, onnxruntime" in told and '-m pip install -e ".[export]"' in told


def test_the_verb_prints_sizes_and_differences(
    run: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "m.xml"
    call("export", str(run), "--format", "openvino", "--out", str(out), "--images", images[0])
    told = capsys.readouterr().out
    assert str(out) in told and " MB" in told and "largest difference to Keras" in told and DISCLAIMER in told


def call(*arguments: str) -> Any:
    """Run the command line in this process and return its exit code."""
    try:
        return cli.main(list(arguments))
    except SystemExit as stop:
        return stop.code


def test_an_image_that_cannot_be_read_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DermlensError, match=r"bad\.png"):
        export(str(run), "openvino", tmp_path / "m.xml", images=[str(tmp_path / "bad.png")])
