"""The checkpoints that conversions are measured on: random experts of one shape, in BF16 and in FP8.

An earlier run's are taken again; the last file to be written is the sign that one is complete. They are made
in processes of their own, so that torch's memory is not the measuring one's.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
_LAST = "generation_config.json"
_BLOCK = 128


def bf16(scratch: Path, shape: dict[str, int]) -> Path:
    """A Qwen3-MoE checkpoint."""
    path = scratch / ("checkpoint-" + "-".join(str(size) for size in shape.values()))
    if not (path / _LAST).exists():
        options = [f"--{name}={size}" for name, size in shape.items()]
        generator = ROOT / "tests" / "checkpoints"
        subprocess.run([sys.executable, generator, path, "--top-k=8", "--shards=4", *options], check=True)
    return path


def fp8(source: Path) -> Path:
    """The same with experts in blocks of 128 × 128, as DeepSeek and Qwen publish them."""
    path = source.with_name(source.name + "-fp8")
    if not (path / _LAST).exists():
        subprocess.run([sys.executable, __file__, source, path], check=True)
    return path


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(source: Path, out: Path) -> None:
    """Write the BF16 checkpoint SOURCE into OUT with its experts in FP8."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    weight_map: dict[str, str] = {}
    for shard in sorted(source.glob("*.safetensors")):
        tensors = {}
        for name, tensor in load_file(shard).items():
            if ".experts." not in name:
                tensors[name] = tensor
                continue
            rows, columns = tensor.shape
            blocks = tensor.float().view(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
            scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
            tensors[name] = (blocks / scale).to(torch.float8_e4m3fn).view(rows, columns)
            tensors[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard.name)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [_BLOCK] * 2}
    (out / "config.json").write_text(json.dumps(config))
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shutil.copyfile(source / _LAST, out / _LAST)


if __name__ == "__main__":
    main()
