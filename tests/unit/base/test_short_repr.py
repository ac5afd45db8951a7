import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import pytest

import ray_lir
from ray_lir.base.short_repr import ShortRepr


def with_arrays() -> Iterator[type]:
    """Return all dataclasses of ray_lir with a field of arrays."""
    for module in pkgutil.walk_packages(ray_lir.__path__, "ray_lir."):
        if module.name.startswith(("ray_lir.kernels.cuda", "ray_lir.moved", "ray_lir.distributed", "ray_lir.integrations")):
            continue
        found = importlib.import_module(module.name)
        for kind in vars(found).values():
            if isinstance(kind, type) and kind.__module__ == module.name and is_dataclass(kind):
                types = [str(field.type) for field in fields(kind) if "Callable" not in str(field.type)]
                if any(name in text for text in types for name in ("ndarray", "torch.Tensor", "pyarrow.lib.Table")):
                    yield kind


@pytest.mark.parametrize("kind", with_arrays(), ids=lambda kind: kind.__name__)
def test_dataclasses_with_arrays_compare_by_identity_and_have_a_short_repr(kind: type) -> None:
    assert kind.__eq__ is object.__eq__ and kind.__hash__ is object.__hash__
    assert not kind.__dataclass_params__.repr and kind.__repr__ is not object.__repr__


def test_a_repr_shows_types_and_shapes() -> None:
    @dataclass(frozen=True, eq=False, repr=False)
    class Held(ShortRepr):
        rows: np.ndarray
        names: list[str]
        count: int | None = None

    assert repr(Held(np.zeros((2, 3), np.float32), ["a"] * 100)) == "Held(rows=float32[2, 3], names=100 items, count=None)"
