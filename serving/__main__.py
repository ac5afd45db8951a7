"""Starts the search service over an index on this machine, and serves until it is interrupted."""

import sys
from importlib import import_module

from ray_lir.base.extras import require

from .options import Options
from .ray_env import set_switches

if __name__ == "__main__":
    cli = import_module(f"{(__package__ or '').removesuffix('serving')}jobs.cli")
    with cli.ending_in_one_line():
        cli.parse(Options, sys.argv[1:], "index")  # a mistake is told, and help shown, before Ray loads
        require("ray", "serving")
        set_switches()
        from .foreground import main  # Serve reads the switches when it is imported

        main()
