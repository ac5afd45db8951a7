"""The command line. Each job is `python -m jobs.<verb>`, or `ray-lir <verb>` if the wheel is installed."""
