"""Every command says what it does, and the READMEs quote only commands that exist."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
COMMANDS = {
    entry.name: entry for entry in entry_points(group="console_scripts") if entry.value.startswith("lsg.")
}


def quoted_lines() -> list[str]:
    """Lines of the READMEs' code blocks, prompts and continuations undone."""
    lines = []
    text = "\n".join(readme.read_text() for readme in READMES)
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        lines += [line.removeprefix("$ ").strip() for line in block.replace("\\\n", " ").splitlines()]
    return lines


def quoted_commands() -> list[list[str]]:
    """The quoted lsg command lines as words, without variables in front and pipes behind."""
    found = []
    for line in quoted_lines():
        if not re.match(r"(\w+=\S* )*lsg(-\w+)? ", line):
            continue
        words = shlex.split(re.split(r"\s[|&>]", line)[0], comments=True)
        while "=" in words[0]:
            words.pop(0)
        found.append(words)
    return found


def parse(command: click.Command, arguments: list[str]) -> None:
    """Raise click.UsageError unless the command takes these arguments; paths need not exist."""
    if isinstance(command, click.Group) and arguments[:1] and not arguments[0].startswith("-"):
        inner = command.get_command(click.Context(command), arguments[0])
        if inner is None:
            msg = f"no such command {arguments[0]}"
            raise click.UsageError(msg)
        parse(inner, arguments[1:])
        return
    context = click.Context(command, **command.context_settings)
    values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    for parameter in command.params:
        value = values.get(parameter.name)
        if isinstance(value, str) and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)
        if parameter.required and not isinstance(value, (str, tuple, list)):
            raise click.MissingParameter(ctx=context, param=parameter)
    if rest and not context.allow_extra_args:
        msg = f"unexpected {rest}"
        raise click.UsageError(msg)


def test_all_commands_are_known() -> None:
    assert {"lsg", "lsg-convert", "lsg-serve"} == COMMANDS.keys()


def commands_of(command: click.Command) -> list[click.Command]:
    """The command and, of a group, all commands in it."""
    if not isinstance(command, click.Group):
        return [command]
    context = click.Context(command)
    inner = (command.get_command(context, name) for name in command.list_commands(context))
    return [command, *(found for each in inner if each is not None for found in commands_of(each))]


@pytest.mark.parametrize("entry", COMMANDS.values(), ids=COMMANDS.keys())
def test_command_and_options_have_help(entry: EntryPoint) -> None:
    for command in commands_of(entry.load()):
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.opts[0]} has no help"
            elif parameter.required:
                # An argument has no help of its own: the command's text must mention it.
                assert parameter.make_metavar(click.Context(command)).strip("[].") in command.help


@pytest.mark.parametrize("entry", COMMANDS.values(), ids=COMMANDS.keys())
def test_help_and_version_run_as_installed(entry: EntryPoint) -> None:
    for option in ("--help", "--version"):
        program = Path(sys.executable).parent / entry.name
        run = subprocess.run([program, option], capture_output=True, text=True, check=True, timeout=60)
        assert run.stdout.strip()
        assert not run.stderr


def test_readme_quotes_both_commands() -> None:
    assert {"lsg-convert", "lsg-serve"} <= {words[0] for words in quoted_commands()}


def test_quoted_commands_parse() -> None:
    for words in quoted_commands():
        assert words[0] in COMMANDS, f"a README quotes {words[0]}, which is not installed"
        try:
            parse(COMMANDS[words[0]].load(), words[1:])
        except click.UsageError as error:
            pytest.fail(f"a README quotes `{shlex.join(words)}`: {error.format_message()}")


@pytest.mark.parametrize(
    "arguments", [["--no-such-option"], ["--experts", "int3", "a", "b"], ["a", "b", "--experts"]]
)
def test_parse_refuses(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(COMMANDS["lsg-convert"].load(), arguments)


def test_quoted_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    quoted = [line.split()[1] for line in quoted_lines() if re.match(r"make [a-z]", line)]
    assert "demo" in quoted
    assert set(quoted) <= targets


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", readme.read_text())
    assert links
    missing = [link for link in links if not (readme.parent / link).exists()]
    assert not missing


def test_tables_are_what_the_results_give() -> None:
    """Numbers in the READMEs come from benchmarks/results, not from somebody's keyboard."""
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "table.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
