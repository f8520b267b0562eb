"""The table of facts: what it says, how a name is found in it, and that none of it needs Keras."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dermlens.errors import RecipeError
from dermlens.networks.family import BACKBONES, backbone, block_cuts, check_size


def test_the_whole_family_is_there() -> None:
    assert list(BACKBONES) == [
        *(f"lite{n}" for n in range(5)),
        *(f"b{n}" for n in range(8)),
        *(f"v2-b{n}" for n in range(4)),
        "v2-s",
        "v2-m",
        "v2-l",
    ]


def test_within_a_family_more_cost_is_more_accuracy() -> None:
    for family in ("Lite", "B", "V2"):
        rows = [row for row in BACKBONES.values() if row.family == family]
        for key in ("multiply_adds", "imagenet_top1", "blocks"):
            values = [getattr(row, key) for row in rows]
            assert values == sorted(values), (family, key)
        assert all(row.top1_source and row.scaling and row.weights_source for row in rows)


def test_cut_numbers_of_the_14_px_maps_at_224() -> None:
    by_channels = {80: [], 112: []}  # type: dict[int, list[int]]
    for cut in block_cuts("lite0"):
        if cut.stride == 16:
            by_channels[cut.channels].append(cut.block)
    assert by_channels == {80: [6, 7, 8], 112: [9, 10, 11]}


@pytest.mark.parametrize(
    ("word", "name"),
    [("EfficientNet-Lite0", "lite0"), ("B0", "b0"), ("EfficientNetV2S", "v2-s"), ("efficientnetv2-b1", "v2-b1")],
)
def test_titles_capitals_and_dashes_do_not_matter(word: str, name: str) -> None:
    assert backbone(word).name == name


@pytest.mark.parametrize(("name", "near"), [("lite5", "lite4"), ("efficientnetb8", "b7"), ("v2-xl", "v2-l")])
def test_an_unknown_backbone_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RecipeError) as caught:
        backbone(name)
    assert repr(name) in caught.value.message
    assert near in caught.value.remedy
    assert caught.value.code == "unknown_backbone"


def test_a_name_like_no_other_is_told_all_of_them() -> None:
    with pytest.raises(RecipeError, match=r"v2-l.*dermlens backbones"):
        backbone("xception")


def test_sizes_that_do_not_fit_name_the_one_that_does() -> None:
    assert check_size(backbone("b3"), 0) == 300
    for size_px in (8, 5000, -1):
        with pytest.raises(RecipeError, match=f"{size_px} px does not fit EfficientNetB3.*300"):
            check_size(backbone("b3"), size_px)


def test_names_and_weights_are_found_without_keras() -> None:
    program = (
        "import sys\n"
        "from dermlens.networks.family import backbone\n"
        "from dermlens.networks.weight_files import lite_weights_path, resolve_weights\n"
        "resolve_weights(backbone('b7'), 'pretrained')\n"
        "sys.exit(bool({'keras', 'tensorflow', 'h5py'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
