"""EncoderContract: every convention that decides what a text's token embeddings are."""

from typing import Annotated, Literal

from pydantic import Field

from ray_lir.base.config import Config, digest
from ray_lir.base.errors import IncompatibleError

Name = Annotated[str, Field(max_length=4096)]
Text = Annotated[str, Field(max_length=1 << 16)]
Length = Annotated[int, Field(ge=1, le=1 << 24)]
TokenIds = tuple[Annotated[int, Field(ge=0, le=1 << 32)], ...]


class EncoderContract(Config):
    """The conventions of
    docs/algorithms.md#11-token-sequence to 1.3 as data. Two encoders with one fingerprint give interchangeable vectors."""

    checkpoint: Name
    """Where the weights came from: a name or folder, for people; not part of the fingerprint."""
    weights_digest: Name
    """sha256 over the names, shapes and bytes of all weights."""
    dim: Annotated[int, Field(ge=1, le=1 << 16)]
    """Dimensions of a token embedding."""
    scorer: Name = "maxsim"
    weighs: tuple[Literal["queries", "documents"], ...] = Field((), exclude_if=lambda sides: not sides)
    """Texts that come with a weight for each token, which the scorer cannot do without."""
    query_marker: Name | None = None
    """Token inserted at position 1 of every query ([Q]), if any."""
    document_marker: Name | None = None
    query_prompt: Text = ""
    """Text put before every query ("search_query: "), if any; after the marker."""
    document_prompt: Text = ""
    query_length: Length
    """Longest query in tokens, with special tokens and marker."""
    document_length: Length
    lower_case: bool = False
    """Lower-case the text before tokenising (XTR), whatever the tokeniser itself does."""
    query_expansion: bool = False
    """Pad queries with `expansion_token`, kept as query vectors."""
    expansion_length: Length | None = None
    """Tokens that queries are padded to, at least; None: query_length."""
    attend_to_expansion: bool = False
    expansion_token: Name | None = None
    skip_tokens: TokenIds = ()
    """Vocabulary ids that are encoded in documents, then left out of the embeddings."""
    query_skip_tokens: TokenIds = ()
    """The same for queries."""
    normalize: bool = True
    """L2-normalise each token embedding (zero stays zero)."""
    pooling_factor: int = Field(1, ge=1, exclude_if=lambda factor: factor == 1)
    """Tokens of a document over its vectors (embeddings/pooling.py); 1: a vector a token."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything but the checkpoint's name.

        Fields at their defaults are left out, so that a convention added later does not disown older embeddings.
        """
        return digest(self.model_dump(mode="json", exclude={"checkpoint"}, exclude_defaults=True))[:16]


def check_weights(contract: EncoderContract, side: Literal["queries", "documents"], has_weights: bool) -> None:
    """Raises IncompatibleError unless token embeddings have weights exactly if the contract says that these texts are weighed."""
    if has_weights == (side in contract.weighs):
        return
    if has_weights:
        raise IncompatibleError(
            f"the {side} have token weights, and scorer {contract.scorer} of {contract.checkpoint} weighs none of theirs; "
            "leave them out, or encode with a checkpoint that does"
        )
    raise IncompatibleError(
        f"the {side} have no token weights, which scorer {contract.scorer} needs; "
        f"encode them with {contract.checkpoint} and keep the weights"
    )


def check_same_encoder(have: EncoderContract, want: EncoderContract, have_name: str, want_name: str) -> None:
    """Raises IncompatibleError, naming the first field that differs, unless both give interchangeable vectors."""
    if have.fingerprint == want.fingerprint:
        return
    field = next(name for name in EncoderContract.model_fields if name != "checkpoint" and getattr(have, name) != getattr(want, name))
    raise IncompatibleError(
        f"{have_name} (checkpoint {have.checkpoint}) does not fit {want_name} (checkpoint {want.checkpoint}): "
        f"{field} is {_short(getattr(have, field))} against {_short(getattr(want, field))}; use the encoder {want_name} was made with"
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:20] + "..."
