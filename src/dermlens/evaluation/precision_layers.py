"""Which layers of a graph stay in float32 when the rest is computed in bfloat16.

The first layers lose the most: their values are the picture itself, and all that follows is built on them
(`benchmarks/precision_layers.py`). OpenVINO reads from the graph which layers are to stay as they are; the marks say
nothing to a graph that is computed in float32 anyway.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

HEAVY = ("Convolution", "GroupConvolution", "MatMul")
_MARK = {"name": "precise", "version": "0"}  # OpenVINO's DisablePrecisionConversion


def heavy_layers(graph: Path) -> list[str]:
    """Return the types of the layers that most of the time goes to, in the order in which they are computed."""
    kinds = [layer.get("type", "") for layer in ElementTree.parse(graph).iter("layer")]
    return [kind for kind in kinds if kind in HEAVY]


def keeping_float32(graph: Path, kept: set[int]) -> str:
    """Return the text of a graph.xml in which some layers, and what follows each until the next, stay in float32.

    Args:
        kept: places in `heavy_layers`; 0 brings what stands before the first layer with it. All others do not.
    """
    tree = ElementTree.parse(graph)
    place = -1
    for layer in tree.iter("layer"):
        place += layer.get("type") in HEAVY
        inputs, marks = layer.find("input"), layer.find("rt_info")
        for mark in [m for m in (() if marks is None else marks) if m.get("name") == _MARK["name"]]:
            marks.remove(mark)  # type: ignore[union-attr]
        if inputs is None or max(0, place) not in kept:
            continue
        if marks is None:
            marks = ElementTree.Element("rt_info")
            layer.insert(list(layer).index(inputs), marks)
        ElementTree.SubElement(marks, "attribute", _MARK)
    return ElementTree.tostring(tree.getroot(), encoding="unicode")
