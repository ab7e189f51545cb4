"""Files of real PyTorch, safetensors and gguf, and what they read in such files.

    python files.py write FOLDER       writes the files, and beside each its values as raw bits
    python files.py read FILE          prints the tensors of a file by safetensors or gguf

Beside NAME lies NAME.bits: the values as PyTorch reads them, by layer, as little-endian f32 (`Tensor.float()`), and for
a configuration NAME.caps: the caps as little-endian f64 in order.
"""

import collections
import os
import struct
import sys

import gguf
import numpy
import safetensors.torch
import torch

LAYERS, WIDTH = 6, 24


def bits(path, tensor):
    """Writes a tensor's values as PyTorch converts them to f32."""
    with open(path, "wb") as file:
        file.write(tensor.detach().float().contiguous().numpy().astype("<f4").tobytes())


def save(folder, name, value, tensor, **options):
    path = os.path.join(folder, name)
    torch.save(value, path, **options)
    # What PyTorch itself reads again.
    torch.load(path)
    bits(path + ".bits", tensor)


def random(*shape):
    """Values of very different sizes, among them the least and the largest of their type."""
    values = torch.randn(*shape, dtype=torch.float64) * torch.logspace(-3, 3, shape[-1], dtype=torch.float64)
    values.view(-1)[0] = 2.0**-24
    values.view(-1)[1] = -65504.0
    return values


