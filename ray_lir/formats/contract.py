"""EncoderContract: every convention that decides what a text's token embeddings are."""

from ray_lir.config import Config, digest
from ray_lir.errors import IncompatibleError


class EncoderContract(Config):
    """The conventions of ALGORITHMS 1.1 to 1.3 as data. Two encoders with one fingerprint give interchangeable vectors."""

    checkpoint: str
    """Where the weights came from: a name or folder, for people; not part of the fingerprint."""
    weights_digest: str
    """sha256 over the names, shapes and bytes of all weights."""
    dim: int
    """Dimensions of a token embedding."""
    scorer: str = "maxsim"
    query_marker: str | None = None
    """Token inserted at position 1 of every query ([Q]), if any."""
    document_marker: str | None = None
    query_prompt: str = ""
    """Text put before every query ("search_query: "), if any; after the marker."""
    document_prompt: str = ""
    query_length: int
    """Longest query in tokens, with special tokens and marker."""
    document_length: int
    lower_case: bool = False
    """Lower-case the text before tokenising (XTR), whatever the tokeniser itself does."""
    query_expansion: bool = False
    """Pad queries with `expansion_token`, kept as query vectors."""
    expansion_length: int | None = None
    """Tokens that queries are padded to, at least; None: query_length."""
    attend_to_expansion: bool = False
    expansion_token: str | None = None
    skip_tokens: tuple[int, ...] = ()
    """Vocabulary ids that are encoded in documents, then left out of the embeddings."""
    query_skip_tokens: tuple[int, ...] = ()
    """The same for queries."""
    normalize: bool = True
    """L2-normalise each token embedding (zero stays zero)."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything but the checkpoint's name.

        Fields at their defaults are left out, so that a convention added later does not disown older embeddings.
        """
        return digest(self.model_dump(mode="json", exclude={"checkpoint"}, exclude_defaults=True))[:16]


def check_same_encoder(have: EncoderContract, want: EncoderContract, have_name: str, want_name: str) -> None:
    """Raises IncompatibleError, naming the first field that differs, unless both give interchangeable vectors."""
    if have.fingerprint == want.fingerprint:
        return
    ours, theirs = have.model_dump(exclude={"checkpoint"}), want.model_dump(exclude={"checkpoint"})
    field = next(name for name in ours if ours[name] != theirs[name])
    raise IncompatibleError(
        f"{have_name} (checkpoint {have.checkpoint}) does not fit {want_name} (checkpoint {want.checkpoint}): "
        f"{field} is {_short(ours[field])} against {_short(theirs[field])}; use the encoder {want_name} was made with"
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:20] + "..."
