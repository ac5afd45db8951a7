"""Encoder: a checkpoint and its contract, turning queries and documents into TokenEmbeddings (docs/algorithms.md#1-encoding)."""

import copy
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ray_lir import storage
from ray_lir.base.arguments import id_list
from ray_lir.base.config import Config, EncoderConfig, canonical_json
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.embeddings.contract import EncoderContract, check_weights
from ray_lir.embeddings.pooling import pool_tokens
from ray_lir.embeddings.relation import Relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder import checkpoint, layouts
from ray_lir.encoder.layouts.loading import Parts, expansion_token, longest_input, punctuation_ids
from ray_lir.encoder.network import Network
from ray_lir.encoder.tokenization import TextTokenizer
from ray_lir.encoder.torch_threads import spread
from ray_lir.encoder.unpadded_bert import native_bfloat16
from ray_lir.scorers import SCORERS, Trial
from ray_lir.scorers.batches import EmbeddedTexts, TokenBatch, group_by_length, pad, padded

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Padded tokens a batch where the configuration says nothing. The activations of 1024 tokens stay in a CPU's caches: on an AVX2 core
MiniLM encodes 15 to 30% more documents a second than with 8192."""
BFLOAT16_BATCH_TOKENS = 2048
"""The same on a CPU in bfloat16: half the bytes, and products so fast that calls count. On AMX 4% more documents a second than with
1024 on one core, 13% on two."""
THREAD_TOKENS = 256
"""Tokens that are worth a thread of their own: texts that fill fewer batches than there are threads are divided down to it."""


class Encoder:
    """Turns text into token embeddings. `load` makes one; a text's vectors do not depend on the texts beside it.

    Attributes:
        contract: every convention that decides what the vectors are.
        tokenizer: the part that needs no weights.
        model: the network, with the scorer that it was trained for.
        batch_tokens: padded tokens a batch, at most.
    """

    def __init__(self, contract: EncoderContract, tokenizer: TextTokenizer, model: Network, batch_tokens: int):
        self.contract = contract
        self.tokenizer = tokenizer
        self.model = model
        self.batch_tokens = batch_tokens

    @classmethod
    def load(cls, config: EncoderConfig | str | os.PathLike[str] = EncoderConfig()) -> "Encoder":
        """Loads a checkpoint of any layout (docs/algorithms.md#14-checkpoint-layouts) with the configuration's changes to its conventions.

        `config.projection` is not looked at: fit_projection fits one on a corpus.

        Raises:
            ConfigError: if there is no such checkpoint, it cannot be loaded, or a change does not suit it.
        """
        config = config if isinstance(config, EncoderConfig) else EncoderConfig(checkpoint=storage.path_text(config))
        parts = layouts.load(checkpoint.find(config.checkpoint), config.trust_remote_code)
        conventions = {**parts.conventions, **_changes(config, parts)}
        limit = longest_input(parts.network.backbone.config)
        for name in ("query_length", "document_length"):
            if limit and conventions[name] > limit:
                raise ConfigError(f"{name} {conventions[name]} is more than the {limit} positions of {config.checkpoint}; lower it")
        contract = EncoderContract(
            checkpoint=resolve_checkpoint_name(config.checkpoint),
            weights_digest=weights_digest(parts.network),
            dim=parts.network.dim,
            weighs=parts.network.scorer.weighs,
            **conventions,
        )
        return cls._placed(contract, parts, config)

    @classmethod
    def for_contract(cls, contract: EncoderContract, config: EncoderConfig | None = None) -> "Encoder":
        """Loads the encoder that a contract (an index's, say) was made with, its conventions included.

        Of `config` the checkpoint (where the weights lie now), device, precision and batch_tokens are used; None: where the contract says.

        Raises:
            IncompatibleError: if the checkpoint's weights are others than the contract's.
        """
        config = config or EncoderConfig(checkpoint=contract.checkpoint)
        parts = layouts.load(checkpoint.find(config.checkpoint), config.trust_remote_code)
        if parts.network.scorer.name != contract.scorer:
            raise IncompatibleError(
                f"{config.checkpoint} is for scorer {parts.network.scorer.name}, and {contract.scorer} is wanted; "
                f"give the checkpoint that {contract.checkpoint} was"
            )
        if weights_digest(parts.network) != contract.weights_digest:
            raise IncompatibleError(
                f"{config.checkpoint} has other weights than {contract.checkpoint} had when it was used; give the same checkpoint"
            )
        return cls._placed(contract, parts, config)

    @classmethod
    def _placed(cls, contract: EncoderContract, parts: Parts, config: EncoderConfig) -> "Encoder":
        device = choose_device(config.device)
        network = parts.network.eval().place(device, choose_dtype(config.precision, device))
        return cls(contract, TextTokenizer(contract, parts.tokenizer), network, config.batch_tokens or default_batch_tokens(network))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def relation(self) -> Relation | None:
        """The relation encoder as search takes it, if the scorer is trial."""
        return self.model.scorer.to_arrays() if isinstance(self.model.scorer, Trial) else None

    def encode_documents(self, texts: Sequence[str], doc_ids: Sequence[str] | None = None) -> TokenEmbeddings:
        """Documents as token embeddings, without the skip list's tokens, and pooled if the contract says so; numbered if they have
        no ids.

        `weights` are the scorer's factors of the tokens (rho of docs/algorithms.md#7-one-factored-form), if it weighs documents.

        Raises:
            ConfigError: if a text is not a string, or there are more or fewer ids than texts.
        """
        tokens = self.tokenizer.tokenize_documents(texts)
        self.tokenizer.warn_if_cut("document", tokens.truncations)
        return self.encode_document_tokens(tokens.ids, doc_ids)

    def encode_document_tokens(self, token_ids: Sequence[np.ndarray], doc_ids: Sequence[str] | None = None) -> TokenEmbeddings:
        """The same from what `tokenizer.documents` gave, on another machine perhaps."""
        token_ids = list(token_ids)
        embeddings = self._encode(token_ids, [len(ids) for ids in token_ids], self.contract.skip_tokens, doc_ids, self.embed_documents)
        return pool_tokens(embeddings, self.contract.pooling_factor)

    def encode_queries(self, texts: Sequence[str], query_ids: Sequence[str] | None = None) -> TokenEmbeddings:
        """Queries as token embeddings, expansion tokens included; numbered if they have no ids.

        `weights` are the scorer's factors of the tokens (u of docs/algorithms.md#7-one-factored-form), if it weighs queries.

        Raises:
            ConfigError: if a text is not a string, or there are more or fewer ids than texts.
        """
        return self._encode(*self._query_tokens(texts), self.contract.query_skip_tokens, query_ids, self.embed_queries)

    @torch.inference_mode()
    def scores(self, queries: TokenEmbeddings, documents: TokenEmbeddings) -> np.ndarray:
        """[queries, documents] float32, the scorer's exact score of each pair of texts that this encoder encoded; -inf for a document
        without tokens. An index scores the same but for what compression loses. Sums are made in float64: the pairs beside a pair, and
        threads, do not change its score.

        Raises:
            IncompatibleError: if the scorer weighs queries or documents, and they came without their weights, or the other way round.
        """
        check_weights(self.contract, "queries", queries.weights is not None)
        check_weights(self.contract, "documents", documents.weights is not None)
        if not documents.num_tokens:
            return np.full((len(queries), len(documents)), -np.inf, np.float32)
        scorer = copy.deepcopy(self.model.scorer).eval().double()
        texts = padded(queries, self.device, torch.float64), padded(documents, self.device, torch.float64)
        return scorer(*texts).float().cpu().numpy()

    def batch_documents(self, texts: Sequence[str]) -> TokenBatch:
        """One padded batch of documents for `embed_documents`."""
        tokens = self.tokenizer.tokenize_documents(texts)
        self.tokenizer.warn_if_cut("document", tokens.truncations)
        token_ids = tokens.ids
        return pad(token_ids, [len(ids) for ids in token_ids], _keep(token_ids, self.contract.skip_tokens))

    def batch_queries(self, texts: Sequence[str]) -> TokenBatch:
        """One padded batch of queries for `embed_queries`."""
        token_ids, attended = self._query_tokens(texts)
        return pad(token_ids, attended, _keep(token_ids, self.contract.query_skip_tokens))

    def embed_queries(self, batch: TokenBatch) -> EmbeddedTexts:
        """Float32 vectors of a batch of queries and what the scorer makes their tokens weigh; differentiable."""
        return self.model.queries(batch.to(self.device))

    def embed_documents(self, batch: TokenBatch) -> EmbeddedTexts:
        """The same of a batch of documents."""
        return self.model.documents(batch.to(self.device))

    def with_scorer(self, name: str, settings: Config | None = None) -> "Encoder":
        """The same encoder for another scorer. Heads that it needs are new, drawn from torch's random numbers; it shares all other weights.

        Args:
            name: of SCORERS.
            settings: of that scorer; None: the defaults.

        Raises:
            ConfigError: if the checkpoint has been trained for something else than maxsim, whose weights mean nothing to other scorers.
        """
        have = self.contract.scorer
        kind = SCORERS[name]
        settings = kind.Settings() if settings is None else settings
        if have not in ("maxsim", name):
            raise ConfigError(
                f"{self.contract.checkpoint} was trained for scorer {have}; "
                f"train it with --scorer {have}, or start from a maxsim checkpoint"
            )
        scorer = kind(self.contract.dim, settings)
        if have == name:
            scorer.load_state_dict(self.model.scorer.state_dict())
        network = Network(self.model.backbone, self.model.projections, self.model.normalize, scorer.to(self.device)).eval()
        contract = self.contract.model_copy(update={"scorer": name, "weighs": scorer.weighs, "weights_digest": weights_digest(network)})
        return Encoder(contract, TextTokenizer(contract, self.tokenizer.tokenizer), network, self.batch_tokens)

    def save(self, folder: str | Path) -> None:
        """Writes a checkpoint that `load`, PyLate and sentence-transformers load, in the precision that the encoder has now.

        Raises:
            ConfigError: if the folder is not empty.
        """
        checkpoint.save(folder, self.model, self.tokenizer.tokenizer, self.contract)

    def _query_tokens(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[int]]:
        """Token ids, and how many of them (all, or all before the expansion tokens) are attended to."""
        tokens = self.tokenizer.tokenize_queries(texts)
        self.tokenizer.warn_if_cut("query", tokens.truncations)
        bare = tokens.ids
        expanded = [self.tokenizer.expand(ids) for ids in bare]
        return expanded, [len(ids) for ids in (expanded if self.contract.attend_to_expansion else bare)]

    def _batches(self, lengths: Sequence[int], attended: Sequence[int]) -> list[np.ndarray]:
        """The texts that are computed together. No result depends on them: texts that would be padded go one by one on a CPU."""
        if self.device.type != "cpu":
            return list(group_by_length(lengths, self.batch_tokens))
        if len(lengths) == 1 or not self.model.needs_no_padding:
            return list(group_by_length(lengths, 1))
        per_thread = max(THREAD_TOKENS, math.ceil(sum(lengths) / torch.get_num_threads()))
        together = np.flatnonzero(np.asarray(attended))
        batches = [together[rows] for rows in group_by_length([lengths[row] for row in together], min(self.batch_tokens, per_thread))]
        return batches + [np.array([row]) for row in np.setdiff1d(np.arange(len(lengths)), together)]

    @torch.inference_mode()
    def _encode(
        self,
        token_ids: Sequence[np.ndarray],
        attended: Sequence[int],
        skip: Sequence[int],
        names: Sequence[str] | None,
        embed: Callable[[TokenBatch], EmbeddedTexts],
    ) -> TokenEmbeddings:
        names = [str(number) for number in range(len(token_ids))] if names is None else id_list("ids", names)
        if len(names) != len(token_ids):
            raise ConfigError(f"{len(token_ids)} texts need as many ids, not {len(names)}")
        keep = _keep(token_ids, skip)
        offsets = np.concatenate([[0], np.cumsum([kept.sum() for kept in keep])]).astype(np.int64)
        values, weights = np.empty((offsets[-1], self.contract.dim), np.float16), None
        if self.model.training:  # it goes through all modules, half a millisecond for every query
            self.model.eval()

        def embedded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
            batch = pad([token_ids[row] for row in rows], [attended[row] for row in rows], [keep[row] for row in rows])
            texts = embed(batch)
            found = texts.vectors[texts.mask].half().cpu().numpy()
            return rows, found, None if texts.weights is None else texts.weights[texts.mask].float().cpu().numpy()

        lengths = [len(ids) for ids in token_ids]
        for rows, found, weighed in spread(embedded, self._batches(lengths, attended), self.device):
            places = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
            values[places] = found
            if weighed is not None:
                weights = np.empty(offsets[-1], np.float32) if weights is None else weights
                weights[places] = weighed
        kept_ids = [ids[kept] for ids, kept in zip(token_ids, keep, strict=True)]
        flat_ids = np.concatenate(kept_ids).astype(np.int32) if kept_ids else np.empty(0, np.int32)
        return TokenEmbeddings(values, offsets, names, flat_ids, weights)


def weights_digest(network: Network) -> str:
    """sha256 (hex) over the names, shapes and bytes of the weights that a network uses, and over what its projections and its scorer
    do with theirs."""
    sha = hashlib.sha256()
    for projection in network.projections:
        sha.update(f"{type(projection.activation).__name__} {projection.use_residual};".encode())
    sha.update(b"" if network.scorer.name == "maxsim" else canonical_json(network.scorer.settings.model_dump(mode="json")))
    for name, tensor in sorted(network.state_dict().items()):
        if name.startswith("backbone.pooler."):
            continue
        sha.update(f"{name} {list(tensor.shape)} {tensor.dtype};".encode())
        sha.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()


def choose_device(name: str) -> torch.device:
    """The device that EncoderConfig.device names.

    Raises:
        ConfigError: if it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is no device; choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"there is no {name} here ({torch.cuda.device_count()} CUDA devices); choose auto or cpu")
    return device


def default_batch_tokens(network: Network) -> int:
    """Padded tokens a batch that suit where a network lies and what it multiplies."""
    parameter = next(network.parameters())
    if parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16:
        return BFLOAT16_BATCH_TOKENS
    return BATCH_TOKENS.get(parameter.device.type, BATCH_TOKENS["cpu"])


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The number format that EncoderConfig.precision names; auto takes the fastest one that the device multiplies natively."""
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if native_bfloat16() else torch.float32


def _changes(config: EncoderConfig, parts: Parts) -> dict:
    """The conventions that a configuration changes."""
    changes = {
        name: getattr(config, name)
        for name in ("query_length", "document_length", "query_expansion", "attend_to_expansion", "pooling_factor")
        if getattr(config, name) is not None
    }
    if config.query_expansion:
        token = parts.conventions.get("expansion_token") or expansion_token(parts.tokenizer)
        if token is None:
            raise ConfigError(f"query_expansion needs a mask, end or padding token, and {config.checkpoint} has none; leave it off")
        changes["expansion_token"] = token
    if config.query_expansion is False:
        changes |= {"attend_to_expansion": False, "expansion_token": None, "expansion_length": None}
    if config.skip_punctuation is not None:
        changes["skip_tokens"] = punctuation_ids(parts.tokenizer) if config.skip_punctuation else ()
    return changes


def _keep(token_ids: Sequence[np.ndarray], skip: Sequence[int]) -> list[np.ndarray]:
    return [~np.isin(ids, np.array(skip, np.int32)) for ids in token_ids]


def resolve_checkpoint_name(name: str) -> str:
    """A checkpoint's name, or its folder as every process of this machine finds it."""
    path = storage.local_path(name) if storage.is_local(name) else None
    return str(path.resolve()) if path and path.exists() else name