def vectors(folder):
    rows = random(LAYERS, WIDTH)
    for name, kind in [("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32), ("f64", torch.float64)]:
        save(folder, f"axis-{name}.pt", rows.to(kind), rows.to(kind))
    axis = rows.to(torch.bfloat16)
    save(folder, "axis-middle.pt", axis.unsqueeze(1), axis)
    save(folder, "axis-dict.pt", {"axis": axis, "metadata": {"model": "m", "layers": [1, 2], "scale": 0.5, "none": None}}, axis)
    save(folder, "axis-ordered.pt", collections.OrderedDict(axis=axis), axis)
    save(folder, "axis-parameter.pt", torch.nn.Parameter(rows.float()), rows)
    save(folder, "axis-gradient.pt", rows.float().requires_grad_(), rows)
    save(folder, "axis-transposed.pt", rows.float().t().contiguous().t(), rows)
    larger = random(2 * LAYERS + 3, 3 * WIDTH + 5).float()
    view = larger[2 : 2 + 2 * LAYERS : 2, 1 : 1 + 3 * WIDTH : 3]
    save(folder, "axis-view.pt", view, view)
    save(folder, "axis-list.pt", list(axis), axis)
    save(folder, "axis-layers.pt", {layer: axis[layer] for layer in reversed(range(LAYERS))}, axis)
    save(folder, "axis-names.pt", {f"layer_{layer}": axis[layer].clone() for layer in range(LAYERS)}, axis)
    for protocol in [3, 4, 5]:
        value = {"axis": axis, "note": "text", "many": list(range(3000))}
        save(folder, f"axis-protocol{protocol}.pt", value, axis, pickle_protocol=protocol)
    subnormal = torch.full((LAYERS, WIDTH), 2.0**-140, dtype=torch.float32)
    save(folder, "axis-subnormal.pt", subnormal, subnormal)

    path = os.path.join(folder, "axis.safetensors")
    safetensors.torch.save_file({"axis": axis, "note": torch.tensor([1, 2])}, path, {"format": "pt"})
    bits(path + ".bits", axis)
    path = os.path.join(folder, "layers.safetensors")
    safetensors.torch.save_file({f"layer_{layer}": rows[layer].half() for layer in range(LAYERS)}, path)
    bits(path + ".bits", rows.half())


def means(folder):
    """The default vector and vectors of roles with a large common offset, as the released files have them."""
    offset = 50 * torch.randn(LAYERS, WIDTH)
    axis = torch.randn(LAYERS, WIDTH)
    default = (offset + axis).to(torch.bfloat16)
    torch.save(default, os.path.join(folder, "default_vector.pt"))
    roles = [(offset + 0.3 * torch.randn(LAYERS, WIDTH)).to(torch.bfloat16) for _ in range(5)]
    for index, role in enumerate(roles):
        value = role if index % 2 else {"vector": role, "type": "pos_3", "role": f"role{index}"}
        torch.save(value, os.path.join(folder, f"role{index}.pt"))
    difference = default.double() - torch.stack(roles).double().mean(0)
    bits(os.path.join(folder, "difference.bits"), difference)
    return difference


def config(folder, difference):
    """A configuration as the released ones: role minus default, bf16, caps as floats."""
    names = [f"layer_{layer}/contrast_role_pos3_default1" for layer in range(LAYERS)]
    stored = (-difference).to(torch.bfloat16)
    caps = [-1.5, 0.1, -3.3]
    interventions = [{"vector": names[2 + index], "cap": cap} for index, cap in enumerate(caps)]
    value = {
        "vectors": {name: {"vector": stored[layer].clone(), "layer": layer} for layer, name in enumerate(names)},
        "experiments": [
            {"id": "layers_2:5-p0.25", "interventions": interventions},
            {"id": "layers_1:2-p0.5", "interventions": [{"vector": names[1], "cap": 2.0}]},
        ],
    }
    save(folder, "capping_config.pt", value, stored)
    with open(os.path.join(folder, "capping_config.pt.caps"), "wb") as file:
        file.write(struct.pack("<3d", *caps))


def control_vectors(folder):
    """With the keys and names that repeng's export_gguf and llama.cpp's cvector-generator write."""
    rows = numpy.random.default_rng(0).standard_normal((LAYERS, WIDTH)).astype(numpy.float32)
    for name, first in [("repeng", 0), ("generator", 1)]:
        path = os.path.join(folder, f"{name}.gguf")
        writer = gguf.GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", "llama")
        count = LAYERS - first
        if name == "repeng":
            writer.add_uint32("controlvector.layer_count", count)
        else:
            writer.add_int32("controlvector.layer_count", count)
        for layer in range(first, LAYERS):
            writer.add_tensor(f"direction.{layer}", rows[layer])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        bits(path + ".bits", torch.tensor(rows[first:]))


class Touch:
    """Writes a file when it is loaded by pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def refused(folder):
    """Files that PyTorch can load and the importer refuses."""
    axis = torch.randn(LAYERS, WIDTH)
    path = lambda name: os.path.join(folder, f"refused-{name}.pt")
    torch.save(axis, path("legacy"), _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), path("script"))
    torch.save(torch.nn.Linear(3, 2), path("module"))
    torch.save({"axis": axis, "note": Touch(os.path.join(folder, "executed"))}, path("executes"))
    torch.save(torch.arange(LAYERS * WIDTH).view(LAYERS, WIDTH), path("integers"))
    torch.save(axis[0].expand(1000, WIDTH), path("expanded"))
    torch.save(numpy.zeros((LAYERS, WIDTH)), path("numpy"))
    torch.save(axis.to_sparse(), path("sparse"))
    torch.save(torch.quantize_per_tensor(axis, 0.1, 0, torch.qint8), path("quantised"))


def write(folder):
    torch.manual_seed(0)
    vectors(folder)
    config(folder, means(folder))
    control_vectors(folder)
    refused(folder)


def read(path):
    """Prints name, type, shape and bits of each tensor."""
    if path.endswith(".gguf"):
        reader = gguf.GGUFReader(path)
        fields = {name: reader.fields[name].parts[-1] for name in reader.fields}
        print("hint", bytes(fields["controlvector.model_hint"]).decode(), fields["controlvector.layer_count"][0])
        tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    else:
        tensors = {name: tensor.numpy() for name, tensor in safetensors.torch.load_file(path).items()}
    for name, data in sorted(tensors.items()):
        print(name, data.dtype, "x".join(map(str, data.shape)), data.tobytes().hex())


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](sys.argv[2])
