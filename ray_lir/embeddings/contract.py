"""EncoderContract: every convention that decides what a text's token embeddings are."""

from typing import Annotated, Literal

from pydantic import Field

from ray_lir.base.config import AttentionChanges, Config, digest
from ray_lir.base.errors import IncompatibleError

Name = Annotated[str, Field(max_length=4096)]
Text = Annotated[str, Field(max_length=1 << 16)]
Length = Annotated[int, Field(ge=1, le=1 << 24)]
TokenIds = tuple[Annotated[int, Field(ge=0, le=1 << 32)], ...]


class Windows(Config):
    """How documents are divided into windows of at most `document_length` tokens (docs/algorithms.md#15-windows)."""

    stride: Length
    """Tokens from the start of a window to the start of the next one, at most. The rest of a window is repeated in the next one."""
    repeat_title: bool = Field(False, exclude_if=lambda repeated: not repeated)
    """Whether every window begins with the document's title."""
    passages: bool = Field(False, exclude_if=lambda passages: not passages)
    """Whether an index stores each window as a passage of its own, and groups the hits by document."""


class EncoderContract(Config):
    """An encoder's conventions as data (docs/algorithms.md#11-token-sequence to 1.3). Encoders with equal fingerprints give
    interchangeable vectors."""

    checkpoint: Name
    """Where the weights came from: a name or folder. It is shown to users and not part of the fingerprint."""
    weights_digest: Name
    """sha256 over the names, shapes and bytes of all weights."""
    dim: Annotated[int, Field(ge=1, le=1 << 16)]
    """Dimensions of a token embedding."""
    scorer: Name = "maxsim"
    weighs: tuple[Literal["queries", "documents"], ...] = Field((), exclude_if=lambda sides: not sides)
    """Sides (queries, documents) for which the scorer needs a weight of each token."""
    attention: AttentionChanges = Field(AttentionChanges(), exclude_if=lambda value: not value)
    """Settings of the scorer attention that differ from those of the checkpoint."""
    query_marker: Name | None = None
    """Token inserted at position 1 of every query ([Q]); None: no marker."""
    document_marker: Name | None = None
    """Token inserted at position 1 of every document ([D]); None: no marker."""
    document_form: Literal["plain", "sentences"] = Field("plain", exclude_if=lambda form: form == "plain")
    """sentences: the last special token ([SEP]) follows the title and each sentence of a document."""
    query_prompt: Text = ""
    """Text put before every query ("search_query: "), after the marker; empty: no prompt."""
    document_prompt: Text = ""
    """Text put before every document."""
    documents: Literal["text", "images"] = Field("text", exclude_if=lambda kind: kind == "text")
    """Kind of the documents; images are encoded by `PageEncoder`."""
    query_length: Length
    """Maximum length of a query in tokens, including special tokens and marker."""
    document_length: Length
    """Maximum length of a document in tokens, including special tokens and marker."""
    lower_case: bool = False
    """Lower-case the text before tokenization (XTR), even if the tokenizer does not."""
    query_expansion: bool = False
    """Pad queries with `expansion_token`; the padding tokens keep their vectors."""
    expansion_length: Length | None = None
    """Minimum number of tokens of an expanded query; None: `query_length`."""
    attend_to_expansion: bool = False
    """Whether other tokens attend to expansion tokens."""
    expansion_token: Name | None = None
    skip_tokens: TokenIds = ()
    """Vocabulary ids that are encoded in documents but left out of the embeddings (the skip list)."""
    query_skip_tokens: TokenIds = ()
    """The skip list of queries."""
    normalize: bool = True
    """Normalize each token vector to length 1; zero vectors stay zero."""
    pooling_factor: int = Field(1, ge=1, exclude_if=lambda factor: factor == 1)
    """Tokens of a document divided by its vectors (embeddings/pooling.py); 1: one vector per token."""
    windows: Windows | None = Field(None, exclude_if=lambda windows: windows is None)
    """How documents are divided into windows; None: documents are truncated at `document_length`."""

    @property
    def has_passages(self) -> bool:
        """Whether an index stores each window of a document as a passage of its own."""
        return self.windows is not None and self.windows.passages

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all fields except `checkpoint`.

        Fields at their defaults are left out, so a convention that is added later does not change the fingerprint of older embeddings.
        """
        return digest(self.model_dump(mode="json", exclude={"checkpoint"}, exclude_defaults=True))[:16]


def check_weights(contract: EncoderContract, side: Literal["queries", "documents"], has_weights: bool) -> None:
    """Check that token embeddings have weights exactly if the contract requires them.

    Args:
        contract: The contract of the encoder.
        side: Which texts were encoded.
        has_weights: Whether the token embeddings have weights.

    Raises:
        IncompatibleError: Weights are missing, or present although the scorer uses none.
    """
    if has_weights == (side in contract.weighs):
        return
    if has_weights:
        raise IncompatibleError(
            f"the {side} have token weights, but scorer {contract.scorer} of {contract.checkpoint} uses no weights of {side}; "
            "leave them out, or encode with a checkpoint that does"
        )
    raise IncompatibleError(
        f"the {side} have no token weights, but scorer {contract.scorer} needs them; "
        f"encode them with {contract.checkpoint} and keep the weights"
    )


def check_same_encoder(have: EncoderContract, want: EncoderContract, have_name: str, want_name: str) -> None:
    """Check that two contracts give interchangeable vectors.

    Args:
        have: The contract of the embeddings or encoder to check.
        want: The contract to match.
        have_name: Name of what `have` belongs to, for the message.
        want_name: Name of what `want` belongs to, for the message.

    Raises:
        IncompatibleError: The contracts differ; the message names the first field that differs.
    """
    if have.fingerprint == want.fingerprint:
        return
    field = next(name for name in EncoderContract.model_fields if name != "checkpoint" and getattr(have, name) != getattr(want, name))
    raise IncompatibleError(
        f"{have_name} (checkpoint {have.checkpoint}) does not fit {want_name} (checkpoint {want.checkpoint}): "
        f"{field} is {_short(getattr(have, field))}, not {_short(getattr(want, field))}; use the encoder that made {want_name}"
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:20] + "..."
