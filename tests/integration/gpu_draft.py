"""Drafting with a model's own last layer, on a GPU: `python tests/integration/gpu_draft.py --out FILE`.

Needs neither pytest nor a network. A small GLM-4.7 with a draft layer, whose experts lsg-convert packs with
the model's own, answers the same requests with and without sglang's speculative decoding: greedy text is the
same but for near-ties between tokens, which verification in batches may round the other way.
"""

import argparse
import json
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# A file run as a program has its own directory on the path; the packages are one level up.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from integration import concurrency  # noqa: E402
from integration.repack import convert  # noqa: E402
from integration.server import lsg_serve, serve  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from checkpoints import servable  # noqa: E402
from checkpoints.servable.models import VOCABULARY  # noqa: E402
from checkpoints.shards import write_shards  # noqa: E402
from lsg.runtime.model import open_model  # noqa: E402

MODEL, FORMAT, REQUESTS = "GLM-4.7", "bf16", 16
FIRST_ORDINARY_TOKEN = 3
COMMON = (
    *("--dtype", "bfloat16", "--activations", "float", "--trust-remote-code"),
    # Both servers run at the same time: bound to cores, they would choose the same ones.
    *("--threads", "3", "--bind", "node"),
)
ON_A_GPU = (
    *("--attention-backend", "triton", "--sampling-backend", "pytorch", "--grammar-backend", "none"),
    *("--mem-fraction-static", "0.5", "--sleep-on-idle", "--cuda-graph-bs-decode", "1", "2", "4", "8", "16"),
)
DRAFTING = (
    *("--speculative-algorithm", "EAGLE", "--speculative-num-steps", "2"),
    *("--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "3"),
)


def main() -> None:
    """Serve twice, compare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the result; the servers' logs go beside it")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        directory = convert(make_checkpoint(Path(scratch) / "checkpoint"), Path(scratch) / "repacked", "keep")
        report: dict[str, Any] = {
            "draft_layers": [layer.index for layer in open_model(directory).draft_layers]
        }
        requests = concurrency.make_prompts(VOCABULARY, FIRST_ORDINARY_TOKEN)[:REQUESTS]

        def ask(name: str) -> tuple[list[concurrency.Answer], list[concurrency.Answer]]:
            more = DRAFTING if name == "drafting" else ()
            arguments = (*COMMON, *(ON_A_GPU if torch.cuda.is_available() else ()), *more)
            with serve(
                lsg_serve(directory), *arguments, log=options.out.with_name(f"draft_{name}.log")
            ) as server:
                return concurrency.alone(server, requests), concurrency.together(server, requests)

        with ThreadPoolExecutor(2) as pool:
            (plain, plain_together), (drafting, together) = pool.map(ask, ("plain", "drafting"))
        report |= {
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "drafting_against_plain": concurrency.compare(drafting, plain),
            "plain_together_against_alone": concurrency.compare(plain_together, plain),
            "drafting_together_against_alone": concurrency.compare(together, drafting),
            "accepted_of_drafted": accepted(options.out.with_name("draft_drafting.log")),
        }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(options.out.read_text())


def accepted(log: Path) -> float | None:
    """The mean of the acceptance rates that sglang logged, None when it logged none."""
    rates = [float(rate) for rate in re.findall(r"accept rate: ([\d.]+)", log.read_text(errors="replace"))]
    return sum(rates) / len(rates) if rates else None


def make_checkpoint(path: Path) -> Path:
    """A servable checkpoint and, after its last layer, that layer once more as a draft."""
    servable.make(path, MODEL, FORMAT)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    config = json.loads((path / "config.json").read_text())
    last, draft = (f"model.layers.{config['num_hidden_layers'] - 1 + n}." for n in (0, 1))
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(last)}
    tensors |= {name.replace(last, draft): tensor for name, tensor in own.items()}
    hidden = config["hidden_size"]
    halves = torch.eye(hidden, dtype=torch.bfloat16) / 2
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    tensors |= {
        f"{draft}embed_tokens.weight": tensors["model.embed_tokens.weight"],
        f"{draft}shared_head.head.weight": tensors["lm_head.weight"],
        f"{draft}shared_head.norm.weight": tensors["model.norm.weight"],
        f"{draft}eh_proj.weight": torch.cat([halves, halves], 1),
        f"{draft}enorm.weight": ones,
        f"{draft}hnorm.weight": ones,
    }
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    write_shards(path, tensors, 2)
    # Room for the requests that are given up while they decode.
    changes = {"num_nextn_predict_layers": 1, "max_position_embeddings": 2048}
    (path / "config.json").write_text(json.dumps(config | changes, indent=2) + "\n")
    return path


if __name__ == "__main__":
    main()
