"""Predicts bytes, machines, hours, latency and cost of a collection."""

from typing import Any, Literal

from pydantic import Field

from ray_lir.base.config import Config, EncoderConfig

from .cli import main, readable


class PlanJob(Config):
    """Predicts bytes, machines, hours, latency and cost of a collection. docs/operations.md explains the constants."""

    docs: float | None = Field(None, ge=1)
    """Number of documents; 1e9 is accepted. None: as many as the corpus, the embeddings or the index have."""
    corpus: str | None = None
    """Corpus from which documents, tokens and bytes of text are counted. 1,000 of its documents are tokenised."""
    embeddings: str | None = None
    """Embeddings from which they are counted, instead of a corpus."""
    index: str | None = None
    """Index from which they are counted, instead of a corpus."""
    encoder: EncoderConfig = EncoderConfig()
    """The encoder that will be used. It determines dimensions and tokens."""
    tokens_per_doc: float | None = Field(None, gt=0)
    """Mean number of token vectors of a document. None: measured or assumed; assumptions are listed first."""
    dim: int | None = Field(None, ge=1)
    """Dimensions of a token vector. None: measured, or those of the encoder."""
    nbits: Literal[1, 2, 4, 8] = 4
    """Bits a dimension of a residual."""
    residual_bytes: int | None = Field(None, ge=1)
    """Bytes of a token's residual (`--codec.residual_bytes` of build_index). None: dimensions times nbits / 8."""
    lexical: bool = False
    """Include lexical postings, for the engines bm25 and hybrid."""
    num_centroids: int | None = Field(None, ge=1)
    """Number of centroids. None: the default of build_index; if searches would be too slow, the largest number that is fast enough."""
    num_iterations: int = Field(4, ge=1)
    """Iterations of k-means."""
    text_bytes_per_doc: float | None = Field(None, ge=0)
    """Mean bytes of a document's id, title, text and metadata. None: measured or assumed; assumptions are listed first."""
    qps: float = Field(10, gt=0)
    """Searches a second."""
    p95_ms: float = Field(200, gt=0)
    """Limit of the 95th percentile of search latency, in milliseconds."""
    k: int = Field(10, ge=1)
    """Documents returned for each search."""
    engine: Literal["auto", "exact", "scan", "warp"] = "auto"
    """Engine of all searches. auto: the engine that needs the fewest machines."""
    query_encode_ms: float = Field(10, ge=0)
    """Milliseconds to encode a query."""
    hop_ms: float = Field(2, ge=0)
    """Milliseconds of a round of messages between the gateway and its groups."""
    kernels: str = "native:avx2"
    """Kernel set of the serving machines."""
    node_cores: int = Field(8, ge=1)
    """Physical cores of a CPU machine; two hardware threads count once."""
    node_memory_gb: float = Field(64, gt=0)
    """Memory of a CPU machine, in GB (10^9 bytes)."""
    node_price: float = Field(0.8064, ge=0)
    """Dollars an hour of a CPU machine. The default is an m7i.4xlarge on demand in us-east-1."""
    build_nodes: int = Field(8, ge=1)
    """Number of CPU machines that build the index."""
    encoder_parameters: float = Field(86e6, gt=0)
    """Weights of the encoder without word embeddings. The default is BERT base."""
    gpu_teraflops: float = Field(36, gt=0)
    """Sustained rate of a GPU, in 10^12 operations a second. The default is 30% of the 16-bit peak of an L4."""
    gpu_price: float = Field(0.9776, ge=0)
    """Dollars an hour of a machine with one such GPU. The default is a g6.2xlarge."""
    gpus: int = Field(4, ge=1)
    """Number of GPUs that encode."""
    shard_gpus: float = Field(0, ge=0, le=1)
    """GPUs of each shard group, 1 or a fraction: predicts a service on GPUs beside the one on CPUs. 0: only CPUs."""
    gpu_memory_gb: float = Field(24, gt=0)
    """Memory of a GPU, in GB (10^9 bytes). The default is an L4."""
    gpu_gb_per_s: float = Field(300, gt=0)
    """Bytes that a GPU reads from its memory, in GB a second. The default is an L4."""
    storage_price: float = Field(0.023, ge=0)
    """Dollars a month for one GB of object storage."""


def run(job: PlanJob) -> dict[str, Any]:
    """Return the prediction.

    Raises:
        ConfigError: The kernels are unknown, the codec does not fit into a machine's memory, or the number of documents is unknown.
    """
    from .plan_report import predict

    return predict(job)


def show(result: dict[str, Any]) -> None:
    """Print a prediction as text."""
    for part, values in result.items():
        for line in values if isinstance(values, list) else [f"{name:<24} {readable(value)}" for name, value in values.items()]:
            print(f"{part:<11} {line}", flush=True)


if __name__ == "__main__":
    main(PlanJob, run, show=lambda result, _: show(result))
