"""The grid of an image page: which part of the page each vector of a document stands for.

Encoders such as ColPali cut a page into rows and columns of patches, and give one vector to each. The grid is stored in the metadata field
`page` of a document, with a small picture of the page: {"rows": 32, "columns": 32, "first": 0, "thumbnail": "data:image/webp;base64,..."}.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from ray_lir.base.config import Config

FIELD = "page"
"""Metadata field that holds the grid."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a page, as fractions of its width and height."""
Count = Annotated[int, Field(ge=1, le=1 << 12)]


class PageGrid(Config):
    """Patches of a page, row by row: vector `first` + r * columns + c of the document is the patch in row r and column c."""

    model_config = ConfigDict(extra="ignore", strict=True)

    rows: Count
    columns: Count
    first: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    """Number of the vector of the first patch; vectors before and after the patches stand for no place on the page."""

    @classmethod
    def of(cls, metadata: Mapping[str, Any] | None) -> "PageGrid | None":
        """Return the grid in a document's metadata; None if there is none, or if it is not a grid."""
        stored = (metadata or {}).get(FIELD)
        if not isinstance(stored, Mapping):
            return None
        try:
            return cls.model_validate(dict(stored))
        except ValidationError:
            return None

    def box(self, vector: int) -> Box | None:
        """Return the part of the page that a vector of the document stands for; None if it stands for no patch."""
        row, column = divmod(vector - self.first, self.columns)
        if not 0 <= row < self.rows:
            return None
        return column / self.columns, row / self.rows, (column + 1) / self.columns, (row + 1) / self.rows
