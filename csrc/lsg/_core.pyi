"""The C++ core: blob format, packing, quantisation, kernels and the expert engine."""

import enum
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

__version__: str

class LsgError(Exception):
    """Base of every error lsg raises on purpose. The message is one sentence for the user."""

class FormatError(LsgError):
    """A blob or manifest is not what FORMAT.md says."""

class CheckpointError(LsgError):
    """The source checkpoint is incomplete, damaged or of a kind that is not supported."""

class UnsupportedIsaError(LsgError):
    """LSG_ISA names a level that this processor (or this program) does not have."""

class CapacityError(LsgError):
    """Not enough memory, disk or other room."""

class CompatError(LsgError):
    """sglang, or a setting, does not fit what this program was checked against."""

class Dtype(enum.Enum):
    INT4 = 1
    INT8 = 2
    FP8_E4M3 = 3
    FP8_E5M2 = 4
    BF16 = 5
    F16 = 6
    FP4_E2M1 = 7

class ScaleDtype(enum.Enum):
    NONE = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    FP8_E4M3 = 4
    E8M0 = 5

class PanelFormat:
    """How one panel's numbers are stored; the fields are FORMAT.md's."""

    def __init__(
        self,
        dtype: Dtype,
        scale_dtype: ScaleDtype = ...,
        *,
        scale_rows: int = 1,
        scale_k: int = 0,
        zero_point: bool = False,
        bias: bool = False,
        global_scale: bool = False,
        k_permutation: bool = False,
    ) -> None: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def scale_dtype(self) -> ScaleDtype: ...
    @property
    def scale_rows(self) -> int: ...
    @property
    def scale_k(self) -> int: ...
    @property
    def zero_point(self) -> bool: ...
    @property
    def bias(self) -> bool: ...
    @property
    def global_scale(self) -> bool: ...
    @property
    def k_permutation(self) -> bool: ...
    def __eq__(self, other: object) -> bool: ...

