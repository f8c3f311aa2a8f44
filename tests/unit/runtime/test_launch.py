import os
import sys
from pathlib import Path

import machines
import pytest

from lsg import CapacityError, CompatError
from lsg.runtime import launch
from lsg.runtime.settings import Settings
from lsg.runtime.sglang.cpu_standins import DIRECTORY

DIR = Path("/models/x")
ADDED = [
    *("--disable-prefill-cuda-graph", "--disable-shared-experts-fusion"),
    *("--moe-runner-backend", "triton"),
]
HOST = machines.host([16])


class Model:
    """As much of a RepackedModel as planning needs."""

    directory = DIR
    expert_bytes = 10 << 30


def plan(*arguments, model=None, gpus=1, settings=None, environ=None):
    return launch.plan(DIR, model, arguments, settings or Settings(), HOST, gpus, environ or {})


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--port", "1", "--dtype", "x"], "x"),
        (["--dtype=y"], "y"),
        (["--dtype", "--port"], ""),
        (["--dtypes", "z"], None),
        (["--dtype", "a", "--dtype=b"], "b"),
        ([], None),
    ],
)
def test_option(arguments, value):
    assert launch.option(arguments, ("--dtype",)) == value


def test_an_ordinary_directory_on_a_gpu_is_stock_sglang():
    environ = {"PATH": "/bin", "LK_ANYTHING": "1"}
    started = plan("--port", "8000", "--tp", "2", environ=environ)
    assert started.argv == [
        sys.executable, "-m", "sglang.launch_server", "--model-path", str(DIR), "--port", "8000", "--tp", "2"
    ]  # fmt: skip
    assert started.environ == environ


def test_without_a_gpu_sglang_takes_its_cpu_path():
    started = plan("--port", "1", gpus=0, environ={"PYTHONPATH": "/mine"})
    assert started.argv[5:] == ["--device", "cpu", "--attention-backend", "intel_amx", "--port", "1"]
    assert started.environ["SGLANG_USE_CPU_ENGINE"] == "1"
    assert started.environ["PYTHONPATH"] == f"{DIRECTORY}{os.pathsep}/mine"


def test_what_the_user_says_about_the_cpu_path_stands():
    started = plan("--device=cpu", "--attention-backend", "torch_native", gpus=0)
    assert started.argv[5:] == ["--device=cpu", "--attention-backend", "torch_native"]
    assert plan("--device", "cuda", gpus=0).environ == {}


def test_offloaded_experts_on_a_gpu_decode_in_graphs():
    started = plan("--port", "1", model=Model)
    sizes = [str(size) for size in launch.DECODE_GRAPH_SIZES]
    assert started.argv[5:] == [*ADDED, "--cuda-graph-bs-decode", *sizes, "--port", "1"]
    assert started.threads == 12
    assert started.environ["LSG_ACTIVATIONS"] == "int8"
    assert started.environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cuda-graph-bs-decode", "1", "2"],
        ["--cuda-graph-bs", "8"],
        ["--cuda-graph-max-bs=32"],
        ["--cuda-graph-max-bs-decode", "32"],
        ["--cuda-graph-config", "{}"],
    ],
)
def test_sizes_that_the_user_names_stand(arguments):
    argv = plan(*arguments, model=Model).argv
    assert argv[5:] == [*ADDED, *arguments]


@pytest.mark.parametrize(
    ("arguments", "runner"),
    [
        ([], None),
        (["--speculative-algorithm", "EAGLE"], "auto"),
        (["--speculative-algorithm=EAGLE", "--speculative-moe-runner-backend=cutlass"], "cutlass"),
        (["--speculative-algorithm", "EAGLE", "--moe-runner-backend", "auto"], None),
    ],
)
def test_a_drafts_experts_keep_the_runner_that_sglang_chooses(arguments, runner):
    argv = plan(*arguments, model=Model).argv
    assert launch.option(argv, ("--speculative-moe-runner-backend",)) == runner


def test_a_runner_that_the_user_names_stands():
    argv = plan("--moe-runner-backend=cutlass", model=Model).argv
    assert "triton" not in argv
    assert argv[-1] == "--moe-runner-backend=cutlass"


@pytest.mark.parametrize(
    "arguments", [["--cuda-graph-backend-prefill=tc_piecewise"], ["--enforce-piecewise-cuda-graph"]]
)
def test_prefill_in_graphs_is_refused(arguments):
    with pytest.raises(CompatError, match="prefill of offloaded experts is not captured"):
        plan(*arguments, model=Model)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_graphs_that_the_user_disabled_are_fine(phase):
    assert plan(f"--cuda-graph-backend-{phase}=disabled", model=Model).argv[-1].endswith("disabled")


