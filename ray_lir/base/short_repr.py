"""Short representations of dataclasses that hold arrays."""

from dataclasses import fields

MAX_ITEMS = 8


class ShortRepr:
    """Base of dataclasses with arrays: `repr` shows types and shapes instead of numbers. Use with `@dataclass(eq=False, repr=False)`."""

    def __repr__(self) -> str:
        shown = (field.name for field in fields(self) if field.repr)  # type: ignore[arg-type]  # subclasses are dataclasses
        return f"{type(self).__name__}({', '.join(f'{name}={_short(getattr(self, name))}' for name in shown)})"


def _short(value: object) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if hasattr(value, "num_rows"):
        return f"{value.num_rows} rows"
    if isinstance(value, list | tuple | dict) and len(value) > MAX_ITEMS:
        return f"{len(value)} items"
    return repr(value)
