"""The whole way once: train a small checkpoint, convert it, serve it, ask it through the OpenAI API.

Every number printed was just measured, and the exit code is 0 only if the served model, with experts in int4,
gave the answers that transformers gets from the original checkpoint.
"""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / "tests")

from demo import look  # noqa: E402
from demo.server import DemoError, Server  # noqa: E402

from checkpoints.facts import FACTS  # noqa: E402

SCRATCH = ROOT / ".demo"
CHECKPOINT = SCRATCH / "checkpoint"
REPACKED = SCRATCH / "repacked"
BIN = Path(sys.executable).parent
QUESTIONS = ("What is a mixture of experts?", "What is DRAM bandwidth?", "Who wrote this answer?")


@click.command()
@click.option("--ask", "questions", multiple=True, help="Ask this instead; may be repeated.")
def main(questions: tuple[str, ...]) -> None:
    """Checkpoint in, served tokens out."""
    SCRATCH.mkdir(exist_ok=True)
    try:
        make_checkpoint()
        convert()
        served = serve_and_ask(questions or QUESTIONS)
        compare(served)
        click.secho("\nDone: the answers came from a model whose safetensors hold no expert.", bold=True)
    except DemoError as error:
        click.secho(f"\n{error}", fg="red", err=True)
        sys.exit(1)


def make_checkpoint() -> None:
    """Train the checkpoint, unless one made by the present sources is there."""
    title(1, "Make a checkpoint", f"a Qwen3-MoE that learns {len(FACTS)} answers by heart")
    done = CHECKPOINT / "generation_config.json"
    sources = (ROOT / "tests" / "checkpoints").glob("*.py")
    if done.exists() and done.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        line("kept from an earlier run; delete .demo to train it again")
    else:
        shutil.rmtree(CHECKPOINT, ignore_errors=True)
        command(sys.executable, "tests/checkpoints", "--demo", shown(CHECKPOINT))
    line(f"safetensors: {look.described(look.tensors(CHECKPOINT))}")


def convert() -> None:
    """Repack the checkpoint with int4 experts and show where they went."""
    title(2, "Convert", "routed experts to int4, in the order the engine reads them")
    shutil.rmtree(REPACKED, ignore_errors=True)
    seconds = command(str(BIN / "lsg-convert"), shown(CHECKPOINT), shown(REPACKED), "--experts", "int4")
    tensors = look.tensors(REPACKED)
    blobs = sorted((REPACKED / "experts").glob("*.lsgb"))
    line(f"{seconds:.1f} s, the program's start included")
    line(f"safetensors: {look.described(tensors)}")
    line(f"blobs:       {len(blobs)} layers, {look.mb(sum(blob.stat().st_size for blob in blobs))}")
    if look.experts(tensors) or not blobs:
        msg = f"{shown(REPACKED)}: the safetensors still hold experts, or there are no blobs"
        raise DemoError(msg)


def serve_and_ask(questions: tuple[str, ...]) -> dict[str, str]:
    """Answers of the served model, by question."""
    server = Server(BIN / "lsg-serve", REPACKED, SCRATCH / "serve.log")
    title(3, "Serve", "unmodified sglang, the experts computed by lsg's engine")
    line(f"$ {shlex.join(server.command)}".replace(f"{ROOT}/", ""), dim=True)
    answers = {}
    line(f"sglang needs a while to start; it writes to {shown(server.log)}")
    with server:
        line(f"ready after {server.wait_until_ready():.0f} s")
        title(4, "Ask", f"{server.url}/v1/chat/completions")
        for question in questions:
            reply = server.ask(question)
            answers[question] = reply.text
            line(f"Q  {question}")
            line(f"A  {reply.text}", fg="green", bold=True)
            speed = reply.tokens / reply.seconds
            line(f"   {reply.tokens} tokens in {reply.seconds:.2f} s: {speed:.0f} tokens/s", dim=True)
    return answers


def compare(served: dict[str, str]) -> None:
    """Ask transformers the same, on the original checkpoint. Raises DemoError if a learnt answer differs."""
    title(5, "Compare", "with Hugging Face transformers on the original bf16 checkpoint")
    original = look.transformers_answers(CHECKPOINT, list(served))
    for question, answer in served.items():
        same = original[question] == answer
        line(f"{'same' if same else 'NOT THE SAME'}  {original[question]}")
    known = dict(FACTS)
    different = [q for q, a in served.items() if original[q] != a and q in known]
    if different:
        msg = f"{len(different)} of {len(served)} served answers differ from the original checkpoint's"
        raise DemoError(msg)


def command(*argv: str) -> float:
    """Run a command in the repository, its output shown as it comes; return the seconds it took."""
    line(f"$ {shlex.join(argv)}".replace(f"{ROOT}/", ""), dim=True)
    began = time.monotonic()
    code = subprocess.run(argv, cwd=ROOT, check=False, stdin=subprocess.DEVNULL).returncode
    if code:
        msg = f"{Path(argv[0]).name} failed with exit code {code}; its message is above"
        raise DemoError(msg)
    return time.monotonic() - began


def title(number: int, name: str, what: str) -> None:
    """Open a step."""
    click.echo(f"\n{click.style(f'{number}  {name}', bold=True)}: {what}")


def line(text: str, **style: bool | str) -> None:
    """A line under the step's title."""
    click.secho(f"   {text}", **style)


def shown(path: Path) -> str:
    """A path as a reader in the repository types it."""
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
