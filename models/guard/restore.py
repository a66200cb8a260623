"""Reads the weights of a written network back, to be written anew. It trains nothing.

Its biases must all differ, as those of a trained network do: equal ones are stored once. Weights were
rounded, so it is as near to the network that was written as the answers of its file are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import BertConfig

from models.guard.network import Network

#: Layers whose weights stand in the file by their own name, not transposed.
_AS_WRITTEN = "embeddings."
_PRODUCT = "MatMulInteger"
Weights = np.ndarray[Any, np.dtype[Any]]


def restore(file: Path, config: BertConfig) -> Network:
    """The network of `file`, which `export` wrote.

    Raises:
        ValueError: a weight of the network is not in the file.
    """
    graph = onnx.load(file).graph
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}

    def whole(name: str) -> Weights:
        rounded, offset = (stored[f"{name}_{part}"] for part in ("quantized", "zero_point"))
        return (rounded.astype(np.float32) - offset.astype(np.float32)) * stored[f"{name}_scale"]

    network = Network(config)
    products = dict(_products(graph, stored))
    state = {}
    for name in network.state_dict():
        if name in stored:
            value = stored[name]
        elif name in products:
            value = whole(products[name]).T
        elif f"{name}_quantized" in stored:
            value = whole(name) if _AS_WRITTEN in name else whole(name).T
        else:
            raise ValueError(f"{file} holds no {name}")
        state[name] = torch.tensor(np.ascontiguousarray(value), dtype=torch.float32)
    network.load_state_dict(state)
    return network.eval()


def _products(graph: onnx.GraphProto, stored: dict[str, Weights]) -> Iterator[tuple[str, str]]:
    """The weight of each layer and its name in the file: the exporter keeps the names of biases only."""
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        biases = [name for name in node.input if name.endswith(".bias") and name in stored]
        if node.op_type != "Add" or not biases:
            continue
        (sum_of,) = (name for name in node.input if name not in biases)
        if product := _product_before(made_by, sum_of):
            yield biases[0].removesuffix("bias") + "weight", product.input[1].removesuffix("_quantized")


def _product_before(made_by: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """The product of matrices that was scaled to what is called `name`."""
    scaled = made_by.get(name)
    if scaled is None or scaled.op_type != "Mul":
        return None
    for factor in scaled.input:
        cast = made_by.get(factor)
        if cast is not None and cast.op_type == "Cast" and made_by[cast.input[0]].op_type == _PRODUCT:
            return made_by[cast.input[0]]
    return None
