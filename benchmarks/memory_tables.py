"""The READMEs' tables about memory, nodes and threads, from their result files' contents."""

from typing import Any

from markdown import percent, rate, section, table

RESTART_BYTES = 16e9
RESTARTS = {
    "map, files in the page cache": "2 MiB",
    "map, files in the page cache in 4 KiB pages": "4 KiB",
}


def doctor(text: str) -> str:
    """What `lsg doctor` says about a machine."""
    lines = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
    return f"```console\n$ lsg doctor\n{lines}\n```\n"


def load(result: dict[str, Any]) -> str:
    """How experts come into memory."""
    limits = result["limits_bytes_per_s"]
    rows = [
        [
            name,
            f"{run['seconds']['median']:.3g} s",
            rate(run["bytes_per_s"]),
            _of_limit(name, run["bytes_per_s"]["median"], limits),
            f"{run['peak_share']:.3f} ×",
            f"{100 * run['huge_share']:.0f} %",
            rate(run["decode_bytes_per_s"], 1),
        ]
        for name, run in result["runs"].items()
    ]
    rows += [[f"limit: {name}", "", rate(limit), "", "", "", ""] for name, limit in limits.items()]
    head = ["`--load`", "time", "GB/s", "of its limit", "peak memory", "in 2 MiB pages", "decode, GB/s"]
    shape = result["shape"]
    restarts = " and ".join(
        f"{RESTART_BYTES / result['runs'][name]['bytes_per_s']['median']:.2g} s in {pages} pages"
        for name, pages in RESTARTS.items()
    )
    what = (
        f"{shape['layers']} layers of {shape['model']}'s shape, {shape['format']}, "
        f"{shape['bytes'] / 1e9:.1f} GB, of which {shape['cold_bytes'] / 1e9:.1f} GB cold. New memory "
        "was free for so long that a hypervisor has taken it away and must find some again; else it was in "
        "use just before. Peak memory: experts and page cache together, of the files' size. At these rates a "
        f"restart that finds {RESTART_BYTES / 1e9:.0f} GB in the page cache takes {restarts}."
    )
    return section(result["machine"], what, head, rows)


# Scenarios of tests/numa by name.
NUMA_SCENARIOS = {
    "doctor": "`lsg doctor` sees the machine",
    "serve:map": "`--load map`",
    "serve:huge": "`--load huge`",
    "reading": "which node's threads read a byte first",
    "bind:node": "`--bind node`",
    "cpuset:cores": "container with one node's cores",
    "cpuset:node": "container with one node's cores and memory",
    "restart:map": "`--load map` again: nothing is read",
    "foreign:map": "`--load map`, files cached on a wrong node",
    "short:map": "`--load map`, memory short on a node",
    "short:huge": "`--load huge`, memory short on a node",
    "short:map-spill": "the same with `--spill`, map",
    "short:huge-spill": "the same with `--spill`, huge",
}


def _of_limit(case: str, rate: float, limits: dict[str, dict[str, float]]) -> str:
    """What binds a cold load: the disk, or memory that the hypervisor has to find."""
    if "cold" not in case:
        return ""
    names = ("disk", "new memory") if "new memory" in case else ("disk",)
    binds = min(names, key=lambda name: limits[name]["median"])
    return f"{percent(rate, limits[binds]['median'])} of {binds}"


def numa(result: dict[str, Any]) -> str:
    """What the emulated machines showed."""
    rows = []
    for row in result["rows"]:
        pages = f"{row['pages_right']} of {row['pages_total']}" if row["pages_total"] else ""
        threads = f"{row['threads_right']} of {row['threads_total']}" if row["threads_total"] else ""
        equal = {None: "", True: "yes", False: "no"}[row["result_equal"]]
        error = row.get("prompt_error")
        prompt = "" if error is None else f"{100 * error:.1f} %"
        outcome = "; ".join(row["faults"]) or row["note"] or "as it should be"
        scenario = NUMA_SCENARIOS[row["scenario"]]
        rows.append(
            [row["machine"], scenario, pages, threads, equal, prompt, f"{row['seconds']:.0f}", outcome]
        )
    what = (
        f"{result['qemu']}, software emulation, Linux {result['kernel']}; the wheel of commit "
        f"{result['commit']}, {result['model']}. Pages: those of 4 KiB of the experts that are on the node "
        "they belong to, after the computation. Threads: pinned as planned, and last seen there. Same bits: "
        "the results are those of the machine with one node. Prompt: how far the results of 200 tokens are "
        "from the sum in float64, as a share of what rounding allows."
    )
    if result.get("hiccups"):
        what += (
            " Starts in which a machine stood still before its first process, and which were repeated: "
            f"{result['hiccups']}."
        )
    head = ["machine", "tried", "pages", "threads", "same bits", "prompt", "s", "outcome"]
    return table(what, head, rows)


def cross_node(result: dict[str, Any]) -> str:
    """What crosses between nodes."""
    worst = max(share for row in result["models"] for share in row["share_at_1"].values())
    percent, largest = round(100 * result["limit"]), result["max_batch"]
    rows = []
    for row in result["models"]:
        shares = [f"{100 * row['share_at_1'][nodes]:.2f} %" for nodes in ("2", "4", "8")]
        above = [str(row["batch_above_limit"][nodes] or f"> {largest}") for nodes in ("2", "4", "8")]
        rows.append([row["model"], *shares, *above])
    what = (
        f"Counted, {result['format']}, as a share of the expert bytes that are read. For one token at most "
        f"{100 * worst:.2f} %. Of large batches the experts are read once but every token crosses: the last "
        f"columns give the batch (powers of two, random routing) from which it is over {percent} %; such "
        "large batches are bound by arithmetic."
    )
    head = ["model", "2 nodes", "4 nodes", "8 nodes", f"> {percent} % on 2", "on 4", "on 8"]
    return table(what, head, rows)


def power(result: dict[str, Any]) -> str:
    """What waiting for the next layer costs, awake and asleep."""
    ways = result["ways"]
    pauses = list(next(iter(ways.values()))["layer_us"])
    worked = [pause for pause in pauses if pause != "0"]
    rows = []
    for name, way in ways.items():
        row = [f"{name}: {way['spin_us']} µs", f"{100 * way['idle_cpu']:.2f} %"]
        row += [f"{100 * way['pause_cpu'][pause]:.1f} %" for pause in worked]
        for pause in pauses:
            cell = f"{way['layer_us'][pause]['median']:.0f}"
            if name != result["reference"]:
                cost = way["cost_us"][pause]
                cell += (
                    f"; {cost['median']:+.0f} ({cost['low']:+.0f} … {cost['high']:+.0f}), "
                    f"{100 * way['cost_share'][pause]['median']:+.1f} %"
                )
            row.append(cell)
        rows.append(row)
    head = [
        "workers spin",
        "idle CPU",
        *(f"CPU in pauses of {pause} µs" for pause in worked),
        *("layer, no pause, µs" if pause == "0" else f"after {pause} µs" for pause in pauses),
    ]
    shape = result["shape"]
    what = (
        f"One token through cold {shape['format']} layers of {shape['model']}'s shape, with pauses between "
        "layers as the GPU would make them. Idle CPU: of the whole process, 100 % is one CPU; CPU in pauses: "
        "of a worker. Behind a layer's time: what it costs more than with the longest spin, and how much "
        "that is of layer and pause."
    )
    return section(result["machine"], what, head, rows, "Medians (quartiles).")
