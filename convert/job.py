"""One conversion from start to finish.

Invariant: everything that can be wrong with the headers of the source, the options or the disk is found
before the first byte is written and before any weight is downloaded; after that, a finished slab is kept as
long as the shards that it came from are the same.
"""

import errno
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lsg
from lsg import CheckpointError, manifest
from lsg._core import crc32c
from lsg.convert import resident, schedule, steps, workdir
from lsg.convert.catalogue import layer_entry
from lsg.convert.checkpoint import Checkpoint
from lsg.convert.console import Progress
from lsg.convert.experts import Slabs, UnsuitableError, convert_experts
from lsg.convert.geometry import MoeGeometry
from lsg.convert.journal import Entry, Identity, ResidentDone, ShardIdentity, SlabDone
from lsg.convert.origin import LocalOrigin, Origin
from lsg.convert.sources import Source, find_experts
from lsg.convert.targets import SEARCHING, Target
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
        return {"experts": self.experts} | ({"search": self.search} if self.experts in SEARCHING else {})


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

    def __init__(self, origin: Origin, checkpoint: Checkpoint, options: Options) -> None:
        self.origin = origin
        self.checkpoint = checkpoint
        self.options = options
        config = checkpoint.directory / "config.json"
        self.geometry = MoeGeometry.from_config(checkpoint.config, str(config))
        self.source: Source = find_experts(checkpoint, self.geometry)
        self.target: Target = Target(options.experts, search=options.search)
        self.plan = schedule.make_plan(self.source, self.target, checkpoint.tensors.values())
        self.needs = steps.find_needs(self.plan, self.source.tensor_names, checkpoint.tensors)
        self.small_files = resident.small_files(checkpoint.directory)
        self.identity = Identity(
            created_by=CREATED_BY,
            options=options.shaping,
            model=origin.hub_id,
            asked=origin.asked,
            revision=origin.revision,
            config_crc32c=crc32c(config.read_bytes()),
            shards=[ShardIdentity(s.name, s.nbytes, s.version, s.header_crc32c) for s in checkpoint.shards],
        )

    @property
    def out_bytes(self) -> int:
        return self.plan.expert_file_bytes + self.plan.resident_bytes

    @property
    def needed_bytes(self) -> int:
        """What the output's disk must hold at the worst moment."""
        if not self.origin.stream:
            return self.out_bytes
        absent = {s.name: s.nbytes for s in self.checkpoint.shards if self.checkpoint.is_absent(s.name)}
        return self.out_bytes + steps.peak_bytes(steps.shard_by_shard(self.needs), absent)

    def run(self, work: workdir.WorkDirectory, progress: Progress) -> tuple[Slabs, Slabs]:
        """Write everything but the manifest; all slabs, and those that an earlier run had finished."""
        experts_dir = work.model / manifest.DIRECTORY
        experts_dir.mkdir(exist_ok=True)
        layers = {layer.source.index: layer for layer in self.plan.layers}
        files = {file.name: file for file in self.plan.resident}
        with ExitStack() as stack:
            writers = {
                index: LayerWriter(experts_dir / manifest.layer_file_name(index), layer.spec, stack)
                for index, layer in layers.items()
            }
            journaled = work.journal.current(self._shards_of)
            kept = surviving_slabs(writers, [e for e in journaled if isinstance(e, SlabDone)], _REREAD_BYTES)
            kept_parts = self._kept_parts(journaled, work)
            slabs = dict(kept)
            left = self.needs.without(kept, kept_parts)
            order = steps.shard_by_shard(left) if self.origin.stream else steps.all_at_once(left)
            if not self.origin.stream:
                self._attach(order[0].fetch, work, progress)
            progress.begin(self.plan.source_bytes, self._kept_bytes(kept, kept_parts))
            for step in order:
                self._attach(step.fetch, work, progress)
                slabs |= convert_experts(
                    self.source,
                    self.target,
                    [(layers[layer], expert) for layer, expert in step.slabs],
                    writers,
                    work.journal,
                    self.options.threads,
                    self.plan.slabs_in_flight(self.options.threads),
                    progress.advance,
                )
                for name, shard in step.parts:
                    resident.write_part(self.checkpoint, files[name], shard, work.model, progress.advance)
                    work.journal.append([ResidentDone(name, shard)])
                for shard in step.release:
                    self.checkpoint.detach(shard)
                    self.origin.release(shard, work.download)
        resident.write_index(self.plan.resident, work.model)
        resident.copy_small_files(
            self.checkpoint.directory,
            self.small_files,
            work.model,
            quantized=resident.is_quantized(self.plan.resident),
        )
        return slabs, kept

    def catalogue(self, slabs: Slabs, directory: Path) -> manifest.Manifest:
        """The manifest; opening every layer file to read its checksums also validates it."""
        return manifest.Manifest(
            magic=manifest.MAGIC,
            version=manifest.VERSION,
            endianness="little",
            created_by=CREATED_BY,
            source=manifest.Source(
                model=self.origin.name, revision=self.origin.revision, format=self.source.format
            ),
            options=self.options.shaping,
            architecture=self.geometry.architecture,
            model_type=self.geometry.model_type,
            top_k=self.geometry.top_k,
            layers=[layer_entry(layer, slabs, directory) for layer in self.plan.layers],
        )

    def _attach(self, shards: Sequence[str], work: workdir.WorkDirectory, progress: Progress) -> None:
        absent = [shard for shard in shards if self.checkpoint.is_absent(shard)]
        if absent:
            for shard, path in self.origin.fetch(absent, work.download, progress).items():
                self.checkpoint.attach(shard, path)

    def _shards_of(self, entry: Entry) -> Iterable[str]:
        if isinstance(entry, SlabDone):
            return self.needs.slabs.get((entry.layer, entry.expert), ())
        return (entry.shard,)

    def _kept_parts(self, journaled: Iterable[Entry], work: workdir.WorkDirectory) -> set[steps.Part]:
        """Parts of files that are there as they were; one that is not is written anew from the start."""
        whole = {
            file.name
            for file in self.plan.resident
            if (work.model / file.name).is_file()
            and (work.model / file.name).stat().st_size == resident.file_bytes(file)
        }
        done = (entry for entry in journaled if isinstance(entry, ResidentDone))
        return {(entry.name, entry.shard) for entry in done if entry.name in whole}

    def _kept_bytes(self, slabs: Iterable[steps.Slab], parts: Collection[steps.Part]) -> int:
        expert_bytes = {layer.source.index: layer.source.expert_bytes for layer in self.plan.layers}
        resident_bytes = sum(
            tensor.nbytes
            for file in self.plan.resident
            for tensor in file.tensors
            if (file.name, tensor.shard) in parts
        )
        return sum(expert_bytes[layer] for layer, _ in slabs) + resident_bytes


