"""PageEncoder: token embeddings of images of pages, by a multi-vector checkpoint of sentence-transformers such as ColPali or ColQwen2.

A page of text, tables and figures gets about 1,000 vectors, one a patch. Queries are texts. The package sentence-transformers is
imported when a checkpoint is loaded.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.base.extras import require
from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.page_grid import FIELD, PageGrid
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.embeddings.truncation import Truncation
from ray_lir.encoder.tokenization import TokenSpans

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_PIXELS = 480
"""Longest side of a thumbnail."""
MAX_LENGTH = 1 << 16
"""Limit of query and page lengths in the contract; checkpoints have their own, lower limits."""


@dataclass(frozen=True, eq=False, repr=False)
class EncodedPages(ShortRepr):
    """Pages for `build_index`.

    Attributes:
        embeddings: One document a page.
        metadata: The metadata of each page, with its grid and thumbnail in `page`.
    """

    embeddings: TokenEmbeddings
    metadata: list[dict[str, Any]]


class PageEncoder:
    """Encodes images of pages, and the queries for them.

    Attributes:
        contract: Conventions and weights; an index of pages stores it, and the service loads the same encoder from it.
        tokenizer: Positions of query tokens; this object.

    Example:
        >>> encoder = PageEncoder.load("vidore/colqwen2-v1.0-hf")                           # doctest: +SKIP
        >>> pages = encoder.encode_pages(images, ["report-1", "report-2"])                  # doctest: +SKIP
        >>> ray_lir.build_index(pages.embeddings, "index", contract=encoder.contract,       # doctest: +SKIP
        ...     titles=titles, metadata=pages.metadata)
    """

    def __init__(self, model: Any, checkpoint: str):
        self._model = model
        self._grids: dict[tuple[int, int], PageGrid | None] = {}
        self.tokenizer = self
        self.contract = EncoderContract(
            checkpoint=checkpoint,
            weights_digest=_weights_digest(model),
            dim=self.encode_queries(["page"]).dim,
            documents="images",
            query_length=MAX_LENGTH,
            document_length=MAX_LENGTH,
        )

    @classmethod
    def load(cls, checkpoint: str, device: str = "auto", trust_remote_code: bool = False) -> "PageEncoder":
        """Load a checkpoint.

        Args:
            checkpoint: Folder or Hugging Face name of a multi-vector checkpoint that takes images.
            device: auto, or torch's name of a device.
            trust_remote_code: Run Python code from the checkpoint.

        Raises:
            ConfigError: sentence-transformers is missing, or the checkpoint takes no images.
        """
        require("sentence_transformers", "encoding images")
        from sentence_transformers import MultiVectorEncoder

        try:
            model = MultiVectorEncoder(checkpoint, device=None if device == "auto" else device, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{checkpoint} is not a checkpoint that sentence-transformers can load: {str(error)[:200]}") from None
        if "image" not in model.modalities:
            raise ConfigError(f"{checkpoint} takes no images; give a checkpoint such as ColPali or ColQwen2")
        return cls(model, checkpoint)

    @classmethod
    def for_contract(cls, contract: EncoderContract, config: EncoderConfig | None = None) -> "PageEncoder":
        """Load the encoder that a contract was made with.

        Args:
            contract: The contract of an index of pages.
            config: Where the weights are now, and the device; None: the contract's checkpoint.

        Raises:
            ConfigError: The checkpoint cannot be loaded.
            IncompatibleError: The checkpoint has other weights.
        """
        config = config or EncoderConfig(checkpoint=contract.checkpoint)
        encoder = cls.load(config.checkpoint, config.device, config.trust_remote_code)
        if encoder.contract.weights_digest != contract.weights_digest:
            raise IncompatibleError(
                f"{config.checkpoint} has other weights than {contract.checkpoint} had at encoding time; give the original checkpoint"
            )
        encoder.contract = contract
        return encoder

    def encode_pages(
        self,
        images: Sequence["Image"],
        doc_ids: Sequence[str] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
        batch_size: int = 4,
    ) -> EncodedPages:
        """Return token embeddings of pages, and metadata with their grids and thumbnails.

        Args:
            images: N images.
            doc_ids: N ids; None: "0", "1", ...
            metadata: N dicts, to which `page` is added; None: empty ones.
            batch_size: Images in a forward pass.

        Raises:
            ConfigError: The numbers of images, ids and metadata differ.
        """
        metadata = [{} for _ in images] if metadata is None else list(metadata)
        if len(metadata) != len(images):
            raise ConfigError(f"there are {len(images)} images and {len(metadata)} dicts of metadata; give one for each image")
        images = [image.convert("RGB") for image in images]
        vectors = self._model.encode_document(images, batch_size=batch_size, show_progress_bar=False)
        matrices = [np.asarray(each.float().cpu() if torch.is_tensor(each) else each, np.float32) for each in vectors]
        pages = []
        for image, fields, matrix in zip(images, metadata, matrices, strict=True):
            grid = self._grid(image)
            page: dict[str, Any] = {"thumbnail": thumbnail(image)}
            if grid and grid.first + grid.rows * grid.columns <= len(matrix):
                page |= grid.model_dump()
            pages.append({**fields, FIELD: page})
        return EncodedPages(TokenEmbeddings.of(matrices, doc_ids), pages)

    def encode_queries(self, queries: Sequence[str]) -> TokenEmbeddings:
        """Return token embeddings of texts, with positions as ids."""
        vectors = self._model.encode_query(list(queries), show_progress_bar=False)
        return TokenEmbeddings.of([np.asarray(each.float().cpu() if torch.is_tensor(each) else each, np.float32) for each in vectors])

    def encode_documents(self, texts: Sequence[str]) -> TokenEmbeddings:
        """Raise ConfigError: documents of this encoder are images."""
        raise ConfigError("the documents of this index are images; encode them with ray_lir.encoder.page_encoder.PageEncoder")

    def query_spans(self, query: str) -> TokenSpans:
        """Return the tokens of a query, in the order of its vectors. Tokens outside the text, such as instructions, have span -1."""
        from sentence_transformers.multi_vector_encoder.interpretability import real_query_token_slice

        num_vectors = int(self.encode_queries([query]).lengths[0])
        pieces, spans = [""] * num_vectors, np.full((num_vectors, 2), -1, np.int64)
        words = self._model.tokenizer(query, add_special_tokens=False, return_offsets_mapping=True)
        own = real_query_token_slice(self._model, query)
        if own.stop - own.start == len(words["input_ids"]) and own.stop <= num_vectors:
            pieces[own] = self._model.tokenizer.convert_ids_to_tokens(words["input_ids"])
            spans[own] = words["offset_mapping"]
        return TokenSpans(pieces, spans)

    def document_spans(self, text: str, title_length: int = 0) -> TokenSpans:
        """Return no tokens: vectors of pages stand for parts of an image (`PageGrid`)."""
        return TokenSpans([], np.zeros((0, 2), np.int64))

    def query_truncations(self, texts: Sequence[str]) -> list[Truncation]:
        """Return that no query is cut: the checkpoint has its own limit."""
        return [Truncation(0, 0) for _ in texts]

    document_truncations = query_truncations

    def _grid(self, image: "Image") -> PageGrid | None:
        """Return the grid of an image; None if the checkpoint has no grid of rows and columns. It depends only on the image's size."""
        from sentence_transformers.multi_vector_encoder.interpretability import get_n_patches

        if image.size not in self._grids:
            try:
                columns, rows = get_n_patches(self._model, image.size)
                first = self._first_patch(image, rows * columns)
                self._grids[image.size] = None if first is None else PageGrid(rows=rows, columns=columns, first=first)
            except (NotImplementedError, ValueError):
                self._grids[image.size] = None
        return self._grids[image.size]

    def _first_patch(self, image: "Image", num_patches: int) -> int | None:
        """Return the number of the first patch among an image's vectors; None if the patches are not consecutive vectors."""
        transformer, mask = self._model[0], self._model[-1]
        inputs = transformer.preprocess([image], task="document")
        ids = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
        kept = getattr(mask, "keep_only_token_ids", None)
        ids = [token for token in ids if kept is None or token in kept]
        token = getattr(self._model.processor, "image_token_id", None)
        places = [number for number, each in enumerate(ids) if each == token]
        consecutive = len(places) == num_patches and places[-1] - places[0] == num_patches - 1
        return places[0] if consecutive else None


def thumbnail(image: "Image") -> str:
    """Return a small picture of a page as a data URL, about 10 to 30 kB."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=60)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _weights_digest(model: torch.nn.Module) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {list(tensor.shape)} {tensor.dtype};".encode())
        sha.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()
