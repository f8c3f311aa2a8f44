"""The lsg command: looks at what lsg-convert made and at the machine that is to serve it.

Invariant: this module imports no room. A subcommand is named by where it lives and loaded when it is called,
so that `lsg.convert` and `lsg.runtime` stay strangers.
"""

from importlib import import_module
from typing import Final

import click

_COMMANDS: Final = {
    "inspect": "lsg.convert.model_commands:inspect_command",
    "verify": "lsg.convert.model_commands:verify_command",
}


class _LazyGroup(click.Group):
    """A group whose commands are imported one by one, as they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="lsg")
def main() -> None:
    """Look at directories that lsg-convert made."""


if __name__ == "__main__":
    main()
