"""Starts the search service over an index on this machine, and serves until it is interrupted."""

import sys
from importlib import import_module

from .ray_env import set_switches

if __name__ == "__main__":
    cli = import_module(f"{(__package__ or '').removesuffix('serving')}jobs.cli")
    with cli.ending_in_one_line():
        if not {"-h", "--help"} & set(sys.argv):
            set_switches()
        from .foreground import main  # Serve reads the switches when it is imported

        main()
