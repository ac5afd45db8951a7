"""The library's steps spread over machines: the only part of ray_lir that imports Ray."""
