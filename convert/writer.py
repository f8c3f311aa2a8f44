"""Layer files: preallocated at their final size, filled record by record at offsets that geometry fixes.

Invariant: a file's bytes depend on its spec and its slabs alone, not on the order or the number of times they
are written; so slabs may be written by many threads and written again after a crash.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lsg._core import LayerSpec, crc32c
from lsg.convert.direct import PAGE, Bytes, PreallocatedFile, page_aligned, pwrite_all
from lsg.convert.journal import SlabDone


class SlabBuffer:
    """Memory for any one expert's records, from where a LayerWriter writes them without a copy."""

    def __init__(self, specs: Iterable[LayerSpec]) -> None:
        """Of the size that the largest of these layers' slabs needs."""
        self._memory = page_aligned(max(spec.num_units * _stride(spec) for spec in specs))

    def records(self, spec: LayerSpec, expert: int) -> Bytes:
        """The place for an expert's records, uint8 [num_units, record_bytes], rows apart."""
        stride = _stride(spec)
        rows = self._memory[: spec.num_units * stride].reshape(spec.num_units, stride)
        # In all units alike, because units begin at pages.
        begin = spec.record_offset(0, expert) % PAGE
        return rows[:, begin : begin + spec.record_bytes]


class LayerWriter:
    """One open layer file; `fresh` tells that none of its earlier slabs survive."""

    def __init__(self, path: Path, spec: LayerSpec, stack: ExitStack) -> None:
        """Open the file, or create and preallocate it. `stack` closes it."""
        self.spec = spec
        self._file = PreallocatedFile(path, spec.file_bytes, stack)
        header = spec.header()
        self.fresh = os.pread(self._file.fd, len(header), 0) != header
        if self.fresh:
            pwrite_all(self._file.fd, memoryview(header), 0)

    def write_slab(self, expert: int, records: Bytes) -> None:
        """Write an expert's records, uint8 [num_units, record_bytes]. Safe to call from several threads."""
        spec = self.spec
        self._file.write(records, spec.record_offset(0, expert), spec.unit_bytes)

    def write_table(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Write an expert's share of the expert table, (offset in the file, bytes). Safe as `write_slab`."""
        for offset, data in entries:
            pwrite_all(self._file.fd, memoryview(data), offset)

    def holds(self, slab: SlabDone) -> bool:
        """Whether the file has what the journal says of an expert, its share of the table included."""
        return self.slab_crc32c(slab.expert) == slab.crc32c and all(
            crc32c(os.pread(self._file.fd, nbytes, offset)) == crc for offset, nbytes, crc in slab.table
        )

    def slab_crc32c(self, expert: int) -> int:
        """Checksum of the records that the file holds for an expert."""
        crc = 0
        for unit in range(self.spec.num_units):
            crc = crc32c(
                os.pread(self._file.fd, self.spec.record_bytes, self.spec.record_offset(unit, expert)), crc
            )
        return crc

    def sync(self) -> None:
        """Make what was written durable."""
        self._file.sync()


def surviving_slabs(
    writers: dict[int, LayerWriter], done: list[SlabDone], reread_bytes: int
) -> dict[tuple[int, int], SlabDone]:
    """The journal's slabs that need no second conversion, by (layer, expert).

    The journal speaks only of durable data, so it is believed; but disks exist that report as durable what is
    still in their cache. A power cut then hits the newest data: the last `reread_bytes` are compared with
    their checksums, and only if one differs is everything.
    """
    known = [slab for slab in done if slab.layer in writers and not writers[slab.layer].fresh]
    newest = len(known)
    while newest and reread_bytes > 0:
        newest -= 1
        spec = writers[known[newest].layer].spec
        reread_bytes -= spec.num_units * spec.record_bytes

    def intact(slab: SlabDone) -> bool:
        return writers[slab.layer].holds(slab)

    if not all(intact(slab) for slab in known[newest:]):
        known = [slab for slab in known if intact(slab)]
    return {(slab.layer, slab.expert): slab for slab in known}


def _stride(spec: LayerSpec) -> int:
    """Bytes from one record to the next in a SlabBuffer: room for one that begins anywhere in a page."""
    return -(-(spec.record_bytes + PAGE) // PAGE) * PAGE
