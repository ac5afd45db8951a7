"""Import paths of version 0.1 give the current modules."""

import sys
from importlib import import_module

import pytest

from ray_lir.moved import MODULES


@pytest.mark.parametrize("old", MODULES)
def test_an_old_import_path_gives_the_moved_module_with_a_warning(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=MODULES[old]):
        assert import_module(old) is import_module(MODULES[old])