class LayerSpec:
    """One MoE layer's geometry and formats; every size of its file follows from it.

    `unit_rows` 0 chooses the smallest of 32, 64, 128 that gives at most 48 units, or a larger one where
    records would be short.
    Raises FormatError when a field is out of range.
    """

    def __init__(
        self,
        *,
        layer_index: int,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        gated: bool,
        gate_up: PanelFormat,
        down: PanelFormat,
        unit_rows: int = 0,
    ) -> None: ...
    @property
    def layer_index(self) -> int: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def gated(self) -> bool: ...
    @property
    def gate_up(self) -> PanelFormat: ...
    @property
    def down(self) -> PanelFormat: ...
    @property
    def unit_rows(self) -> int: ...
    @property
    def num_units(self) -> int: ...
    @property
    def record_bytes(self) -> int: ...
    @property
    def unit_bytes(self) -> int: ...
    @property
    def table_offset(self) -> int: ...
    @property
    def table_bytes(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    def record_offset(self, unit: int, expert: int) -> int:
        """Byte offset of the record in the layer file."""
    def header(self) -> bytes:
        """The file's first 4096 bytes, checksum included."""

class Matrix:
    """One projection of one expert, before packing: codes and what gives them their values.

    codes: [N, K]; uint8 for 4- and 8-bit dtypes (one code a byte; int4 as q + 8), uint16 for 16-bit dtypes
    (raw bits). scales: [ceil(N / scale_rows), number of K groups], uint8, uint16 or float32 by the scale
    dtype (raw bits). zero_points: uint8, shaped as scales. bias: float32 [N]. global_scale: multiplies every
    weight of the matrix. input_order: uint32 [K], column k multiplies input input_order[k]; gate's is up's.
    """

    def __init__(
        self,
        codes: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
        scales: npt.NDArray[np.generic] | None = None,
        zero_points: npt.NDArray[np.uint8] | None = None,
        bias: npt.NDArray[np.float32] | None = None,
        global_scale: float | None = None,
        input_order: npt.NDArray[np.uint32] | None = None,
    ) -> None: ...
    @property
    def codes(self) -> npt.NDArray[np.generic]: ...
    @property
    def scales(self) -> npt.NDArray[np.generic] | None: ...
    @property
    def zero_points(self) -> npt.NDArray[np.uint8] | None: ...
    @property
    def bias(self) -> npt.NDArray[np.float32] | None: ...
    @property
    def global_scale(self) -> float | None: ...
    @property
    def input_order(self) -> npt.NDArray[np.uint32] | None: ...

def pack_expert(spec: LayerSpec, gate: Matrix | None, up: Matrix, down: Matrix) -> npt.NDArray[np.uint8]:
    """Permute one expert into its records, uint8 [num_units, record_bytes]. gate is None when not gated.

    gate, up: [I, H]; down: [H, I]. Raises FormatError when a shape or dtype does not fit the spec.
    """

def pack_table(
    spec: LayerSpec, expert: int, gate: Matrix | None, up: Matrix, down: Matrix
) -> list[tuple[int, bytes]]:
    """The expert's share of the expert table, as (offset in the layer file, bytes); empty without a table."""

def unpack_expert(
    spec: LayerSpec,
    records: npt.NDArray[np.uint8],
    table: npt.NDArray[np.uint8] | None = None,
    expert: int = 0,
) -> tuple[Matrix | None, Matrix, Matrix]:
    """Undo pack_expert and pack_table: (gate, up, down), equal to what was packed.

    table: the layer's whole expert table, uint8 [table_bytes]; needed where the layer has one, with `expert`
    the index in it.
    """

def map_range(fd: int, offset: int, nbytes: int, *, populate: bool = True) -> npt.NDArray[np.uint8] | None:
    """Bytes of a file where the page cache has them, uint8 [nbytes], read only, all of them present.

    Without `populate` nothing is present, and the array only tells convert_expert from where in the file to
    read codes; `fd` must stay open until then.

    None where that is not to be had (an old kernel, a file system, a file that ends earlier or cannot be
    read): then reading the file tells why. A file that shrinks afterwards ends the process that looks at it.
    """

def write_rows(
    fd: int, direct_fd: int, rows: npt.NDArray[np.uint8], offset: int, file_stride: int = 0
) -> bool:
    """Write rows, uint8 [count, nbytes], `file_stride` apart in the file; they may be apart in memory.

    fd, direct_fd: one file, the second opened past the page cache, or -1. Whole pages go there where they lie
    in memory as in the file, everything else to the first; no page goes to both, whatever neighbouring rows
    do. False if the file system refuses direct writes only now; the rows are written all the same. Releases
    the GIL. Raises OSError.
    """

def convert_expert(
    spec: LayerSpec,
    expert: int,
    gate: Matrix | None,
    up: Matrix,
    down: Matrix,
    gate_up_source: PanelFormat,
    down_source: PanelFormat,
    records: npt.NDArray[np.uint8],
    *,
    search: bool = True,
    isa: str = "",
) -> tuple[list[tuple[int, bytes]], int, list[tuple[float, float] | None]]:
    """Convert an expert from the sources' formats to the spec's and permute it into `records`, in one pass.

    records: uint8 [num_units, record_bytes], rows may be apart; every byte is written. Returns the expert's
    share of the expert table as (offset in the layer file, bytes), the checksum of the records in unit order,
    and of gate, up and down the squared error and squared norm, None for a matrix whose format is the spec's
    already: it is kept. `search` and the formats that there are: see convert_matrix. Releases the GIL; the
    same bytes on every processor.

    Raises FormatError when a shape or format does not fit, CheckpointError, beginning with the projection,
    for a NaN, an infinity, or a number that the spec's format cannot hold, OSError for codes in a file
    (map_range) that cannot be read.
    """

def convert_matrix(
    matrix: Matrix, source: PanelFormat, target: PanelFormat, *, search: bool = True, isa: str = ""
) -> tuple[Matrix, tuple[float, float] | None]:
    """Convert one matrix as convert_expert does: the result with its squared error and squared norm.

    Besides the source's own, the targets are: int4 and int8 in groups of 32 with bf16 scales, e4m3 in blocks
    of 128 × 128 with f32 scales, e2m1 in groups of 32 with e8m0 scales or of 16 with e4m3 scales and a global
    scale, bf16, f16. With `search`, an int4 or e2m1 group's scale is the one of least squared error among a
    few neighbouring ones; without, it follows from the largest weight.
    """

def crc32c(data: npt.NDArray[np.uint8] | bytes, crc: int = 0) -> int:
    """CRC-32C (RFC 3720) of data, continuing from `crc`."""

class LayerFile:
    """A mapped, validated layer file. Raises FormatError unless it is exactly as FORMAT.md demands."""

    def __init__(self, path: str) -> None: ...
    @property
    def spec(self) -> LayerSpec: ...
    @property
    def header_crc32c(self) -> int: ...
    @property
    def lives_in_memory(self) -> bool:
        """Whether the file system has no disk."""
    def cached_bytes(self) -> int:
        """Bytes in the page cache; the kernel tells the file's owner only, others hear all of them."""
    def maps_huge(self) -> bool:
        """Whether mapping the file gives 2 MiB pages; reads the 2 MiB in its middle to find out."""
    def expert(self, expert: int) -> npt.NDArray[np.uint8]:
        """A copy of the expert's records, uint8 [num_units, record_bytes]."""
    def slab_crc32c(self, expert: int) -> int: ...
    def table(self) -> npt.NDArray[np.uint8]:
        """A copy of the expert table, uint8 [table_bytes]."""
    def table_crc32c(self) -> int: ...

class Activation(enum.Enum):
    SILU = 0
    SWIGLU_CLAMPED = 1
    SILU_CLAMPED = 2
    SWIGLUOAI = 3
    GELU_TANH = 4
    RELU2 = 5
    SITU = 6

class Isa(enum.Enum):
    SCALAR = 0
    AVX2 = 1
    AVX512 = 2
    VNNI = 3
    BF16 = 4
    AMX = 5

def isa_levels() -> list[Isa]:
    """Levels this processor can run, lowest first."""

def kernel_isa(name: str = "") -> Isa:
    """The level whose kernels run when `name` is selected: itself, or the highest below that has kernels."""

def select_isa(name: str = "") -> Isa:
    """The highest usable level, or the named one. Raises UnsupportedIsaError for any other name."""

class PartResidency:
    """Where a unit range of a loaded layer is, as the kernel tells.

    layer: its handle. node: where it should be, -1 for anywhere. bytes_on: by NUMA node, of `bytes`;
    absent_bytes are not mapped in this process, unknown_bytes the kernel or a seccomp profile hides.
    huge_bytes are in pages of 2 MiB; of a layer that is mapped on several nodes, in proportion.
    """

    @property
    def layer(self) -> int: ...
    @property
    def node(self) -> int: ...
    @property
    def unit_begin(self) -> int: ...
    @property
    def unit_end(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def bytes_on(self) -> dict[int, int]: ...
    @property
    def absent_bytes(self) -> int: ...
    @property
    def unknown_bytes(self) -> int: ...
    @property
    def huge_bytes(self) -> int: ...

class NodeWorkers:
    """The workers of one NUMA node.

    node: as the kernel numbers it. cpus: for each worker the logical CPUs it may run on; none: any.
    """

    def __init__(self, node: int, cpus: Sequence[Sequence[int]]) -> None: ...
    @property
    def node(self) -> int: ...
    @property
    def cpus(self) -> list[list[int]]: ...

class Engine:
    """Computes routed experts from layer files on a pool of workers; engines with the same workers share it.

    threads: workers of a single node, pinned nowhere; or nodes: the workers of each NUMA node, which read
    only the units of their node. The calling thread is the first worker of a single node if that one may run
    anywhere; else it only waits. isa: a level's name, empty for the highest. activations: "int8" (groups of
    32; default; fp8 and bf16 weights meet bf16 on the BF16 level, else floats) or "float" (weights
    dequantised, exact activations but in prompts, where the level multiplies bf16). spin_us: how long a
    worker without work spins before it sleeps; 0 saves power. Raises CapacityError when a worker cannot be
    started or pinned.
    """

    def __init__(
        self,
        *,
        threads: int = 0,
        nodes: Sequence[NodeWorkers] = ...,
        isa: str = "",
        activations: str = "int8",
        spin_us: int = 50,
    ) -> None: ...
    def add_layer(
        self,
        path: str,
        *,
        activation: Activation = ...,
        alpha: float = 1.0,
        limit: float = 0.0,
        unit_begin: int = 0,
        unit_end: int = -1,
        load: str = "map",
        nodes: Sequence[tuple[int, int, int]] = (),
        node_units: Sequence[int] = (),
        defer: bool = False,
    ) -> int:
        """Add a layer file and bring it into memory; returns the handle for forward.

        A unit range makes this engine a tensor-parallel rank: forward gives a partial sum. load: "map" uses
        the file's own pages, "huge" a copy in 2 MiB pages. nodes: (NUMA node, unit_begin, unit_end), in
        order and without gaps, instead of the range: where the bytes lie. node_units: how many units each of
        the engine's nodes computes, in order; by default those of `nodes` when there are as many of them,
        else evenly. Neither changes a bit of the result. defer: the bytes come with the next `load`.
        """
    def load(
        self,
        progress: Callable[[list[tuple[int, int, int]]], None] | None = None,
        *,
        threads_per_node: int = 0,
        lock: bool = False,
    ) -> None:
        """Bring deferred layers into memory, on all nodes at the same time.

        progress: called several times a second with (node, bytes done, bytes in all); -1 is any node. What
        it raises stops the load, as does a signal whose handler raises. Layers that were not loaded are
        then gone. lock: keep them from being evicted or swapped, as far as the limit on locked memory
        permits. Raises CapacityError when memory cannot be had, FormatError when a file changes meanwhile.
        """
    def residency(self) -> list[PartResidency]:
        """Where every unit range of the loaded layers is; about 0.05 s per GB, divided by the cores."""
    def forward(
        self,
        layer: int,
        hidden: int,
        topk_ids: int,
        topk_weights: int,
        out: int,
        *,
        tokens: int,
        top_k: int,
        dtype: str,
    ) -> None:
        """out[t] = sum over j of topk_weights[t, j] · expert[topk_ids[t, j]](hidden[t]).

        hidden, out: addresses of contiguous [tokens, H], dtype "f32", "bf16" or "f16"; topk_ids: int32
        [tokens, top_k], negative = no expert; topk_weights: f32 [tokens, top_k]. Releases the GIL. Raises
        LsgError for an id ≥ E, and in a process forked from the one that made the engine.
        """
    def int8_inputs(self, layer: int, tokens: int, top_k: int) -> bool:
        """Whether a batch's inputs are quantised to int8; otherwise kernels take them as floats or bf16."""
    def in_one_pass(self, layer: int, tokens: int, top_k: int) -> bool:
        """Whether a batch takes one pass over weights, in which a token's bits are the same as alone."""
    def trace_to(self, path: str) -> None:
        """From now on record in this file when each forward ran (layout: csrc/engine/trace.h)."""
    @property
    def isa(self) -> Isa: ...
    @property
    def threads(self) -> int: ...
    @property
    def loaded_bytes(self) -> int: ...
    @property
    def locked_bytes(self) -> int: ...

class HandOver:
    """Puts an engine's work into a CUDA stream, captured or not; the GPU waits for the CPU in stream order.

    way: "hostfunc", "memops" or "kernels". tokens, hidden_size, top_k: the largest batch that memory is
    pinned for. core: where the thread that answers the GPU runs, -1 for anywhere. library: the CUDA driver.
    Needs a current CUDA context. Calls run one after the other, on whatever streams: they share memory.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        way: str,
        tokens: int,
        hidden_size: int,
        top_k: int,
        core: int = -1,
        library: str = "libcuda.so.1",
    ) -> None: ...
    def reserve(self, *, tokens: int, hidden_size: int, top_k: int) -> None:
        """Pin memory for a larger batch. Not while a stream is capturing."""
    def submit(
        self,
        layer: int,
        *,
        stream: int,
        hidden: int,
        topk_ids: int,
        topk_weights: int,
        out: int,
        tokens: int,
        top_k: int,
        hidden_size: int,
        dtype: str,
    ) -> None:
        """Enqueue what Engine.forward does; addresses are the GPU's. Raises LsgError past the reservation."""
    def wait_for_failure(self) -> str | None:
        """Wait until a computation has failed and return its error, or None after stop. Releases the GIL."""
    def stop(self) -> None:
        """End the waiting."""
    def close(self) -> None:
        """Stop, and end the thread that answers the GPU, which must be idle. Nothing is submitted after."""

class Instruction(enum.Enum):
    """What kernels spend their time in: a register width, or a tile. MADDUBS sums in 16 bits eight times."""

    FMA_YMM = 0
    MADDUBS_YMM = 1
    FMA_ZMM = 2
    MADDUBS_ZMM = 3
    DPBUSD_ZMM = 4
    DPBF16_ZMM = 5
    TILE_BF16 = 6
    TILE_INT8 = 7

def instruction_isa(instruction: Instruction) -> Isa:
    """The lowest level that has the instruction."""

def arithmetic_peak(
    instruction: Instruction, threads: int, *, cores: Sequence[int] = (), seconds: float = 0.2
) -> float:
    """Measured operations/s of all threads together, operands in registers; a multiply-add is two operations.

    cores: as for Engine. Raises UnsupportedIsaError when this processor does not have the instruction.
    """

class ReadProbe:
    """Measures the DRAM read rate of all threads together, `streams` streams each, in 2 MiB pages.

    gib: of all threads together, kept until the probe goes. cores: as for Engine; a thread's part lies on its
    core's node.
    """

    def __init__(
        self, threads: int, gib: float = 1.0, streams: int = 4, *, cores: Sequence[int] = ()
    ) -> None: ...
    def measure(self, seconds: float = 1.0) -> float:
        """Bytes/s over about so many seconds."""

def keep_freed_memory() -> None:
    """Let the allocator keep freed memory for the next array instead of returning it to the system."""
