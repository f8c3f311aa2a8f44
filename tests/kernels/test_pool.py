"""The engine's threads in the life of a process: fork, signals, several engines, sleep."""

import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from layers import forward, random_layer

from lsg import _core


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    return random_layer(tmp_path / "l.lsgb", fmt="bf16", hidden=64, intermediate=64).path


def script(layer: Path, body: str) -> subprocess.Popen[str]:
    """A process with an engine and `compute`, which runs `body`."""
    start = f"""
        import os, signal, sys, threading
        sys.path.append({str(Path(__file__).parent)!r})
        import numpy as np
        from layers import forward
        from lsg import LsgError, _core

        def make():
            engine = _core.Engine(nodes=[_core.NodeWorkers(0, [[], []]), _core.NodeWorkers(0, [[]])])
            return engine, engine.add_layer({str(layer)!r})

        def compute(engine, handle):
            ones = np.ones((5, 64), np.float32)
            return forward(engine, handle, ones, np.zeros((5, 1), np.int32), ones[:, :1].copy())

        def keep_computing(engine, handle):
            def work():
                while True:
                    compute(engine, handle)
            threading.Thread(target=work, daemon=True).start()
    """
    start = textwrap.dedent(start)
    text = f"{start}\nstart = {start!r}\n" + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out


def test_a_forked_child_is_told_and_can_make_its_own(layer: Path):
    code, out = finished(
        script(
            layer,
            """
            engine, handle = make()
            compute(engine, handle)
            child = os.fork()
            if child == 0:
                try:
                    compute(engine, handle)
                except LsgError as error:
                    print(error, flush=True)
                compute(*make())
                del engine
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            compute(engine, handle)
            """,
        )
    )
    assert code == 0
    assert "made before a fork" in out
    assert out.endswith("7\n")


def test_a_spawned_child_makes_its_own_while_the_parent_computes(layer: Path):
    code, out = finished(
        script(
            layer,
            """
            import multiprocessing
            engine, handle = make()
            keep_computing(engine, handle)
            made = "print(compute(*make()).tobytes() == bytes.fromhex(sys.argv[-1]), flush=True)"
            sys.argv.append(compute(engine, handle).tobytes().hex())
            child = multiprocessing.get_context("spawn").Process(target=exec, args=(start + made, {}))
            child.start()
            child.join()
            sys.exit(child.exitcode)
            """,
        )
    )
    assert (code, out) == (0, "True\n")


@pytest.mark.parametrize("other", [2, 3], ids=["the same workers", "other workers"])
def test_two_engines_at_once(layer: Path, other: int):
    ones = np.ones((5, 64), np.float32)
    ids, weights = np.zeros((5, 1), np.int32), np.ones((5, 1), np.float32)

    def work(threads: int) -> set[bytes]:
        engine = _core.Engine(threads=threads)
        handle = engine.add_layer(str(layer))
        return {forward(engine, handle, ones, ids, weights).tobytes() for _ in range(300)}

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(work, [2, other])
    assert first == second
    assert len(first) == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_during_forward_passes(layer: Path, name: str):
    process = script(
        layer,
        """
        # A shell's background jobs start with it ignored, and so would their children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        engine, handle = make()
        try:
            print("ready", flush=True)
            while True:
                compute(engine, handle)
        except KeyboardInterrupt:
            compute(engine, handle)
            sys.exit(3)
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    code, _ = finished(process)
    assert code == (3 if name == "SIGINT" else -signal.SIGTERM)


def test_leaving_while_another_thread_computes(layer: Path):
    code, _ = finished(
        script(
            layer,
            """
            engine, handle = make()
            keep_computing(engine, handle)
            compute(engine, handle)
            """,
        )
    )
    assert code == 0


def threads() -> set[Path]:
    return set(Path("/proc/self/task").iterdir())


def test_engines_with_the_same_workers_share_them(layer: Path):
    before = threads()
    engines = [_core.Engine(threads=3, spin_us=1) for _ in range(4)]
    assert len(threads()) == len(before) + 2
    handles = [engine.add_layer(str(layer)) for engine in engines]
    ones = np.ones((5, 64), np.float32)
    ids, weights = np.zeros((5, 1), np.int32), np.ones((5, 1), np.float32)
    results = [forward(*pair, ones, ids, weights).tobytes() for pair in zip(engines, handles, strict=True)]
    assert len(set(results)) == 1
    del engines[1:]
    assert forward(engines[0], handles[0], ones, ids, weights).tobytes() == results[0]
    engines.clear()
    assert threads() == before


@pytest.mark.parametrize("spin_us", [0, 50])
def test_workers_without_work_sleep(layer: Path, spin_us: int):
    before = threads()
    engine = _core.Engine(nodes=[_core.NodeWorkers(0, [[]]), _core.NodeWorkers(7, [[]])], spin_us=spin_us)
    workers = threads() - before
    assert sorted((worker / "comm").read_text() for worker in workers) == ["lsg-0-0\n", "lsg-7-1\n"]
    handle = engine.add_layer(str(layer))
    ones = np.ones((5, 64), np.float32)
    forward(engine, handle, ones, np.zeros((5, 1), np.int32), ones[:, :1].copy())
    states: set[str] = set()
    for _ in range(1000):
        states = {(worker / "stat").read_text().rpartition(")")[2].split()[0] for worker in workers}
        if states == {"S"}:
            break
        time.sleep(0.01)
    assert states == {"S"}
