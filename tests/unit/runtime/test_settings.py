import pytest

from lsg import CompatError
from lsg.runtime import settings
from lsg.runtime.settings import Settings


def test_defaults_and_foreign_variables():
    assert settings.read({"PATH": "/bin", "OMP_NUM_THREADS": "3"}) == Settings()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LSG_ISA": "avx2"}, Settings(isa="avx2")),
        ({"LSG_THREADS": "3"}, Settings(threads=3)),
        ({"LK_THREADS": "44"}, Settings(threads=44)),
        ({"LSG_THREADS": "44", "LK_THREADS": "44"}, Settings(threads=44)),
        ({"LSG_ACTIVATIONS": "float"}, Settings(activations="float")),
        ({"LSG_HAND_OVER": "memops"}, Settings(hand_over="memops")),
        ({"LSG_TRACE": "/tmp/t"}, Settings(trace="/tmp/t")),
        ({"LVLLM_MOE_NUMA_ENABLED": "0"}, Settings(hybrid=False)),
        ({"LK_MOE_HYBRID_ENABLED": "1"}, Settings(hybrid=True)),
        ({"LVLLM_MOE_USE_WEIGHT": "INT4"}, Settings(weights="int4")),
        ({"LVLLM_MOE_USE_WEIGHT": "TO_DTYPE"}, Settings(weights="bf16")),
        ({"LK_THREAD_BINDING": "CPU_CORE"}, Settings()),
        ({"LK_THREAD_BINDING": "NUMA_NODE"}, Settings(bind="node")),
        ({"LK_POWER_SAVING": "1"}, Settings(power_saving=True)),
        ({"LK_POWER_SAVING": "0", "LVLLM_ENABLE_NUMA_INTERLEAVE": "0"}, Settings()),
        ({"LVLLM_ENABLE_NUMA_INTERLEAVE": "0", "LSG_LOAD": "huge"}, Settings(load="huge")),
        ({"LK_NUMA_INTERLEAVE": ""}, Settings()),
        ({"LK_NUMA_INTERLEAVE": "1"}, Settings(load="map")),
        ({"LSG_LOAD": "auto"}, Settings()),
        ({"LSG_LOAD": "map", "LVLLM_ENABLE_NUMA_INTERLEAVE": "1"}, Settings(load="map")),
        ({"LSG_SPILL": "1"}, Settings(spill=True)),
        ({"LSG_JSON": "1"}, Settings(json=True)),
        ({"LVLLM_GPU_RESIDENT_MOE_LAYERS": ""}, Settings()),
    ],
)
def test_every_accepted_name(environ, expected):
    assert settings.read(environ) == expected


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"LSG_THREAD": "4"}, ["LSG_THREAD", "no such setting", "LSG_THREADS", "LK_POWER_SAVING"]),
        ({"LK_FOO": "1"}, ["LK_FOO", "no such setting"]),
        ({"LVLLM_FOO": "1"}, ["LVLLM_FOO", "no such setting"]),
        ({"LSG_ISA": "sse"}, ["LSG_ISA=sse", "scalar, avx2"]),
        ({"LSG_THREADS": "0"}, ["LSG_THREADS=0", "from 1"]),
        ({"LK_THREADS": "many"}, ["LK_THREADS=many", "from 1"]),
        ({"LSG_ACTIVATIONS": "fp8"}, ["LSG_ACTIVATIONS=fp8", "int8, float"]),
        ({"LSG_HAND_OVER": "poll"}, ["LSG_HAND_OVER=poll", "hostfunc, memops, kernels"]),
        ({"LSG_TRACE": ""}, ["LSG_TRACE", "path of a file"]),
        ({"LVLLM_MOE_NUMA_ENABLED": "yes"}, ["LVLLM_MOE_NUMA_ENABLED=yes", "0, 1"]),
        ({"LVLLM_MOE_USE_WEIGHT": "INT8"}, ["INT4, TO_DTYPE, KEEP"]),
        ({"LK_THREAD_BINDING": "SOCKET"}, ["CPU_CORE, NUMA_NODE"]),
        ({"LK_THREADS": "4", "LSG_THREADS": "5"}, ["LSG_THREADS=5", "contradicts", "LK_THREADS=4"]),
        ({"LVLLM_GPU_RESIDENT_MOE_LAYERS": "0-5"}, ["GPU memory", "later version"]),
        ({"LVLLM_GPU_RESIDENT_MOE_LAYERS": "0"}, ["GPU memory", "later version"]),
        ({"LK_GPU_RESIDENT_MOE_LAYERS": "0-5"}, ["GPU memory", "later version"]),
        ({"LK_POWER_SAVING": "yes"}, ["LK_POWER_SAVING=yes", "0, 1"]),
        ({"LSG_LOAD": "copy"}, ["LSG_LOAD=copy", "auto, map, huge"]),
        ({"LSG_SPILL": "all"}, ["LSG_SPILL=all", "0, 1"]),
        ({"LSG_JSON": "lines"}, ["LSG_JSON=lines", "0, 1"]),
        ({"LVLLM_ENABLE_NUMA_INTERLEAVE": "on"}, ["LVLLM_ENABLE_NUMA_INTERLEAVE=on", "0, 1"]),
        ({"LK_NUMA_INTERLEAVE": "1", "LSG_LOAD": "huge"}, ["LSG_LOAD=huge", "contradicts"]),
        ({"LVLLM_GPU_PREFILL_MIN_BATCH_SIZE": "2048"}, ["later version"]),
        ({"LK_GPU_PREFETCH_WINDOW": "1"}, ["later version"]),
    ],
)
def test_nothing_is_ignored(environ, words):
    with pytest.raises(CompatError) as caught:
        settings.read(environ)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "chosen",
    [
        Settings(),
        Settings("vnni", 7, "float", hybrid=False, weights="keep", load="huge", spill=True),
        Settings(weights="int4", bind="node", power_saving=True),
        Settings(weights="int4", hand_over="hostfunc", trace="t", json=True),
    ],
)
def test_a_child_process_reads_what_was_exported(chosen):
    environ = chosen.export({"PATH": "/bin", "LK_THREADS": "99", "LSG_ISA": "avx2", "LK_POWER_SAVING": "0"})
    assert environ["PATH"] == "/bin"
    assert settings.read(environ) == chosen
