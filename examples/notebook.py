# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # dermlens in a notebook
#
# Check the data, train, read the report, predict, see the evidence, and export the model.
#
# **For research and decision support only; not a diagnosis.**
#
# `make notebook` writes `examples/dermlens.ipynb` from `examples/notebook.py`: change that file, not the notebook.

# %%
# On Colab, or wherever dermlens is not installed: set SOURCE to the address of your copy of the repository
# ("git+https://...") or to the path of a wheel (from Drive: `from google.colab import drive;
# drive.mount("/content/drive")`). Then upload the example images, or your own, into a folder `images`.
# A GPU (Runtime > Change runtime type) makes `fine_tune="full"` fast; nothing below needs one.
import importlib.util
import os
import subprocess
import sys

SOURCE = os.environ.get("DERMLENS_SOURCE", "")
if importlib.util.find_spec("dermlens") is None:
    if not SOURCE:
        raise SystemExit("dermlens is not installed: set SOURCE above and run this cell again.")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", f"dermlens[train,export] @ {SOURCE}"], check=True
    )

# %%
import csv
import random
import tempfile
from pathlib import Path

from rich.console import Console

from dermlens import Answers, Predictor

IMAGES = next((path for path in (Path("images"), Path("examples/images")) if path.is_dir()), None)
if IMAGES is None:
    raise SystemExit("Start the notebook in the clone or in its folder `examples`, or upload a folder `images`.")
WORK = Path(os.environ.get("DERMLENS_WORK") or tempfile.mkdtemp(prefix="dermlens-"))
console = Console(file=sys.stdout, width=110, force_jupyter=False)

# %% [markdown]
# ## Use the included model
#
# It reads dermoscopic images of eight lesions. Show a `Predictor` to see what it reads and how good it is.

# %%
predictor = Predictor("default")
predictor

# %%
paths = sorted(IMAGES.glob("*.jpg"))
answers = Answers(predictor.predict_many(paths))
answers

# %% [markdown]
# The answers as a pandas frame, with the same columns as `dermlens batch`:

# %%
frame = answers.to_frame()
frame[["image", "status", "diagnosis_code", "probability", "malignant_probability"]]

# %% [markdown]
# One image with its heat map. It shows which parts of the image are evidence for the class in this network. It does not
# show the disease.

# %%
predictor.explain(paths[4])

# %% [markdown]
# ## Your own data
#
# You need one folder per diagnosis, or a table with `image` and `diagnosis`. Here, the ten example images are sorted
# into "see a doctor" and "harmless". **Ten images only show how it works: the scores below mean nothing.**
#
# If the environment variable `DERMLENS_DATA` names a folder with `ham10000/`, 700 of its images are used instead: a
# small but real training of a few minutes.

# %%
DATA = os.environ.get("DERMLENS_DATA")
TABLE = WORK / "labels.csv"


def example_rows():
    urgent = ("MEL", "BCC", "SCC", "AK")
    return [[p.name, "see a doctor" if p.name.split("_")[0] in urgent else "harmless", ""] for p in paths]


