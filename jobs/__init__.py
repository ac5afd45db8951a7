"""The jobs: each is `python -m jobs.<verb>`, or `ray-lir <verb>` once installed."""
