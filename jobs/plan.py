"""Predicts what a collection takes: bytes, machines, hours, latency and cost."""

from typing import Any, Literal

from pydantic import Field

from ray_lir.base.config import Config, EncoderConfig

from .cli import main, readable


class PlanJob(Config):
    """Predicts bytes, machines, hours, latency and cost. docs/operations.md says where the constants come from."""

    docs: float | None = Field(None, ge=1)
    """Documents (1e9 is fine). None: as many as the corpus, the embeddings or the index has."""
    corpus: str | None = None
    """A corpus to take documents, tokens and bytes of text from; 1,000 of its documents are tokenised."""
    embeddings: str | None = None
    """Or a folder that jobs.encode wrote."""
    index: str | None = None
    """Or an index."""
    encoder: EncoderConfig = EncoderConfig()
    """The encoder that will be used: its dimensions and its tokens are planned with."""
    tokens_per_doc: float | None = Field(None, gt=0)
    """Token vectors of a document, on average. None: measured, or assumed, which is said first."""
    dim: int | None = Field(None, ge=1)
    """Dimensions of a token vector. None: measured, or the encoder's."""
    nbits: Literal[1, 2, 4, 8] = 4
    """Bits a dimension of the compressed residuals."""
    num_centroids: int | None = Field(None, ge=1)
    """None: what build_index chooses; or, if that is not in time, the most that are."""
    num_iterations: int = Field(4, ge=1)
    """Of k-means."""
    text_bytes_per_doc: float | None = Field(None, ge=0)
    """Bytes of a document's id, title, text and metadata. None: measured, or assumed, which is said first."""
    qps: float = Field(10, gt=0)
    """Searches a second."""
    p95_ms: float = Field(200, gt=0)
    """How long 95 of 100 searches may take, at most."""
    k: int = Field(10, ge=1)
    """Documents that are wanted."""
    engine: Literal["auto", "exact", "scan", "warp"] = "auto"
    """auto: whichever takes the fewest machines."""
    query_encode_ms: float = Field(10, ge=0)
    """Encoding a query."""
    hop_ms: float = Field(2, ge=0)
    """A round of messages between the gateway and its groups."""
    kernels: str = "native:avx2"
    """Kernels of the serving machines."""
    node_cores: int = Field(8, ge=1)
    """Cores of a CPU machine; two hardware threads count once."""
    node_memory_gb: float = Field(64, gt=0)
    """Its memory."""
    node_price: float = Field(0.8064, ge=0)
    """Dollars an hour (an m7i.4xlarge on demand in us-east-1)."""
    build_nodes: int = Field(8, ge=1)
    """CPU machines that build the index."""
    encoder_parameters: float = Field(86e6, gt=0)
    """Weights that every token meets: without the table of word embeddings (BERT base has 86 million)."""
    gpu_teraflops: float = Field(36, gt=0)
    """What a GPU sustains (30% of an L4's peak in 16 bits)."""
    gpu_price: float = Field(0.9776, ge=0)
    """Dollars an hour of a machine with one such GPU (a g6.2xlarge)."""
    gpus: int = Field(4, ge=1)
    """GPUs that encode."""
    storage_price: float = Field(0.023, ge=0)
    """Dollars a GB and month of object storage."""


def run(job: PlanJob) -> dict[str, Any]:
    """The prediction.

    Raises:
        ConfigError: if there are no such kernels, the codec does not fit into a machine's memory, or nothing says how many documents
            there are.
    """
    from .plan_report import predict

    return predict(job)


def show(result: dict[str, Any]) -> None:
    """Prints a prediction for people."""
    for part, values in result.items():
        for line in values if isinstance(values, list) else [f"{name:<24} {readable(value)}" for name, value in values.items()]:
            print(f"{part:<11} {line}", flush=True)


if __name__ == "__main__":
    main(PlanJob, run, show=lambda result, _: show(result))
