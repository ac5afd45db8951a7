"""Planning a collection before it exists: bytes, work and latency, from measured constants and a simulation."""
