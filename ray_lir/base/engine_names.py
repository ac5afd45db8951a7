"""The registry of engines. Engine NAME is `ENGINE` in ray_lir/engines/NAME.py.

Only the names are here, so that help texts and the HTTP client, which list them, load no NumPy.
"""

ENGINE_NAMES = ("exact", "scan", "plaid", "warp", "xtr", "bm25", "hybrid")
CHOICES = f"auto, {', '.join(ENGINE_NAMES[:-1])} or {ENGINE_NAMES[-1]}"
"""The values of an option that chooses an engine, for help texts."""
