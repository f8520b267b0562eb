"""Keras -> OpenVINO: the same answers from uint8 pixels, outputs in order, and a wrong graph is noticed."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from dermlens.errors import WeightsError
from dermlens.inference.runtime import compile_graph
from dermlens.networks.openvino import check_export, to_openvino


def network(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1)(pixels)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(pixels, [keras.layers.Dense(5, name="logits")(pooled), pooled, x])


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


def test_outputs_keep_their_order_and_values() -> None:
    model = network(0)
    graph = to_openvino(model)
    assert check_export(model, graph, PIXELS) < 1e-4
    assert [tuple(o.shape[1:]) for o in compile_graph(graph, batch=2).outputs] == [(5,), (4,), (14, 14, 4)]
    assert len(graph.inputs) == 1 and graph.input(0).get_element_type().get_type_name() == "u8"


def test_a_graph_of_other_weights_is_refused() -> None:
    with pytest.raises(WeightsError, match="differs from Keras"):
        check_export(network(1), to_openvino(network(0)), PIXELS)
