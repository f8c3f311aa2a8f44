"""One conversion from start to finish.

Invariant: everything that can be wrong with the headers of the source, the options or the disk is found
before the first byte is written; after that, a finished slab is kept unless the source itself proves bad.
"""

import errno
import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lsg
from lsg import CheckpointError, manifest
from lsg._core import LayerFile, crc32c
from lsg.convert import resident, schedule, workdir
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.console import Progress
from lsg.convert.experts import Slabs, convert_experts
from lsg.convert.geometry import MoeGeometry
from lsg.convert.journal import Identity, ResidentDone, ShardIdentity, SlabDone
from lsg.convert.sources import Source, find_experts
from lsg.convert.targets import Target, make_target
from lsg.convert.writer import LayerWriter, surviving_slabs

CREATED_BY: Final = f"lsg-convert {lsg.__version__}"
# Of a continued run's finished slabs, how much is compared with its checksums: a second or two of reading.
_REREAD_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Options:
    """What the command line chose; `threads` and `restart` do not shape the bytes."""

    experts: str
    search: bool = True
    threads: int = 1
    restart: bool = False

    @property
    def shaping(self) -> dict[str, str | int | bool]:
        """Those that shape the bytes, as they go into the manifest."""
        return {"experts": self.experts} | ({"search": self.search} if self.experts == "int4" else {})


@dataclass(frozen=True)
class Summary:
    """What a conversion did. `converted_bytes` (of the source) and `seconds` are this run's alone."""

    out: str
    experts: str
    layers: int
    slabs: int
    slabs_kept: int
    expert_bytes: int
    resident_bytes: int
    peak_bytes: int
    converted_bytes: int
    seconds: float
    worst_error: float | None


class _Job:
    """The parts of one conversion, wired together."""

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint = checkpoint
        self.options = options
        config = checkpoint.directory / "config.json"
        self.geometry = MoeGeometry.from_config(checkpoint.config, str(config))
        self.source: Source = find_experts(checkpoint, self.geometry)
        self.target: Target = make_target(options.experts, search=options.search)
        self.plan = schedule.make_plan(self.source, self.target, checkpoint.tensors.values())
        self.small_files = resident.small_files(checkpoint.directory)
        self.identity = Identity(
            created_by=CREATED_BY,
            options=options.shaping,
            config_crc32c=crc32c(config.read_bytes()),
            shards=[ShardIdentity(s.name, s.nbytes, s.mtime_ns, s.header_crc32c) for s in checkpoint.shards],
        )

    @property
    def out_bytes(self) -> int:
        return self.plan.expert_file_bytes + self.plan.resident_bytes

    def run(self, work: workdir.WorkDirectory, progress: Progress) -> tuple[Slabs, Slabs]:
        """Write everything but the manifest; all slabs, and those that an earlier run had finished."""
        experts_dir = work.model / manifest.DIRECTORY
        experts_dir.mkdir(exist_ok=True)
        with ExitStack() as stack:
            writers = {
                layer.source.index: LayerWriter(
                    experts_dir / manifest.layer_file_name(layer.source.index), layer.spec, stack
                )
                for layer in self.plan.layers
            }
            journaled = [entry for entry in work.journal.entries if isinstance(entry, SlabDone)]
            kept = surviving_slabs(writers, journaled, _REREAD_BYTES)
            kept_files = self._kept_files(work)
            progress.begin(self.plan.source_bytes, self._kept_bytes(kept, kept_files))
            slabs = convert_experts(
                self.source,
                self.target,
                self.plan,
                writers,
                work.journal,
                kept,
                self.options.threads,
                progress.advance,
            )
        for file in self.plan.resident:
            if file.name not in kept_files:
                nbytes = resident.write_resident(self.checkpoint, file, work.model, progress.advance)
                work.journal.append([ResidentDone(file.name, nbytes)])
        resident.write_index(self.plan.resident, work.model)
        resident.copy_small_files(self.checkpoint.directory, self.small_files, work.model)
        return slabs, kept

    def catalogue(self, slabs: Slabs, directory: Path) -> manifest.Manifest:
        """The manifest; opening every layer file to read its checksums also validates it."""
        return manifest.Manifest(
            magic=manifest.MAGIC,
            version=manifest.VERSION,
            endianness="little",
            created_by=CREATED_BY,
            source=manifest.Source(
                model=self.checkpoint.directory.resolve().name, revision=None, format=self.source.format
            ),
            options=self.options.shaping,
            architecture=self.geometry.architecture,
            model_type=self.geometry.model_type,
            top_k=self.geometry.top_k,
            activation=self.geometry.activation,
            layers=[_layer_entry(layer, slabs, directory) for layer in self.plan.layers],
        )

    def _kept_files(self, work: workdir.WorkDirectory) -> set[str]:
        done = (entry for entry in work.journal.entries if isinstance(entry, ResidentDone))
        return {
            entry.name
            for entry in done
            if (work.model / entry.name).is_file()
            and (work.model / entry.name).stat().st_size == entry.nbytes
        }

    def _kept_bytes(self, slabs: Iterable[tuple[int, int]], files: set[str]) -> int:
        expert_bytes = {layer.source.index: layer.source.expert_bytes for layer in self.plan.layers}
        tensors = (t for file in self.plan.resident if file.name in files for t in file.tensors)
        return sum(expert_bytes[layer] for layer, _ in slabs) + sum(tensor.nbytes for tensor in tensors)


