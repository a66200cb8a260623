"""Writes the trained network for ONNX Runtime, at 8 bits a weight. It trains nothing."""

import tempfile
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from models.guard.network import Network

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export(network: Network, file: Path) -> None:
    """Write `file`; the weights of every matrix product and of the embeddings at 8 bits or fewer."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "guard.onnx"
        sample = {name: torch.ones(2, 16, dtype=torch.long) for name in INPUTS}
        axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
        torch.onnx.export(
            network.eval(),
            kwargs=sample,
            f=str(whole),
            input_names=list(INPUTS),
            output_names=["answer", "question"],
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            external_data=False,
        )
        model = onnx.load(whole)
        del model.graph.value_info[:]  # shapes that the exporter noted; the quantiser works them out itself
        onnx.save(model, whole)
        half = Path(folder) / "half.onnx"
        quantize_dynamic(whole, half, weight_type=QuantType.QInt8, op_types_to_quantize=["Gather"])
        quantize_dynamic(
            half,
            file,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # in 7 of the 8 bits: sums of products of whole bytes overflow on a processor without VNNI, which
            # would then judge otherwise than the others
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    forget_origin(file)


def forget_origin(file: Path) -> None:
    """Drop what the exporter noted beside each part: the stack of the program, with paths of its machine."""
    model = onnx.load(file)
    parts = [model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output]
    for part in (*parts, *model.graph.value_info, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.save(model, file)