@pytest.mark.parametrize("arguments", [["--tp-size", "2"], ["--tp=2"], ["--pp-size", "2"]])
def test_threads_are_divided_among_processes(arguments):
    started = plan(*arguments, model=Model)
    assert (started.processes, started.threads) == (2, 6)


@pytest.mark.parametrize(
    ("arguments", "processes", "replicas"),
    [
        (["--dp-size", "2"], 2, 2),
        (["--data-parallel-size=2", "--tp", "4"], 8, 2),
        (["--pp-size", "3", "--tp", "2"], 6, 1),
        (["--tp", "8", "--nnodes", "2"], 4, 1),
        (["--tp", "2", "--dp-size", "2", "--enable-dp-attention"], 2, 1),
    ],
)
def test_parallel_sizes(arguments, processes, replicas):
    found = launch.parallel_sizes(arguments)
    assert (found.processes, found.replicas) == (processes, replicas)


def test_expert_parallelism_is_refused_and_why():
    with pytest.raises(CompatError, match=r"splits every expert between the processes of --tp-size"):
        plan("--tp", "2", "--ep-size", "2", model=Model)
    assert plan("--tp", "2", "--ep-size", "2").argv[-1] == "2"


def test_tensor_parallel_on_a_cpu_binds_sglangs_threads_to_the_engines_cores():
    started = plan("--tp", "2", model=Model, gpus=0)
    assert started.environ["SGLANG_CPU_OMP_THREADS_BIND"] == "2,3,4,5,6,7|10,11,12,13,14,15"
    mine = {"SGLANG_CPU_OMP_THREADS_BIND": "0-7|8-15"}
    bound = plan("--tp", "2", model=Model, gpus=0, environ=mine).environ["SGLANG_CPU_OMP_THREADS_BIND"]
    assert bound == "0-7|8-15"
    for arguments in ([], ["--dp-size", "2"]):
        assert "SGLANG_CPU_OMP_THREADS_BIND" not in plan(*arguments, model=Model, gpus=0).environ


def test_too_many_threads_are_refused():
    with pytest.raises(CapacityError, match="choose --threads 8 or less"):
        plan("--tp", "2", model=Model, settings=Settings(threads=9))


def test_omp_num_threads_is_the_users():
    assert plan(model=Model, environ={"OMP_NUM_THREADS": "9"}).environ["OMP_NUM_THREADS"] == "9"


def test_plugin_is_added_to_a_restricted_list():
    assert plan(model=Model, environ={"SGLANG_PLUGINS": "other"}).environ["SGLANG_PLUGINS"] == "other,lsg"


def test_kv_cache_on_a_cpu_leaves_room_for_the_experts():
    arguments = plan(model=Model, gpus=0).argv
    fraction = float(arguments[arguments.index("--mem-fraction-static") + 1])
    assert fraction == pytest.approx(launch.CPU_KV_CACHE_BYTES / HOST.memory_available_bytes, abs=1e-3)
    assert "--mem-fraction-static" not in plan("--max-total-tokens", "9", model=Model, gpus=0).argv


def test_a_model_that_does_not_fit_is_refused():
    class Big(Model):
        expert_bytes = 65 << 30

    with pytest.raises(CapacityError, match=r"needs 69\.8 GB .* 68\.7 GB are available"):
        plan(model=Big)


def test_a_model_that_leaves_sglang_no_room_is_worth_a_warning():
    class Large(Model):
        expert_bytes = 62 << 30

    assert "68.7 GB are available, but the weights need 66.6 GB" in plan(model=Large).warning
    assert not plan(model=Model).warning


@pytest.mark.parametrize("arguments", [[], ["--sleep-on-idle"]])
def test_saving_power_lets_sglang_sleep_too(arguments):
    argv = plan(*arguments, model=Model, settings=Settings(power_saving=True)).argv
    assert argv.count("--sleep-on-idle") == 1
    assert "--sleep-on-idle" not in plan(model=Model).argv


def test_naming_the_model_twice_is_refused():
    with pytest.raises(CompatError, match="named twice"):
        plan("--model-path", "/other")


def test_a_senseless_parallel_size_is_refused():
    with pytest.raises(CompatError, match="--tensor-parallel-size two"):
        plan("--tp-size", "two", model=Model)
