"""A repacked directory in sglang's own model runner, without server and HTTP: one process, one model.

Invariant: command line, environment and hooks are those that lsg-serve would give the server; only the
processes around the model runner are missing. sglang must not have been imported before `prepare`.
"""

import os
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from integration.server import free_port

from lsg.runtime import host, launch, model, settings
from lsg.runtime.sglang.cpu_standins import DIRECTORY as CPU_STANDINS

QUICK = (
    *("--max-total-tokens", "2048", "--max-running-requests", "8", "--random-seed", "0"),
    # Models with a recurrent state would fill the GPU with it.
    *("--max-mamba-cache-size", "16"),
    *("--skip-server-warmup", "--disable-radix-cache", "--skip-tokenizer-init", "--trust-remote-code"),
)


def prepare() -> None:
    """Import sglang as a server process does, with lsg's plugin."""
    if not torch.cuda.is_available():
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
        sys.path.insert(0, str(CPU_STANDINS))
    from sglang.srt.plugins import load_plugins

    load_plugins()
    import sglang.benchmark.one_batch  # noqa: F401 (it imports all that a model runner needs)


def log_probs(
    directory: Path, prompts: Sequence[list[int]], continuations: Sequence[list[int]], *arguments: str
) -> torch.Tensor:
    """What follows each prompt and each token of its continuation but the last: [prompts, positions, V].

    All prompts are one batch; the continuations, equally long, are decoded token by token, whatever the model
    would have chosen.
    """
    from sglang.benchmark import one_batch
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    # Ports of processes that start at the same time should not be close.
    runner = _runner(directory, [*QUICK, "--port", str(free_port()), *arguments])
    requests = []
    for number, prompt in enumerate(prompts):
        request = Req(
            rid=str(number),
            origin_input_text="",
            origin_input_ids=array("q", prompt),
            sampling_params=SamplingParams(temperature=0, max_new_tokens=len(continuations[0]) + 1),
        )
        request.full_untruncated_fill_ids = request.origin_input_ids
        request.logprob_start_len = -1
        request.set_extend_range(0, len(prompt))
        requests.append(request)
    _, logits, batch = one_batch.extend(requests, runner)
    rows = [logits]
    for tokens in list(zip(*continuations, strict=True))[:-1]:
        _, logits = one_batch.decode(torch.tensor(tokens, device=runner.device), batch, runner)
        # A graph's next replay writes to the same place.
        rows.append(logits.clone())
    return torch.stack(rows, 1).double().log_softmax(-1).cpu()


def _runner(directory: Path, arguments: list[str]) -> Any:
    from sglang.benchmark import one_batch
    from sglang.srt.managers import scheduler
    from sglang.srt.server_args import PortArgs, prepare_server_args

    found, repacked = settings.read(os.environ), model.open_model(directory)
    planned = launch.plan(
        directory, repacked, arguments, found, host.observe(), torch.cuda.device_count(), os.environ
    )
    os.environ.update(planned.environ)
    # Python, -m and the module's name come first.
    sys.argv[1:] = planned.argv[3:]
    server = prepare_server_args(planned.argv[3:])
    one_batch._set_envs_and_config(server)
    one_batch.initialize_moe_config(server)
    one_batch.initialize_fp8_gemm_config(server)
    one_batch.initialize_fp4_gemm_config(server)
    # The scheduler's part for models with a recurrent state, by the name under which it imports it.
    if scheduler.initialize_mamba_selective_state_update_backend is not None:
        scheduler.initialize_mamba_selective_state_update_backend(server)
    # There is no text to be had of it.
    one_batch.get_tokenizer = lambda *_, **__: None
    runner, _ = one_batch.load_model(server, PortArgs.init_new(server), 0, 0)
    return getattr(runner, "torch_runner", runner)
