"""Search engines, one file each. `registry.py` lists them, `stages.py` runs their stages, and `choice.py` is engine `auto`."""

from ray_lir.engines.choice import QUALITIES as QUALITIES
from ray_lir.engines.choice import TUNING as TUNING
from ray_lir.engines.choice import Tuning as Tuning
from ray_lir.engines.choice import choose as choose
from ray_lir.engines.choice import read_tuning as read_tuning
from ray_lir.engines.choice import resolve as resolve
from ray_lir.engines.registry import ENGINES as ENGINES
from ray_lir.engines.registry import SERVED as SERVED
from ray_lir.engines.registry import VECTOR_ENGINES as VECTOR_ENGINES
