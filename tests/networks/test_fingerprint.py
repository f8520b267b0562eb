"""What a network answers to one fixed picture tells whether its weights are where they belong."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from dermlens.errors import WeightsError
from dermlens.networks.efficientnet import build_backbone
from dermlens.networks.weight_files import LITE_PACKAGES
from dermlens.networks.weights import KNOWN, check_known, check_same, check_sane, pooled_features
from networks import settle


def test_all_packaged_weights_have_known_features() -> None:
    assert KNOWN.keys() == LITE_PACKAGES.keys()


def test_random_weights_are_not_taken_for_the_published_ones() -> None:
    with pytest.raises(WeightsError, match="test picture"):
        check_known(build_backbone("lite1", weights="none"), "lite1")


def test_features_that_no_trained_network_has_are_refused() -> None:
    model = settle(build_backbone("lite0", size_px=32, weights="none"))
    check_sane(model)
    bn = model.get_layer("top_bn")
    for gamma, beta, says in ((0.0, 1.0, "same value"), (np.nan, 0.0, "not finite")):
        bn.gamma.assign(np.full(1280, gamma, np.float32))
        bn.beta.assign(np.full(1280, beta, np.float32))
        with pytest.raises(WeightsError, match=says):
            check_sane(model)
    huge = keras.Model(model.inputs[0], model.get_layer("top_conv").output * 1e9)
    with pytest.raises(WeightsError, match="10000 is allowed"):
        check_sane(huge)


def test_the_same_network_has_the_same_features() -> None:
    model = settle(build_backbone("lite0", size_px=32, weights="none"))
    features = pooled_features(model)
    check_same(features, features.copy(), "a file")
    for other in (features[:-1], features + 0.1, np.full_like(features, np.nan)):
        with pytest.raises(WeightsError, match="other features than in a file"):
            check_same(other, features, "a file")
