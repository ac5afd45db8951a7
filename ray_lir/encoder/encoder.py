"""Encoder: a checkpoint and its contract; it turns queries and documents into TokenEmbeddings (docs/algorithms.md#1-encoding)."""

import copy
import hashlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pydantic import ValidationError

from ray_lir import storage
from ray_lir.base.arguments import id_list, text_list
from ray_lir.base.config import AttentionChanges, Config, EncoderConfig, WindowsConfig, canonical_json
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.base.forking import fork_safe
from ray_lir.embeddings.cards import CardFacts, model_card
from ray_lir.embeddings.contract import EncoderContract, Windows, check_weights
from ray_lir.embeddings.pooling import pool_tokens
from ray_lir.embeddings.relation import Relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder import checkpoint, layouts
from ray_lir.encoder.bert import Bert
from ray_lir.encoder.layouts.loading import Parts, expansion_token, longest_input, punctuation_ids
from ray_lir.encoder.network import Network
from ray_lir.encoder.tokenization import TextTokenizer
from ray_lir.encoder.torch_threads import spread
from ray_lir.encoder.unpadded_bert import has_tokens, native_bfloat16
from ray_lir.scorers import SCORERS, Attention, Scorer
from ray_lir.scorers.attention import changed_settings
from ray_lir.scorers.batches import EmbeddedTexts, TokenBatch, group_by_length, pad, padded
from ray_lir.storage import hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Default batch size in padded tokens, by device type. The activations of 1024 tokens fit into a CPU's caches: on an AVX2 core, MiniLM
encodes 15 to 30% more documents per second than with 8192."""
BFLOAT16_BATCH_TOKENS = 2048
"""Default on a CPU in bfloat16: activations have half the size, and products are so fast that the overhead of calls matters. On AMX,
this encodes 4% more documents per second than 1024 on one core, and 13% more on two cores."""
DEFAULT_OVERLAP = 8
"""By default, 1/8 of a window is repeated in the next one."""
THREAD_TOKENS = 256
"""Minimum number of tokens per thread. If texts fill fewer batches than there are threads, batches become smaller, down to this size."""
_loading = fork_safe(threading.RLock())


@dataclass(frozen=True)
class _Source:
    """Where an encoder was loaded from."""

    path: Path
    trust_remote_code: bool

    def load(self, device: torch.device) -> Parts:
        return layouts.load(self.path, self.trust_remote_code, light=device.type == "cpu")

    def load_again(self, digest: str) -> Parts:
        """Load the same weights with transformers."""
        parts = layouts.load(self.path, self.trust_remote_code)
        if weights_digest(parts.network) != digest:
            raise IncompatibleError(f"the weights in {self.path} have changed since they were loaded; load the encoder again")
        return parts


class Encoder:
    """Turns text into token embeddings. A text's vectors do not depend on the other texts of a call.

    Attributes:
        contract: Every convention that decides what the vectors are.
        tokenizer: The tokenizer, which needs no weights.
        batch_tokens: Maximum size of a batch, in padded tokens.
    """

    def __init__(self, contract: EncoderContract, tokenizer: TextTokenizer, model: Network, batch_tokens: int):
        self.contract = contract
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self._network = model
        self._source: _Source | None = None

    @property
    def model(self) -> Network:
        """The network with its scorer, for training, saving and changes.

        `load` and `for_contract` read a plain BERT without transformers if they place it on a CPU, because importing transformers takes
        seconds. The first use of this attribute loads the same weights with transformers, and the encoder computes with them from then on.

        Raises:
            ConfigError: The checkpoint cannot be loaded again.
            IncompatibleError: Its weights have changed.
        """
        with _loading, torch.inference_mode(False):  # weights of an inference mode could not be trained
            if self._source and isinstance(self._network.backbone, Bert):
                parts = self._source.load_again(self.contract.weights_digest)
                change_attention(parts.network.scorer, self.contract.attention)
                self._network = parts.network.eval().place(self.device, next(self._network.parameters()).dtype, self._network.int8)
                self.tokenizer = TextTokenizer(self.contract, parts.tokenizer)
        return self._network

    @classmethod
    def load(cls, config: EncoderConfig | str | os.PathLike[str] = EncoderConfig()) -> "Encoder":
        """Load a checkpoint of any layout (docs/algorithms.md#14-checkpoint-layouts), with the configuration's changes to its conventions.

        `config.projection` is ignored; `fit_projection` fits a projection on a corpus.

        Args:
            config: A configuration, or the path, URL or name of a checkpoint.

        Raises:
            ConfigError: There is no such checkpoint, it cannot be loaded, or a change is not possible for it.
        """
        config = config if isinstance(config, EncoderConfig) else EncoderConfig(checkpoint=storage.path_text(config))
        source = _Source(checkpoint.find(config.checkpoint), config.trust_remote_code)
        parts = source.load(choose_device(config.device))
        digest = weights_digest(parts.network)
        change_attention(parts.network.scorer, config.attention)
        conventions = {**parts.conventions, **_changes(config, parts)}
        try:
            contract = EncoderContract(
                checkpoint=resolve_checkpoint_name(config.checkpoint),
                weights_digest=digest,
                dim=parts.network.dim,
                weighs=parts.network.scorer.weighs,
                **conventions,
            )
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"{config.checkpoint} has {name} {first['input']!r:.80} ({first['msg']}); correct the checkpoint's settings"
            ) from None
        limit = longest_input(parts.network.backbone.config)
        for name in ("query_length", "document_length"):
            if limit and getattr(contract, name) > limit:
                raise ConfigError(f"{name} {getattr(contract, name)} exceeds the {limit} positions of {config.checkpoint}; lower it")
        return cls._placed(contract, parts, config, source)

    @classmethod
    def for_contract(cls, contract: EncoderContract, config: EncoderConfig | None = None) -> "Encoder":
        """Load the encoder that a contract was made with, such as the contract of an index, with the contract's conventions.

        Args:
            contract: The contract to satisfy.
            config: Where the weights are now, device, precision and batch_tokens; None: the contract's checkpoint with defaults. A
                `query_length` replaces that of the contract: it changes queries only.

        Raises:
            ConfigError: There is no such checkpoint, or it cannot be loaded.
            IncompatibleError: The checkpoint's weights or scorer differ from the contract's.
        """
        config = config or EncoderConfig(checkpoint=contract.checkpoint)
        if contract.documents == "images":
            from ray_lir.encoder.page_encoder import PageEncoder

            return cast(Encoder, PageEncoder.for_contract(contract, config))  # has what searches and the service use
        source = _Source(checkpoint.find(config.checkpoint), config.trust_remote_code)
        parts = source.load(choose_device(config.device))
        if parts.network.scorer.name != contract.scorer:
            raise IncompatibleError(
                f"{config.checkpoint} is for scorer {parts.network.scorer.name}, but scorer {contract.scorer} is required; "
                f"give the checkpoint {contract.checkpoint}"
            )
        if weights_digest(parts.network) != contract.weights_digest:
            raise IncompatibleError(
                f"{config.checkpoint} has other weights than {contract.checkpoint} had at encoding time; give the original checkpoint"
            )
        if config.query_length is not None:
            limit = longest_input(parts.network.backbone.config)
            if limit and config.query_length > limit:
                raise ConfigError(f"query_length {config.query_length} exceeds the {limit} positions of {config.checkpoint}; lower it")
            contract = contract.model_copy(update={"query_length": config.query_length})
        change_attention(parts.network.scorer, contract.attention)
        return cls._placed(contract, parts, config, source)

    @classmethod
    def _placed(cls, contract: EncoderContract, parts: Parts, config: EncoderConfig, source: "_Source") -> "Encoder":
        device = choose_device(config.device)
        network = parts.network.eval().place(device, choose_dtype(config.precision, device), config.precision == "int8")
        tokenizer = TextTokenizer(contract, parts.tokenizer)
        tokenizer.check_markers(_vocabulary_size(network))
        encoder = cls(contract, tokenizer, network, config.batch_tokens or default_batch_tokens(network))
        encoder._source = source
        return encoder

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return next(self._network.parameters()).device

    @property
    def relation(self) -> Relation | None:
        """What the scorer needs in search beside vectors and token weights ; None if it needs no more."""
        return self._network.scorer.to_arrays()

    def encode_documents(self, texts: Sequence[str], doc_ids: Sequence[str] | None = None) -> TokenEmbeddings:
        """Return documents as token embeddings, without tokens of the skip list, and pooled if the contract says so.

        If the contract has windows, a document's vectors are those of all its windows.

        `weights` are the scorer's token weights (rho of docs/algorithms.md#7-one-factored-form), if it weights documents.

        Args:
            texts: N documents.
            doc_ids: N ids; None: the ids are "0", "1", ...

        Raises:
            ConfigError: A text is not a string, or the number of ids differs from the number of texts.
        """
        tokens = self.tokenizer.tokenize_documents(texts)
        self.tokenizer.warn_if_cut("document", tokens.truncations)
        if tokens.windows is None:
            return self.encode_document_tokens(tokens.ids, doc_ids)
        names = [str(number) for number in range(len(tokens.windows))] if doc_ids is None else id_list("doc_ids", doc_ids)
        if len(names) != len(tokens.windows):
            raise ConfigError(f"{len(tokens.windows)} texts need {len(tokens.windows)} ids, not {len(names)}; give one id per text")
        return self.encode_document_tokens(tokens.ids).joined([len(spans) for spans in tokens.windows], names)

    def encode_document_tokens(self, token_ids: Sequence[np.ndarray], doc_ids: Sequence[str] | None = None) -> TokenEmbeddings:
        """Return the token embeddings of texts or windows from their token ids, which may come from another machine."""
        token_ids = list(token_ids)
        embeddings = self._encode(token_ids, [len(ids) for ids in token_ids], self.contract.skip_tokens, doc_ids, Network.documents)
        return pool_tokens(embeddings, self.contract.pooling_factor)

    def encode_queries(self, texts: Sequence[str], query_ids: Sequence[str] | None = None) -> TokenEmbeddings:
        """Return queries as token embeddings, including expansion tokens.

        `weights` are the scorer's token weights (u of docs/algorithms.md#7-one-factored-form), if it weights queries. `texts` are the
        queries, for lexical and hybrid search.

        Args:
            texts: N queries.
            query_ids: N ids; None: the ids are "0", "1", ...

        Raises:
            ConfigError: A text is not a string, or the number of ids differs from the number of texts.
        """
        texts = text_list("texts", texts)
        embeddings = self._encode(*self._query_tokens(texts), self.contract.query_skip_tokens, query_ids, Network.queries)
        return replace(embeddings, texts=texts)

    @torch.inference_mode()
    def scores(self, queries: TokenEmbeddings, documents: TokenEmbeddings) -> np.ndarray:
        """Return the scorer's exact score of each pair, [queries, documents] float32; -inf for a document without tokens.

        An index gives the same scores, except for compression error. Sums are computed in float64, so a score depends neither on other
        pairs nor on threads.

        Args:
            queries: Queries that this encoder encoded.
            documents: Documents that this encoder encoded.

        Raises:
            IncompatibleError: Token weights that the scorer needs are missing, or present although it uses none.
        """
        check_weights(self.contract, "queries", queries.weights is not None)
        check_weights(self.contract, "documents", documents.weights is not None)
        if not documents.num_tokens:
            return np.full((len(queries), len(documents)), -np.inf, np.float32)
        scorer = copy.deepcopy(self._network.scorer).eval().double()
        texts = padded(queries, self.device, torch.float64), padded(documents, self.device, torch.float64)
        return scorer(*texts).float().cpu().numpy()

    def batch_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return one padded batch of documents for `embed_documents`."""
        tokens = self.tokenizer.tokenize_documents(texts)
        self.tokenizer.warn_if_cut("document", tokens.truncations)
        token_ids = self._checked(tokens.ids)
        return pad(token_ids, [len(ids) for ids in token_ids], _keep(token_ids, self.contract.skip_tokens))

    def batch_queries(self, texts: Sequence[str]) -> TokenBatch:
        """Return one padded batch of queries for `embed_queries`."""
        tokens, attended = self._query_tokens(texts)
        token_ids = self._checked(tokens)
        return pad(token_ids, attended, _keep(token_ids, self.contract.query_skip_tokens))

    def embed_queries(self, batch: TokenBatch) -> EmbeddedTexts:
        """Return float32 vectors and the scorer's token weights of a batch of queries; differentiable."""
        return self.model.queries(batch.to(self.device))

    def embed_documents(self, batch: TokenBatch) -> EmbeddedTexts:
        """Return float32 vectors and the scorer's token weights of a batch of documents; differentiable."""
        return self.model.documents(batch.to(self.device))

    def with_scorer(self, name: str, settings: Config | None = None) -> "Encoder":
        """Return the same encoder with another scorer. New heads are initialized with torch's random numbers; all other weights are shared.

        If the checkpoint has heads of that scorer, they are kept.

        Args:
            name: A key of SCORERS.
            settings: Settings of that scorer; None: the defaults.

        Raises:
            ConfigError: The checkpoint was trained for a scorer other than maxsim and `name`; its weights have no meaning for other
                scorers.
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
            scorer.load_state_dict(self.model.scorer.state_dict(), strict=False)  # sides with a gate can differ
        network = Network(self.model.backbone, self.model.layers, self.model.normalize, scorer.to(self.device)).eval()
        network.int8 = self.model.int8
        changes = {"scorer": name, "weighs": scorer.weighs, "weights_digest": weights_digest(network), "attention": AttentionChanges()}
        contract = self.contract.model_copy(update=changes)
        return Encoder(contract, TextTokenizer(contract, self.tokenizer.tokenizer), network, self.batch_tokens)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint that `load`, PyLate and sentence-transformers can load, in the encoder's current precision.

        Raises:
            ConfigError: The folder is not empty.
        """
        network = self.model  # loads the tokenizer that can be saved, too
        checkpoint.save(folder, network, cast("PreTrainedTokenizerBase", self.tokenizer.tokenizer), self.contract)

    def push_to_hub(
        self,
        repo: str | None = None,
        *,
        folder: storage.PathOrUrl | None = None,
        facts: CardFacts = CardFacts(),
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload the checkpoint with a model card to the Hugging Face hub, or write both to a local folder.

        Besides the files that `save` writes there are README.md (the card) and ray_lir.json (contract and provenance).

        Args:
            repo: Name of the repository, OWNER/NAME. None: write to `folder`.
            folder: A new local folder.
            facts: Description, training data, evaluations, licence and provenance for the card.
            private: Whether a new repository is private.
            token: Token of the hub. None: the one that `hf auth login` or HF_TOKEN has stored.

        Returns:
            The address of the repository, or the path of the folder.

        Raises:
            ConfigError: The checkpoint cannot be saved, or the hub refuses the upload.
        """
        name = repo or storage.base_name(folder or self.contract.checkpoint)
        with tempfile.TemporaryDirectory(prefix="ray_lir-") as scratch:
            saved = Path(scratch, "checkpoint")
            self.save(saved)
            # Saving may add a projection, and so change the digest of the weights.
            contract = Encoder.load(EncoderConfig(checkpoint=str(saved), device="cpu")).contract.model_copy(update={"checkpoint": name})
            described = {
                "contract": contract.model_dump(mode="json"),
                "fingerprint": contract.fingerprint,
                "provenance": facts.provenance,
            }
            content = hub.folder_content(saved)
            content["ray_lir.json"] = json.dumps(described, indent=2, ensure_ascii=False).encode()
            content["README.md"] = model_card(contract, name, facts).encode()
            return hub.publish_files(content, repo, folder, private=private, token=token, message="Upload encoder with ray_lir")

    def _query_tokens(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[int]]:
        """Return token ids, and how many of them are attended to: all, or all before the expansion tokens."""
        tokens = self.tokenizer.tokenize_queries(texts)
        self.tokenizer.warn_if_cut("query", tokens.truncations)
        bare = tokens.ids
        expanded = [self.tokenizer.expand(ids) for ids in bare]
        return expanded, [len(ids) for ids in (expanded if self.contract.attend_to_expansion else bare)]

    def _checked(self, token_ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        self.tokenizer.check_ids(token_ids, _vocabulary_size(self._network))
        return token_ids

    def _batches(self, lengths: Sequence[int], attended: Sequence[int]) -> list[np.ndarray]:
        """Return the texts of each batch. Batches do not affect results: on a CPU, texts that would need padding are computed one by
        one."""
        if self.device.type != "cpu":
            return list(group_by_length(lengths, self.batch_tokens))
        if len(lengths) == 1 or not self._network.needs_no_padding:
            return list(group_by_length(lengths, 1))
        per_thread = max(THREAD_TOKENS, math.ceil(sum(lengths) / torch.get_num_threads()))
        together = np.flatnonzero(np.asarray(attended))
        batches = [together[rows] for rows in group_by_length([lengths[int(row)] for row in together], min(self.batch_tokens, per_thread))]
        return batches + [np.array([row]) for row in np.setdiff1d(np.arange(len(lengths)), together)]

    @torch.inference_mode()
    def _encode(
        self,
        token_ids: Sequence[np.ndarray],
        attended: Sequence[int],
        skip: Sequence[int],
        names: Sequence[str] | None,
        embed: Callable[[Network, TokenBatch], EmbeddedTexts],
    ) -> TokenEmbeddings:
        names = [str(number) for number in range(len(token_ids))] if names is None else id_list("ids", names)
        if len(names) != len(token_ids):
            raise ConfigError(f"{len(token_ids)} texts need {len(token_ids)} ids, not {len(names)}; give one id per text")
        token_ids = self._checked(token_ids)
        keep = _keep(token_ids, skip)
        offsets = np.concatenate([[0], np.cumsum([kept.sum() for kept in keep])]).astype(np.int64)
        values = np.empty((offsets[-1], self.contract.dim), np.float16)
        weights: np.ndarray | None = None
        attention: np.ndarray | None = None
        if self._network.training:  # eval() visits all modules, which takes half a millisecond per query
            self._network.eval()

        def embedded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
            batch = pad([token_ids[row] for row in rows], [attended[row] for row in rows], [keep[row] for row in rows])
            needs_padding = isinstance(self._network.backbone, Bert) and not has_tokens(batch)  # which `Bert` has no pass for
            texts = embed(self.model if needs_padding else self._network, batch.to(self.device))
            found = texts.vectors[texts.mask].half().cpu().numpy()
            token_weights, received = (
                None if each is None else each[texts.mask].float().cpu().numpy() for each in (texts.weights, texts.attention)
            )
            return rows, found, token_weights, received

        full = np.array([row for row, ids in enumerate(token_ids) if len(ids)], np.int64)  # a tokenizer may make no token of a text
        batches = self._batches([len(token_ids[row]) for row in full], [attended[row] for row in full])
        for rows, found, weighed, received in spread(embedded, [full[rows] for rows in batches], self.device):
            places = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
            values[places] = found
            if weighed is not None:
                weights = np.empty(offsets[-1], np.float32) if weights is None else weights
                weights[places] = weighed
            if received is not None:
                attention = np.empty((offsets[-1], 2), np.float32) if attention is None else attention
                attention[places] = received
        kept_ids = [ids[kept] for ids, kept in zip(token_ids, keep, strict=True)]
        flat_ids = np.concatenate(kept_ids).astype(np.int32) if kept_ids else np.empty(0, np.int32)
        return TokenEmbeddings(values, offsets, names, flat_ids, weights, attention=attention)


def _vocabulary_size(network: Network) -> int | None:
    """Return the number of token vectors of a model; None: unknown."""
    return getattr(network.backbone.config, "vocab_size", None)


def change_attention(scorer: Scorer, changes: AttentionChanges) -> None:
    """Change the settings of a scorer that need no training.

    Raises:
        ConfigError: There are changes, and the scorer is not attention.
    """
    if not changes:
        return
    if not isinstance(scorer, Attention):
        raise ConfigError(
            f"the settings of attention need a checkpoint of the scorer attention, and this one is for {scorer.name}; leave them out, or "
            'save one with Encoder.load(name).with_scorer("attention").save(folder)'
        )
    scorer.settings = changed_settings(scorer.settings, changes)


def weights_digest(network: Network) -> str:
    """Return the sha256 (hex) over names, shapes and bytes of the weights in use, and over the settings of projections and scorer."""
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
    """Return the device that EncoderConfig.device names.

    Raises:
        ConfigError: The machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is not a device; choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"this machine has no device {name} ({torch.cuda.device_count()} CUDA devices); choose auto or cpu")
    return device


def default_batch_tokens(network: Network) -> int:
    """Return the default batch size, in padded tokens, for a network's device and number format."""
    parameter = next(network.parameters())
    if parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16:
        return BFLOAT16_BATCH_TOKENS
    return BATCH_TOKENS.get(parameter.device.type, BATCH_TOKENS["cpu"])


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of weights for EncoderConfig.precision; auto is the fastest format with native support on the device. With
    int8, weights stay in float32, because their bytes are made for a forward pass (`Network.int8`)."""
    if precision == "int8":
        return torch.float32
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if native_bfloat16() else torch.float32


def _changes(config: EncoderConfig, parts: Parts) -> dict[str, Any]:
    """Return the conventions that a configuration changes."""
    changes = {
        name: getattr(config, name)
        for name in ("query_length", "document_length", "query_expansion", "attend_to_expansion", "pooling_factor", "document_form")
        if getattr(config, name) is not None
    }
    for name in ("query_marker", "document_marker"):
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name) or None
    if config.windows or config.passages:
        changes |= _windows(config, changes.get("document_length", parts.conventions["document_length"]))
    if config.attention:
        changes["attention"] = config.attention
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


def _windows(config: EncoderConfig, document_length: int) -> dict[str, Any]:
    """Return the conventions of windows: their length is the `document_length` of the contract.

    Raises:
        ConfigError: The stride is larger than the length, or the length contradicts `document_length`.
    """
    settings = config.windows or WindowsConfig()
    length = settings.length or document_length
    if config.document_length and config.document_length != length:
        raise ConfigError(f"windows.length {length} differs from document_length {config.document_length}; set only one of them")
    stride = settings.stride or max(1, length - length // DEFAULT_OVERLAP)
    if stride > length:
        raise ConfigError(f"windows.stride {stride} exceeds windows.length {length}, so text would be left out; lower the stride")
    return {"document_length": length, "windows": Windows(stride=stride, repeat_title=settings.repeat_title, passages=config.passages)}


def _keep(token_ids: Sequence[np.ndarray], skip: Sequence[int]) -> list[np.ndarray]:
    return [~np.isin(ids, np.array(skip, np.int32)) for ids in token_ids]


def resolve_checkpoint_name(name: str) -> str:
    """Return a checkpoint's name, or its absolute folder if it is local, so that every process of this machine finds it."""
    path = storage.local_path(name) if storage.is_local(name) else None
    return str(path.resolve()) if path and path.exists() else name
