"""The lsg command: looks at what lsg-convert made and at the machine that is to serve it.

Invariant: this module imports no room. A subcommand is named by where it lives and loaded when it is called,
so that `lsg.convert` and `lsg.runtime` stay strangers.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import click

_BENCH: Final = {
    "engine": "lsg.runtime.bench.commands:engine_command",
    "serve": "lsg.runtime.bench.serve:serve_command",
    "timeline": "lsg.runtime.bench.serve:timeline_command",
}
_COMMANDS: Final = {
    "doctor": "lsg.runtime.doctor_command:doctor_command",
    "inspect": "lsg.convert.model_commands:inspect_command",
    "verify": "lsg.convert.model_commands:verify_command",
}


class _LazyGroup(click.Group):
    """A group whose commands are imported one by one, as they are needed; `places` says from where."""

    def __init__(self, *args: Any, places: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self._places])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._places.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(
    cls=_LazyGroup,
    places=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="lsg")
def main() -> None:
    """Look at directories that lsg-convert made, and at this machine."""


@main.group(cls=_LazyGroup, places=_BENCH)
def bench() -> None:
    """Measure this machine, and what lsg makes of it."""


if __name__ == "__main__":
    main()
