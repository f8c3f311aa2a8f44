"""Every model family in every published format, through the converter, against what its generator knows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import Result

from checkpoints.families import CASES, FORMATS, Expected, make, verify

Convert = Callable[..., Result]


def names(cases) -> dict[str, tuple[str, str]]:
    return {re.sub(r"[/ ,]+", "_", f"{model}-{form}"): (model, form) for model, form in cases}


NAMES = names(CASES)


class Source(NamedTuple):
    directory: Path
    expected: Expected
    decoder: str


def write(name: str, case: tuple[str, str], parent: Path) -> Source:
    directory = parent / name
    return Source(directory, make(directory, *case), FORMATS[case[1]].experts.decoder)


@pytest.fixture(scope="module", params=NAMES)
def source(request, tmp_path_factory) -> Source:
    return write(request.param, NAMES[request.param], tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def kept(source: Source, convert: Convert) -> Path:
    """The checkpoint repacked without loss."""
    out = source.directory.with_name("kept")
    result = convert(source.directory, out, "--experts", "keep")
    assert result.exit_code == 0, result.output
    return out


def test_kept_experts_are_the_checkpoints(source: Source, kept: Path):
    verify.check_manifest(kept, source.expected)
    verify.check_experts(kept, source.expected)


def test_everything_else_stays_as_it_is(source: Source, kept: Path):
    verify.check_resident(source.directory, kept, source.expected)


def test_engine_computes_kept_experts(source: Source, kept: Path):
    verify.check_engine(kept, source.expected)


def test_bf16_experts_are_rounded_once(source: Source, convert: Convert, tmp_path: Path):
    result = convert(source.directory, tmp_path / "out", "--experts", "bf16")
    assert result.exit_code == 0, result.output
    verify.check_manifest(tmp_path / "out", source.expected)
    verify.check_experts(tmp_path / "out", source.expected, "bf16")


def test_int4_experts_are_close(source: Source, convert: Convert, tmp_path: Path):
    result = convert(source.directory, tmp_path / "out", "--experts", "int4")
    if source.decoder in ("mxfp4", "nvfp4"):
        assert result.exit_code == 1
        assert "4-bit numbers are not quantised again" in result.output
        assert list(tmp_path.iterdir()) == []
        return
    assert result.exit_code == 0, result.output
    verify.check_experts(tmp_path / "out", source.expected, "int4")
