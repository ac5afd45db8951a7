"""The measuring process of bench.models.encoding: encodes the same texts with one system at one setting.

python -m bench.peers.encoding SYSTEM CHECKPOINT TEXTS.json RESULT.json --threads N --precision float32|bfloat16|int8 --length N
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers.harness import cpu_seconds, memory_bytes, pin

Encode = Callable[[Sequence[str]], Sequence[np.ndarray]]
Forward = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Function from padded token ids and attention mask, each [B, L] int64, to the last hidden states, [B, L, W] float32."""
WARM_UP, COMPARED = 16, 64
"""Texts encoded before timing starts, and texts with stored vectors."""
BATCH = 32
"""Texts of a batch, as in sentence-transformers."""
CALIBRATION = 100
"""Texts for the ranges of activations in OpenVINO's int8 model; sentence-transformers uses 300 sentences."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("checkpoint")
    parser.add_argument("texts", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "int8"], default="float32")
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    pin(options.threads)
    torch.set_num_threads(options.threads)
    texts = json.loads(options.texts.read_text())
    encode = SYSTEMS[options.system](options.checkpoint, options.precision, options.length)
    encode(texts[:WARM_UP])
    start, cpu_start = time.perf_counter(), cpu_seconds()
    matrices = encode(texts)
    seconds, cpu_used = time.perf_counter() - start, cpu_seconds() - cpu_start
    np.save(options.result.with_suffix(".npy"), np.concatenate(matrices[:COMPARED]).astype(np.float32))
    report = {
        "version": version(PACKAGES[options.system]) if PACKAGES[options.system] else None,
        "documents": len(texts),
        "tokens": sum(map(len, matrices)),
        "seconds": seconds,
        "cpu_seconds": cpu_used,
        "peak_bytes": memory_bytes("VmHWM"),
    }
    options.result.write_text(json.dumps(report, indent=1) + "\n")


def _ray_lir(checkpoint: str, precision: str, length: int) -> Encode:
    """Encoder.encode_documents at its defaults."""
    from ray_lir.base.config import EncoderConfig
    from ray_lir.encoder.encoder import Encoder

    encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, precision=precision, document_length=length, device="cpu"))
    return lambda texts: list(encoder.encode_documents(texts))


def _pylate(checkpoint: str, precision: str, length: int) -> Encode:
    """ColBERT.encode at its defaults; bfloat16 under autocast, as in its documentation."""
    from pylate import models

    model = models.ColBERT(checkpoint, document_length=length, device="cpu")

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return [np.asarray(matrix) for matrix in model.encode(list(texts), is_query=False, show_progress_bar=False)]

    return encode


def _sentence_transformers(checkpoint: str, precision: str, length: int) -> Encode:
    """MultiVectorEncoder.encode_document at its defaults, with weights in the given precision.

    Its input without padding needs FlashAttention, which does not run on a CPU.
    """
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(checkpoint, device="cpu", model_kwargs={"dtype": getattr(torch, precision)})
    model.max_seq_length = length
    return lambda texts: [
        each.float().numpy()
        for each in model.encode_document(list(texts), batch_size=BATCH, show_progress_bar=False, convert_to_numpy=False)
    ]


def _onnx_runtime(checkpoint: str, precision: str, length: int) -> Encode:
    """ONNX Runtime; int8 is its dynamic quantization, as in sentence-transformers' `export_dynamic_quantized_onnx_model`."""
    import onnxruntime

    path = Path(checkpoint, "model.onnx")
    model, inputs = _transformer(checkpoint)
    if not path.exists():
        axes = {name: {0: "texts", 1: "tokens"} for name in (*inputs, "hidden")}
        arguments = {"input_names": list(inputs), "output_names": ["hidden"], "dynamic_axes": axes}
        torch.onnx.export(model, tuple(inputs.values()), str(path), dynamo=False, opset_version=17, **arguments)
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        whole, path = path, Path(checkpoint, "model_int8.onnx")
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=False)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return _padded(checkpoint, length, lambda batch: session.run(None, batch)[0])


def _openvino(checkpoint: str, precision: str, length: int) -> Encode:
    """OpenVINO; int8 is NNCF's static quantization, as in sentence-transformers' `export_static_quantized_openvino_model`."""
    import openvino

    model, inputs = _transformer(checkpoint)
    converted = openvino.convert_model(model, example_input=tuple(inputs.values()))
    if precision == "int8":
        import nncf

        texts = json.loads(Path(checkpoint).parent.joinpath("texts.json").read_text())[:CALIBRATION]
        samples = [tuple(batch.values()) for batch, _ in _batches(checkpoint, texts, length, 1)]
        converted = nncf.quantize(converted, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bfloat16" else "f32"
    compiled = openvino.compile_model(converted, "CPU", settings)
    return _padded(checkpoint, length, lambda batch: compiled(tuple(batch.values()))[0])


def _transformer(checkpoint: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return the transformer of a checkpoint, which returns its hidden states alone, and an example of its inputs."""
    from transformers import AutoModel

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(5, 500, (2, 16))
    return LastHiddenState(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _batches(checkpoint: str, texts: Sequence[str], length: int, size: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yield batches of texts, longest first: padded ids and mask, and the numbers of the texts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = tokenizer([texts[row] for row in rows], padding=True, truncation=True, max_length=length, return_tensors="np")
        yield {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}, rows


def _padded(checkpoint: str, length: int, forward: Forward) -> Encode:
    """Return an encoder around a transformer, with the batches of sentence-transformers: 32 texts, sorted by their characters, padded."""

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        found: list[Any] = [None] * len(texts)
        for batch, rows in _batches(checkpoint, texts, length, BATCH):
            hidden = forward(batch)
            for row, states, mask in zip(rows, hidden, batch["attention_mask"], strict=True):
                kept = states[mask.astype(bool)]
                found[row] = kept / np.linalg.norm(kept, axis=1, keepdims=True)
        return found

    return encode


SYSTEMS: dict[str, Callable[[str, str, int], Encode]] = {
    "ray_lir": _ray_lir,
    "pylate": _pylate,
    "sentence-transformers": _sentence_transformers,
    "onnxruntime": _onnx_runtime,
    "openvino": _openvino,
}
PACKAGES = {"ray_lir": None, "pylate": "pylate", **{name: name for name in ("sentence-transformers", "onnxruntime", "openvino")}}

if __name__ == "__main__":
    main()
