"""The sglang plugin, and the only importer of sglang: every other module of lsg runs without it.

Invariant: inert unless the served model directory is a repacked one, fatal if it then cannot do its job.
sglang logs and swallows whatever a plugin raises, and would serve uninitialised memory for the experts;
SystemExit gets through. With LVLLM_MOE_NUMA_ENABLED=0 nothing at all is installed.
"""

import logging
import os
import sys
from pathlib import Path

logger = logging.getLogger(__name__)


def register() -> None:
    """Install the hooks; sglang calls this entry point in the launcher and every process it spawns."""
    # Imported here: what goes wrong in an import must be fatal too, and sglang swallows it.
    try:
        from lsg.runtime import settings
        from lsg.runtime.model import open_model
        from lsg.runtime.sglang import compat, hooks

        found = settings.read(os.environ)
        if not found.hybrid:
            directory = repacked_argument(sys.argv)
            if directory is not None:
                open_model(directory).check_settings(found)
            return
        compat.check(compat.installed_root())
        hooks.install()
    except Exception as error:
        directory = repacked_argument(sys.argv)
        if directory is not None:
            msg = f"lsg cannot serve {directory}: {error}"
            raise SystemExit(msg) from error
        logger.warning("lsg stays out of the way, repacked model directories cannot be served: %s", error)


def repacked_argument(argv: list[str]) -> Path | None:
    """The repacked model directory on the command line, which sglang's spawned processes inherit."""
    from lsg.runtime.model import is_repacked

    for argument in argv[1:]:
        directory = Path(argument.rpartition("=")[2])
        if is_repacked(directory):
            return directory
    return None
