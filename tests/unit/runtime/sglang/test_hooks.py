from types import SimpleNamespace

import pytest

from lsg.runtime.sglang import compat, hooks


def runner(directory):
    return SimpleNamespace(model_config=SimpleNamespace(model_path=str(directory)), model="model")


def fused_moe_init(
    self, num_experts, hidden_size, layer_id, quant_config=None, prefix="", *, quant_method=None
):
    self.got = num_experts, layer_id, quant_config, prefix, quant_method


class Layer:
    """Stands for a FusedMoE."""


@pytest.fixture
def offload(monkeypatch):
    offload = object()
    monkeypatch.setattr(hooks, "_offload", offload)
    return offload


def test_an_ordinary_directory_is_loaded_as_ever(checkpoint):
    calls = []
    assert (
        hooks.around_load_model(lambda given: calls.append(given) or "result", runner(checkpoint)) == "result"
    )
    assert [call.model for call in calls] == ["model"]


def test_a_draft_of_resident_experts_is_loaded_as_ever(sglang_import, repacked, monkeypatch):
    experts = sglang_import("lsg.runtime.sglang.experts")
    monkeypatch.setattr(experts, "Offload", lambda directory, given: SimpleNamespace(resident=True))
    loaded = hooks.around_load_model(lambda given: (given.model, hooks._offload), runner(repacked))
    assert loaded == ("model", None)


def test_outside_of_our_models_layers_are_built_as_ever():
    layer = Layer()
    hooks.around_fused_moe_init(
        fused_moe_init, layer, 8, 64, layer_id=3, quant_config="fp8", quant_method="x"
    )
    assert layer.got == (8, 3, "fp8", "", "x")


@pytest.mark.parametrize(
    ("positional", "named"),
    [((8, 64, 3, "fp8"), {}), ((8, 64), {"layer_id": 3}), ((8, 64, 3), {"quant_config": "fp8"})],
)
def test_layers_of_our_models_get_our_method(positional, named, offload):
    layer = Layer()
    hooks.around_fused_moe_init(fused_moe_init, layer, *positional, **named, prefix="p", quant_method="x")
    assert layer.got == (8, 3, offload, "p", None)


def test_shared_experts_stay_sglangs(offload):
    layer = Layer()
    layer.is_shared_fused_moe = True
    hooks.around_fused_moe_init(fused_moe_init, layer, 8, 64, 3, "fp8")
    assert layer.got[2] == "fp8"


def test_our_errors_end_the_process(sglang_import, spoilt):
    sglang_import("lsg.runtime.sglang.experts")
    (spoilt / "experts/layer-00001.lsgb").unlink()
    with pytest.raises(SystemExit, match=r"^lsg: .*layer-00001.lsgb: missing"):
        hooks.around_load_model(lambda _: pytest.fail("loaded"), runner(spoilt))


def test_every_hook_is_pinned_and_says_why():
    pinned = {f"sglang.{pin.file.removesuffix('.py').replace('/', '.')}.{pin.path}" for pin in compat.PINS}
    for hook in hooks.LEDGER:
        assert hook.target in pinned
        assert hook.why
        assert hook.checked
        assert hook.until