def convert(source: Path | Origin, out: Path, options: Options, progress: Progress) -> Summary:
    """Repack `source` into `out`, continuing an interrupted run. Raises LsgError, OSError."""
    began = time.monotonic()
    origin = LocalOrigin(source) if isinstance(source, Path) else source
    workdir.check_place(origin.directory, out)
    if manifest.path_in(origin.directory).exists():
        msg = (
            f"{origin.directory}: already a repacked model directory; convert the checkpoint it was made from"
        )
        raise CheckpointError(msg)
    with Checkpoint(origin.directory, origin.remote) as checkpoint:
        job = _Job(origin, checkpoint, options)
        workdir.check_room(out, job.needed_bytes)
        with workdir.open_work(out, job.identity, restart=options.restart) as work:
            try:
                slabs, kept = job.run(work, progress)
                catalogue = job.catalogue(slabs, work.model)
                manifest.path_in(work.model).write_bytes(manifest.dumps(catalogue))
                work.publish()
            except CheckpointError as error:
                done = sum(isinstance(entry, SlabDone) for entry in work.journal.entries)
                if isinstance(error, UnsuitableError) or not done:
                    work.discard()
                    raise error
                msg = f"{error}; what is done is kept: run the same command again after that to continue"
                raise CheckpointError(msg) from error
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise workdir.disk_full(work, job.needed_bytes) from error
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
