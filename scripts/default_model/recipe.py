"""What the embedded model is trained with, and what its bundle says of it."""

from __future__ import annotations

from dermlens.training.finish import About
from dermlens.training.recipe import Recipe

RECIPE = Recipe(fine_tune="full", epochs=12, artefacts=0.25, patience=0)

ABOUT = About(
    name="default",
    version="1.3.0",
    scope=(
        "Reads dermoscopic images (taken through a dermatoscope) of eight skin lesions: actinic keratosis, basal cell "
        "carcinoma, benign keratosis, dermatofibroma, melanoma, nevus, squamous cell carcinoma and vascular lesion. "
        "It does not read ordinary photographs of skin, rashes or other conditions."
    ),
    modality="dermoscopy",
    weights_licence="CC BY-NC 4.0, since the model was trained on CC BY-NC images; free for non-commercial use",
    data_sources=(
        "HAM10000, CC BY-NC 4.0 (Tschandl et al. 2018, doi 10.1038/sdata.2018.161): one 224 px image for most lesions, "
        "further views at 200 x 150 px",
        "ISIC-9, the nine-class set of the ISIC archive (CC0 or CC BY-NC by image), 180 px, repaired through the "
        "official ISIC 2019 diagnoses",
    ),
    not_tested_on=(
        "clinical (non-dermoscopic) photographs, which it cannot read",
        "diagnoses other than its eight classes",
        "patients with dark skin: the sources hold almost none and do not record skin tone",
        "other clinics, dermatoscopes and countries than those of HAM10000 and the ISIC archive",
        "children, mucosa, nails and scalp as groups of their own",
    ),
)