def convert(source_dir: Path, out: Path, options: Options, progress: Progress) -> Summary:
    """Repack `source_dir` into `out`, continuing an interrupted run. Raises LsgError, OSError."""
    began = time.monotonic()
    workdir.check_place(source_dir, out)
    if manifest.path_in(source_dir).exists():
        msg = f"{source_dir}: already a repacked model directory; convert the checkpoint it was made from"
        raise CheckpointError(msg)
    with Checkpoint(source_dir) as checkpoint:
        job = _Job(checkpoint, options)
        workdir.check_room(out, job.out_bytes)
        with workdir.open_work(out, job.identity, restart=options.restart) as work:
            try:
                slabs, kept = job.run(work, progress)
                catalogue = job.catalogue(slabs, work.model)
                manifest.path_in(work.model).write_bytes(manifest.dumps(catalogue))
                work.publish()
            except CheckpointError:
                # The source itself is bad: a repaired one is another source, which cannot continue this work.
                work.discard()
                raise
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise workdir.disk_full(work, job.out_bytes) from error
    errors = [layer.error for layer in catalogue.layers if layer.error]
    return Summary(
        out=str(out),
        experts=options.experts,
        layers=len(job.plan.layers),
        slabs=len(slabs),
        slabs_kept=len(kept),
        expert_bytes=job.plan.expert_file_bytes,
        resident_bytes=job.plan.resident_bytes,
        peak_bytes=job.plan.peak_bytes(options.threads),
        converted_bytes=progress.advanced_bytes,
        seconds=time.monotonic() - began,
        worst_error=max((max(e.gate or 0.0, e.up, e.down) for e in errors), default=None),
    )


def _layer_entry(layer: schedule.LayerPlan, slabs: Slabs, directory: Path) -> manifest.Layer:
    spec = layer.spec
    name = manifest.layer_file_name(spec.layer_index)
    file = LayerFile(str(directory / manifest.DIRECTORY / name))
    done = [slabs[spec.layer_index, expert] for expert in range(spec.num_experts)]
    return manifest.Layer(
        index=spec.layer_index,
        prefix=layer.source.prefix,
        file=name,
        file_bytes=spec.file_bytes,
        num_experts=spec.num_experts,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        unit_rows=spec.unit_rows,
        gated=spec.gated,
        gate_up=manifest.Panel.of(spec.gate_up),
        down=manifest.Panel.of(spec.down),
        header_crc32c=file.header_crc32c,
        table_crc32c=file.table_crc32c(),
        slab_crc32c=[slab.crc32c for slab in done],
        error=_layer_error(done),
    )


def _layer_error(slabs: list[SlabDone]) -> manifest.QuantizationError | None:
    """Relative squared errors over the layer's experts, in their order; None if no value changed."""
    gate, up, down = (
        _relative([error for slab in slabs if (error := slab.errors[projection])]) for projection in range(3)
    )
    if up is None or down is None:
        return None
    return manifest.QuantizationError(gate=gate, up=up, down=down)


def _relative(sums: list[tuple[float, float]]) -> float | None:
    if not sums:
        return None
    norm = math.fsum(norm for _, norm in sums)
    return math.fsum(error for error, _ in sums) / norm if norm else 0.0
