"""Starts the search service over an index on this machine, and serves until it is interrupted."""

import sys
from importlib import import_module

from ray_lir.base.extras import require

from .options import Options
from .ray_env import set_ray_env

if __name__ == "__main__":
    cli = import_module(f"{(__package__ or '').removesuffix('serving')}jobs.cli")
    with cli.ending_in_one_line():
        cli.parse(Options, sys.argv[1:], "index")  # report mistakes and show help before Ray loads
        require("ray", "serving")
        set_ray_env()
        from .foreground import main  # Ray Serve reads the environment when it is imported

        main()
