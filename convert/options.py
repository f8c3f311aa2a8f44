"""Options that several commands have.

Invariant: the same option has the same name, type and default in all of them; only its help differs.
"""

import os
from collections.abc import Callable
from typing import Any

import click

_Decorator = Callable[[Any], Any]


def threads_option(text: str) -> _Decorator:
    """--threads, by default one for each CPU that this process may use."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=lambda: len(os.sched_getaffinity(0)),
        show_default="all cores",
        help=text,
    )


def json_option(text: str) -> _Decorator:
    """--json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