def ham_rows(folder: Path, per_class: int = 100):
    by_class: dict[str, list[list[str]]] = {}
    with (folder / "HAM10000_metadata.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if (folder / "images_224" / f"{row['image_id']}.jpg").is_file():
                name = f"images_224/{row['image_id']}.jpg"
                by_class.setdefault(row["dx"], []).append([name, row["dx"], row["lesion_id"]])
    return [row for rows in by_class.values() for row in random.Random(0).sample(rows, min(per_class, len(rows)))]


ROOT = Path(DATA, "ham10000") if DATA else IMAGES
with TABLE.open("w", newline="") as file:
    csv.writer(file).writerows([["image", "diagnosis", "lesion_id"], *(ham_rows(ROOT) if DATA else example_rows())])

from dermlens.data.manifest import read_dataset

dataset = read_dataset(TABLE, images=ROOT)
len(dataset.records)

# %% [markdown]
# ### Audit the data before you train
#
# The command `dermlens audit` also compares the images with a network, and so finds cropped copies and likely label
# errors.

# %%
from dermlens.audit.run import run_audit

audit = run_audit(dataset, console=console)
audit

# %%
audit.to_frame()[["kind", "severity", "evidence", "remedy"]]

# %% [markdown]
# ### Train
#
# All settings are in one recipe. The ten images train the last layer only, the 700 images the upper blocks.

# %%
from dermlens.networks.backend import load_tensorflow

load_tensorflow()
from dermlens.training.recipe import Recipe
from dermlens.training.run import About, train

if DATA:
    recipe = Recipe(fine_tune="top", size_px=160, views=2, epochs=4)
else:
    recipe = Recipe(fine_tune="head", size_px=96, head_epochs=10, train=0.4, select=0.2, calibrate=0.2, test=0.2)
RUN = WORK / "run"
train(dataset, RUN, recipe, About(name="notebook"), overwrite=True, console=console)

# %% [markdown]
# A plot returns Matplotlib axes, so you can change it.

# %%
from dermlens.reporting.plots import plot_history, read_history

loss, score, recall = plot_history(read_history(RUN / "history.csv"))
_ = score.set_title("Balanced accuracy on select, epoch by epoch")

# %% [markdown]
# ### The report
#
# `evaluate` leaves out images that the model has seen. Here it scores the included model on the example images, which
# are not in its training data. There are only ten: see how wide the intervals are.

# %%
from dermlens.evaluation.evaluate import evaluate

truth = WORK / "truth.csv"
with truth.open("w", newline="") as file:
    csv.writer(file).writerows([["image", "diagnosis"], *([p.name, p.name.split("_")[0]] for p in paths)])
evaluate(predictor, read_dataset(truth, images=IMAGES), WORK / "scores", split=None, seed=0, console=console)

# %%
from dermlens.html import Page

Page(WORK / "scores" / "report.html")

# %% [markdown]
# ### Predict with your own model

# %%
mine = Predictor(RUN)
Answers(mine.predict_many(paths))

# %%
mine.explain(paths[4])

# %% [markdown]
# ## Use the model elsewhere
#
# The run folder has the complete Keras model, an ordinary `keras.Model` for RGB pixels from 0 to 255 (uint8 or
# float32). The bundle has the same network as an OpenVINO graph, with classes and calibration in `bundle.json`. Both
# give the same logits:

# %%
import numpy as np

from dermlens.data.images import load_image
from dermlens.training import load_keras

network = load_keras(RUN)
pixels = load_image(paths[4], mine.bundle.input_spec)
logits, embedding, feature_map = network(pixels[None], training=False)
np.abs(np.asarray(logits)[0] - mine.predict(pixels).logits).max()

# %% [markdown]
# For another runtime, use `export` (the command is `dermlens export RUN --format onnx`; also `openvino`, `litert` and
# `saved-model`). The file contains classes, input and calibration. It is written only if its own runtime, in a separate
# process, gives the same results as Keras.

# %%
from dermlens.export.export import export

exported = export(str(RUN), "onnx", WORK / "mine.onnx", images=[str(IMAGES)], overwrite=True)
print(exported.path.name, f"{exported.bytes / 1e6:.1f} MB, run by {exported.runtime}")
print(f"largest difference to {exported.agreement.reference}: {exported.agreement.worst:.0e}")

# %% [markdown]
# The file works without dermlens: its metadata say all that is needed.

# %%
import json

import onnxruntime

session = onnxruntime.InferenceSession(exported.path)
facts = session.get_modelmeta().custom_metadata_map
print([each["name"] for each in json.loads(facts["classes"])], json.loads(facts["input"]))
print(facts["disclaimer"])
(onnx_logits,) = session.run(["logits"], {"pixels": pixels[None]})
same = np.abs(onnx_logits[0] - mine.predict(pixels).logits).max() < 1e-3
bool(same)

# %% [markdown]
# The graph of the bundle, in OpenVINO:

# %%
import openvino

openvino.Core().read_model(RUN / "bundle" / "graph.xml")
