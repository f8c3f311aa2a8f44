"""Every way to spread over two GPUs: `python tests/integration/gpu_parallel.py --out FILE`.

Needs neither pytest nor a network. Serves the same directory with one process, with two tensor-parallel ones,
two data-parallel replicas, two pipeline stages, and what lsg refuses; all servers run at the same time. Each
is asked the same prompts, and its log-probabilities are compared with transformers' in float32: what rounding
to bf16 explains was derived before (noise.py). Runs on a CPU too, where some ways are sglang's to refuse.
"""

import argparse
import json
import re
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

# A file run as a program has its own directory on the path; the packages are one level up.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from integration import noise, reference  # noqa: E402
from integration.repack import convert  # noqa: E402
from integration.server import lsg_serve, serve  # noqa: E402

from checkpoints import qwen3_moe  # noqa: E402

# As in the published models; some GPU kernels take no smaller one.
qwen3_moe.HEAD_DIM = 128
SHAPE = {"layers": 2, "hidden": 512, "intermediate": 96, "experts": 8, "top_k": 2}
WAYS = {
    "one process": (),
    "tensor parallel": ("--tp-size", "2"),
    "data parallel": ("--dp-size", "2"),
    "pipeline parallel": ("--pp-size", "2"),
    "attention data parallel": ("--tp-size", "2", "--dp-size", "2", "--enable-dp-attention"),
    "expert parallel": ("--tp-size", "2", "--ep-size", "2"),
}
COMMON = ("--dtype", "bfloat16", "--activations", "float", "--threads", "1")
ON_GPUS = (
    *("--attention-backend", "triton", "--sampling-backend", "pytorch", "--grammar-backend", "none"),
    *("--mem-fraction-static", "0.3", "--cuda-graph-bs-decode", "1", "2"),
    # Plain NCCL: the others need NVLink, and some of them its multicast.
    *("--disable-custom-all-reduce", "--enforce-disable-flashinfer-allreduce-fusion"),
    # All servers together: bound to cores, they would choose the same ones.
    *("--bind", "node"),
)


def main() -> None:
    """Serve every way, compare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the result; the servers' logs go beside it")
    parser.add_argument("--way", action="append", choices=WAYS, help="only these")
    parser.add_argument("--jobs", type=int, default=len(WAYS), help="servers at a time")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = qwen3_moe.make_checkpoint(Path(scratch) / "checkpoint", **SHAPE)
        directory = convert(checkpoint, Path(scratch) / "bf16", "bf16")
        ways = options.way or list(WAYS)
        with ThreadPoolExecutor(options.jobs + 1) as pool:
            logs = [options.out.with_name(f"parallel_{way.replace(' ', '_')}.log") for way in ways]
            # What must come out is computed while the servers start.
            cases = pool.submit(lambda: reference.cases(reference.load(checkpoint), noise.SERVED_BF16))
            results = pool.map(lambda way, log: ask(directory, WAYS[way], cases, log), ways, logs)
            found: dict[str, Any] = {}
            for way, result in zip(ways, results, strict=True):
                found[way] = result
                report = {"where": where(), "shape": SHAPE, "ways": found}
                options.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(options.out.read_text())


def where() -> str:
    """The GPUs, or the lack of them."""
    count = torch.cuda.device_count()
    return f"{count} × {torch.cuda.get_device_name()}" if count else "CPU"


def ask(
    directory: Path, arguments: tuple[str, ...], expected: "Future[list[reference.Case]]", log: Path
) -> dict[str, Any]:
    """One server's deviations, or why it does not serve."""
    arguments = (*COMMON, *(ON_GPUS if torch.cuda.is_available() else ()), *arguments)
    try:
        with serve(lsg_serve(directory), *arguments, log=log) as server:
            cases = expected.result()
            # Twice: replicas take turns.
            answers = [(case, ask_one(server, case)) for case in [*cases, *cases]]
    except (RuntimeError, OSError) as error:
        lines = log.read_text(errors="replace").splitlines()
        ours = [line for line in lines if line.startswith("lsg")]
        theirs = [line for line in lines if re.match(r"\w*Error\b", line)]
        said = ours[-1:] if ours and not theirs else theirs[:1] or [str(error)]
        return {"refused": said[0].replace(str(directory), "MODEL")}
    ratios = [(rows - case.log_probs).abs() / case.bound for case, (_, rows) in answers]
    sigmas = torch.cat([(rows - case.log_probs).abs() / case.spread for case, (_, rows) in answers])
    return {
        "prompts": len(answers),
        "same_tokens": sum(tokens == case.continuation for case, (tokens, _) in answers),
        "deviation_of_bound": max(float(ratio.max()) for ratio in ratios),
        "sigmas": float(sigmas.square().mean().sqrt()),
    }


def ask_one(server: Any, case: reference.Case) -> tuple[list[int], torch.Tensor]:
    """The served continuation and log-probabilities."""
    tokens, rows = server.log_probs(case.prompt, len(case.continuation), case.log_probs.shape[-1])
    return tokens, rows


if __name__ == "__main__":
    main()
