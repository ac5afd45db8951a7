"""Starts the search service over an index on this machine, and serves until it is interrupted."""

import logging
import sys
from importlib import import_module

from ray_lir.base import logs
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import require

from .options import Options
from .ray_env import set_ray_env

logger = logging.getLogger("ray_lir.serving")


def runs_here(options: Options) -> bool:
    """Return whether the service runs in this process, and log the choice that `auto` makes.

    Args:
        options: Settings of the service.

    Raises:
        ConfigError: `where` is here, and another setting needs Ray Serve.
    """
    needs_ray = options.needs_ray
    if options.where == "here" and needs_ray and needs_ray != "RAY_ADDRESS":
        raise ConfigError(f"{needs_ray} needs Ray Serve; leave out --where here, or leave out --{needs_ray}")
    if options.where == "auto" and not needs_ray:
        logger.info("serve: in this process (--where ray starts Ray Serve, with a process for each worker)")
    return options.where == "here" or (options.where == "auto" and not needs_ray)


if __name__ == "__main__":
    cli = import_module(f"{(__package__ or '').removesuffix('serving')}jobs.cli")
    logs.configure()
    with cli.ending_in_one_line():
        options = cli.parse(Options, sys.argv[1:], "index")  # report mistakes and show help before Ray loads
        require("fastapi", "serving")
        if runs_here(options):
            from .in_process import main
        else:
            require("ray", "serving")
            set_ray_env()
            from .foreground import main  # Ray Serve reads the environment when it is imported

        main()
