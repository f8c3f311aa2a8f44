import json

import pytest

from lsg import CompatError, FormatError, manifest
from lsg.runtime.model import check_ordinary, is_repacked, open_model, resident_bytes
from lsg.runtime.settings import Settings


def test_what_is_repacked(repacked, checkpoint):
    assert is_repacked(repacked)
    assert not is_repacked(checkpoint)
    check_ordinary(checkpoint)


def test_sizes_are_those_on_disk(repacked):
    model = open_model(repacked)
    assert model.expert_bytes == sum(path.stat().st_size for path in repacked.glob("experts/*.lsgb"))
    assert resident_bytes(repacked) == sum(path.stat().st_size for path in repacked.glob("*.safetensors"))
    assert model.dtypes == "int4"


def test_checksums_of_an_intact_directory(repacked):
    assert [layer.index for layer in open_model(repacked).verify()] == [0, 1]


def test_an_expert_table_that_is_not_the_manifests_is_found(spoilt):
    path = manifest.path_in(spoilt)
    content = json.loads(path.read_text())
    content["layers"][1]["table_crc32c"] ^= 1
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"layer-00001.*checksum of its expert table"):
        list(open_model(spoilt).verify())


def test_a_layer_that_is_not_there(repacked):
    assert open_model(repacked).layer(1).index == 1
    with pytest.raises(CompatError, match="layer 7, the directory only in layers 0 to 1"):
        open_model(repacked).layer(7)


@pytest.mark.parametrize(
    ("weights", "fits"), [(None, True), ("int4", True), ("bf16", False), ("keep", False)]
)
def test_the_kind_of_experts_asked_for(weights, fits, repacked):
    model = open_model(repacked)
    if fits:
        model.check_settings(Settings(weights=weights))
    else:
        with pytest.raises(CompatError, match=f"lsg-convert --experts {weights}"):
            model.check_settings(Settings(weights=weights))
