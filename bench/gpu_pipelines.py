"""Pipelines of bench.gpu: xtr on FAISS, a service of two groups on one card, training steps, and MaxSim kernels of other packages."""

import importlib
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.kernels.made_up import DIM, QUERY_TOKENS, documents_near_topics
from ray_lir.kernels import VARIABLE, select

WORDS = "the index of every token keeps residual vectors near their centroids so that a query finds documents by late interaction".split()
SCORERS = ("maxsim", "xtr", "trial", "attention")
DOCUMENT_TOKENS = 128
XTR_TOKENS = 64
"""Tokens that XTR retrieves in training: fewer than by default, so that small batches have them."""


def _texts(number: int, seed: int, longest: int) -> list[str]:
    """Return made-up texts of 3 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, longest))) for _ in range(number)]


def seconds_of(call: Callable[[], Any], runs: int) -> float:
    """Return the median seconds of a call, after one warm-up call."""
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def xtr(num_tokens: int, runs: int = 3) -> dict[str, Any]:
    """Measure the engine xtr with FAISS on the card and on the CPU, and check that both give the same answers."""
    import faiss

    from ray_lir.building.build import build_index
    from ray_lir.embeddings.token_embeddings import TokenEmbeddings
    from ray_lir.search.searcher import Searcher

    documents, queries = documents_near_topics(num_tokens)
    embedded = TokenEmbeddings.of(queries[:16])
    see_gpus = faiss.get_num_gpus
    found: dict[str, Any] = {"faiss_gpus": see_gpus(), "tokens": num_tokens}
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        build_index(TokenEmbeddings.of(documents), f"{folder}/index")
        for place in ("gpu", "cpu") if see_gpus() else ("cpu",):
            faiss.get_num_gpus = see_gpus if place == "gpu" else lambda: 0
            searcher = Searcher.open(f"{folder}/index", kernels="native")
            try:
                answers[place] = [(top.documents.tolist(), top.scores.tolist()) for top in searcher.search(embedded, 10, "xtr")]
                found[f"{place}_queries_per_s"] = len(embedded) / seconds_of(partial(searcher.search, embedded, 10, "xtr"), runs)
            finally:
                faiss.get_num_gpus = see_gpus
    if "gpu" in answers:
        found["equal"] = answers["gpu"] == answers["cpu"]
    return found


def service(num_docs: int, num_queries: int) -> dict[str, Any]:
    """Measure a service of two groups on one card, half a card each, with one client and with 16."""
    import httpx
    import ray
    import torch
    from ray import serve

    from ray_lir.base.config import EncoderConfig, IndexConfig
    from ray_lir.building.build import build_index
    from ray_lir.encoder.corpus_encoder import encode_corpus
    from ray_lir.search.searcher import Searcher
    from serving.app import build

    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(_texts(num_docs, 5, 150))]
        Path(folder, "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        encode_corpus(f"{folder}/corpus.jsonl", f"{folder}/embeddings", EncoderConfig())
        build_index(f"{folder}/embeddings", f"{folder}/index", IndexConfig(num_shards=2))
        queries = _texts(num_queries, 6, 12)
        os.environ.pop(VARIABLE, None)
        ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            started = time.perf_counter()
            arguments = {"num_groups": 2, "shard_gpus": 0.4, "encoder_gpus": 0.2, "encoder_cpus": 0.5}
            serve.run(build({"index": f"{folder}/index", **arguments}))
            found: dict[str, Any] = {"documents": num_docs, "ready_s": time.perf_counter() - started}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:

                def ask(query: str) -> list[int]:
                    reply = client.post("/search", json={"query": query, "k": 10, "engine": "exact", "include": []})
                    reply.raise_for_status()
                    return [hit["number"] for hit in reply.json()["results"][0]]

                ask(queries[0])
                for clients in (1, 16):
                    with ThreadPoolExecutor(clients) as pool:
                        started = time.perf_counter()
                        answers = list(pool.map(ask, queries))
                    found[f"{clients} clients, queries_per_s"] = len(queries) / (time.perf_counter() - started)
            searcher = Searcher.open(f"{folder}/index", kernels="cuda")
            from ray_lir.encoder.encoder import Encoder

            encoded = Encoder.for_contract(searcher.manifest.contract).encode_queries(queries)
            expected = [top.documents.tolist() for top in searcher.search(encoded, 10, "exact")]
            same = [len(set(one) & set(other)) / len(other) for one, other in zip(answers, expected, strict=True)]
            found["hits_of_searcher"] = float(np.mean(same))
            found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
            return found
        finally:
            serve.shutdown()
            ray.shutdown()


def training(batch_size: int, steps: int, precisions: tuple[str, ...], device: str) -> dict[str, Any]:
    """Measure the training step of each scorer, with the default encoder.

    Args:
        batch_size: Queries of a batch, each with one passage.
        steps: Timed steps, after one warm-up step.
        precisions: Names of torch types, for example bfloat16.
        device: Device of torch.
    """
    from ray_lir.base.config import EncoderConfig, TrainingConfig, XtrConfig
    from ray_lir.training.data import TrainingData
    from ray_lir.training.trainer import Training, load_encoder, prepare_encoder

    queries, passages = _texts(batch_size, 7, 12), _texts(batch_size, 8, 100)
    found: dict[str, Any] = {"batch": batch_size}
    for scorer in SCORERS:
        for precision in precisions:
            import torch

            config = TrainingConfig(scorer=scorer, max_steps=steps + 1, batch_size=batch_size, xtr=XtrConfig(k_train=XTR_TOKENS))
            encoder = prepare_encoder(load_encoder(EncoderConfig(document_length=DOCUMENT_TOKENS), 0, device), config)
            data = TrainingData.of(queries, passages, [((number,),) for number in range(batch_size)])
            run = Training(encoder, data, config, getattr(torch, precision))
            times, losses = [], []
            for batches in run.remaining():
                started = time.perf_counter()
                losses.append(run.run_step(*batches).loss)  # the loss is on the host, so the step has ended
                times.append(time.perf_counter() - started)
            examples = batch_size / statistics.median(times[1:])
            found[f"{scorer}, {precision}"] = {"examples_per_s": examples, "losses": [round(loss, 4) for loss in losses]}
    return found


def other_maxsim(num_docs: int, device: str) -> dict[str, Any]:
    """Measure MaxSim of uncompressed float16 vectors: this project's kernel, and other packages' if they are installed."""
    import torch

    torch.manual_seed(0)
    documents = torch.nn.functional.normalize(torch.randn(num_docs, DOCUMENT_TOKENS, DIM, device=device), dim=-1).half()
    queries = torch.nn.functional.normalize(torch.randn(8, QUERY_TOKENS, DIM, device=device), dim=-1).half()
    offsets = np.arange(num_docs + 1) * DOCUMENT_TOKENS
    flat, kernels = documents.reshape(-1, DIM).cpu().numpy(), select("cuda")
    rows, weights = [query.float().cpu().numpy() for query in queries], [np.ones(QUERY_TOKENS, np.float32)] * len(queries)
    expected = kernels.maxsim(rows, weights, flat, offsets)

    def ours() -> np.ndarray:
        return kernels.maxsim(rows, weights, flat, offsets)

    def of_torch() -> np.ndarray:
        scores = [(documents @ query.T).max(dim=1).values.sum(dim=1) for query in queries]
        return torch.stack(scores).float().cpu().numpy()

    def of(module: str, function: str) -> np.ndarray:
        return getattr(importlib.import_module(module), function)(queries, documents).float().cpu().numpy()

    calls: dict[str, Callable[[], np.ndarray]] = {
        "ray_lir, from host memory": ours,
        "torch": of_torch,
        "late-interaction-kernels": partial(of, "late_interaction_kernels", "maxsim"),
        "flash-maxsim": partial(of, "flash_maxsim", "flash_maxsim_batched"),
    }
    found: dict[str, Any] = {"documents": num_docs, "document_tokens": DOCUMENT_TOKENS, "queries": len(queries)}
    for name, call in calls.items():
        try:
            worst = float(np.abs(call() - expected).max() / QUERY_TOKENS)
        except ImportError as error:
            found[name] = f"not installed: {error}"
            continue
        found[name] = {"queries_per_s": len(queries) / seconds_of(call, 5), "difference_a_token": worst}
    return found
