"""The measuring process of bench.models.encoding: encodes the same texts with one system at one setting.

python -m bench.peers.encoding SYSTEM CHECKPOINT TEXTS.json RESULT.json --threads N --precision float32|bfloat16 --length N
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bench.peers.harness import cpu_seconds, memory_bytes, pin

Encode = Callable[[Sequence[str]], Sequence[np.ndarray]]
WARM_UP, COMPARED = 32, 64
"""Texts encoded before timing starts, and texts with stored vectors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("checkpoint")
    parser.add_argument("texts", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
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
    tokens = sum(map(len, matrices))
    report = {"documents": len(texts), "tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_used, "peak_bytes": memory_bytes("VmHWM")}
    options.result.write_text(json.dumps(report, indent=1) + "\n")


def _ray_lir(checkpoint: str, precision: str, length: int) -> Encode:
    """Encoder.encode_documents at its defaults."""
    from ray_lir.base.config import EncoderConfig
    from ray_lir.encoder.encoder import Encoder

    encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, precision=precision, document_length=length))
    return lambda texts: list(encoder.encode_documents(texts))


def _pylate(checkpoint: str, precision: str, length: int) -> Encode:
    """ColBERT.encode at its defaults; bfloat16 under autocast, as in its documentation."""
    from pylate import models

    model = models.ColBERT(checkpoint, document_length=length, device="cpu")

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return [np.asarray(matrix) for matrix in model.encode(list(texts), is_query=False, show_progress_bar=False)]

    return encode


SYSTEMS = {"ray_lir": _ray_lir, "pylate": _pylate}

if __name__ == "__main__":
    main()
