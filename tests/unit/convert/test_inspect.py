import importlib.util
import json

import pytest
from click.testing import CliRunner

from checkpoints import make_checkpoint
from lsg._core import LayerFile
from lsg.cli import main


@pytest.fixture(scope="module")
def model(convert, tmp_path_factory):
    """Seven units of 32 in three layers, one of them dense."""
    root = tmp_path_factory.mktemp("model")
    source = make_checkpoint(root / "tiny", layers=4, intermediate=200, dense_layers=[1], shards=1)
    assert convert(source, root / "out", "--experts", "int4").exit_code == 0
    return root / "out"


def inspect(*arguments):
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def test_json(model):
    result = inspect(model, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["source"] == {"model": "tiny", "revision": None, "format": "bf16"}
    assert report["options"]["experts"] == "int4"
    assert [(kind["layers"], kind["num_units"], kind["gate_up"]) for kind in report["kinds"]] == [
        ([0, 2, 3], 7, "int4, bf16 scale for every 32 inputs")
    ]
    files = sorted((model / "experts").glob("*.lsgb"))
    assert report["total_bytes"] == sum(path.stat().st_size for path in files)
    unit_bytes = LayerFile(str(files[0])).spec.unit_bytes
    assert report["node_bytes"] == {
        "1": [3 * 7 * unit_bytes],
        "2": [3 * 4 * unit_bytes, 3 * 3 * unit_bytes],
        "4": [3 * 2 * unit_bytes] * 3 + [3 * unit_bytes],
        "8": [3 * unit_bytes] * 7 + [0],
    }
    assert report["error"].keys() == {"0", "2", "3"}
    assert all(0 < error["down"] < 0.02 for error in report["error"].values())


def test_words(model):
    shown = inspect(model).stdout
    for part in (
        "source      tiny, experts in bf16",
        "layers      0, 2-3: 8 experts, hidden 64, intermediate 200, 7 units of 32",
        "8 nodes",
        "relative squared error of the worst projection",
        "████",
    ):
        assert part in shown


def test_without_loss(convert, pristine, tmp_path):
    assert convert(pristine, tmp_path / "out", "--experts", "bf16").exit_code == 0
    assert "none: every weight is the checkpoint's own" in inspect(tmp_path / "out").stdout
    result = inspect(tmp_path / "out", "--plot", tmp_path / "plot.png")
    assert result.exit_code == 1
    assert result.stderr == "lsg inspect: nothing to plot: every layer is stored without loss\n"


def test_plot(model, tmp_path):
    result = inspect(model, "--plot", tmp_path / "plot.png")
    if importlib.util.find_spec("matplotlib") is None:
        assert result.exit_code == 1
        assert "pip install 'lsg[plot]'" in result.stderr
    else:
        assert result.exit_code == 0
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_repacked_directory(pristine):
    result = inspect(pristine)
    assert result.exit_code == 1
    assert result.stderr.startswith("lsg inspect: ")
    assert "is " in result.stderr
    assert "a directory that lsg-convert made" in result.stderr


def test_the_group_knows_its_commands():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "inspect" in result.stdout
    assert "verify" in result.stdout
    assert CliRunner().invoke(main, ["mend"]).exit_code == 2
