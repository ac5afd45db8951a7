"""The names of residencies, for the settings of jobs and the service. index/residency.py chooses one."""

from typing import Literal

Residency = Literal["auto", "memory", "disk"]
"""memory: all arrays are mapped into memory and expected to fit. disk: codes, document lengths and centroids stay in memory; residuals,
scales and token weights are read from the disk for the documents that a search rescores. auto: disk if the index does not fit."""
