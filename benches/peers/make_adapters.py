"""Write the tree's adapters in the forms the peers read.

OUT/gguf/NODE.gguf     each node of the walk for llama.cpp: scaling folded into B, q and k rows in GGUF order, f32
OUT/joined/LEAF        the whole path of a leaf as one PEFT adapter, A and B of all its nodes side by side, for a runtime
                       that takes one adapter a request; modules of smaller rank are filled up with zeros

usage: make_adapters.py BASE.gguf TREE OUT
"""

import json
import math
import re
import sys
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file

from common import ALICE, ANCESTORS, BOB
from make_base import BLOCK, heads_of, to_gguf_rows


def matched(pattern, module, default):
    return next((v for k, v in pattern.items() if re.match(rf"(.*\.)?({k})$", module)), default)


def read(folder):
    """{module: (A, B)} in f32 with PEFT's scaling folded into B: the node's delta is B @ A."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, deltas = load_file(folder / "adapter_model.safetensors"), {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = tensors[key].float(), tensors[key.replace(".lora_A.", ".lora_B.")].float()
            alpha = matched(config["alpha_pattern"], module, config["lora_alpha"])
            rank = a.shape[0]
            deltas[module] = a, b * (alpha / (math.sqrt(rank) if config["use_rslora"] else rank))
    return config, deltas


def write_gguf(deltas, heads, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {module: part for part, module in BLOCK.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)  # 0: llama.cpp then scales by the request's scale alone
    for module, (a, b) in deltas.items():
        _, _, layer, inner = module.split(".", 3)
        part = names[inner]
        b = to_gguf_rows(b.numpy(), heads[part]) if part in heads else b.numpy()
        writer.add_tensor(f"blk.{layer}.{part}.weight.lora_a", a.numpy())
        writer.add_tensor(f"blk.{layer}.{part}.weight.lora_b", b.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_joined(nodes, config, folder):
    folder.mkdir(parents=True, exist_ok=True)
    modules = sorted(set().union(*nodes))
    parts = {m: [node[m] for node in nodes if m in node] for m in modules}
    rank, tensors = max(sum(a.shape[0] for a, _ in p) for p in parts.values()), {}
    for module, pairs in parts.items():
        a, b = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)
        missing = rank - a.shape[0]
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.cat([a, a.new_zeros(missing, a.shape[1])])
        tensors[f"{key}.lora_B.weight"] = torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    target = sorted({m.rsplit(".", 1)[1] for m in modules})
    config = config | {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}}
    config |= {"target_modules": target, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))


def main():
    base, tree, out = map(Path, sys.argv[1:])
    heads = heads_of(gguf.GGUFReader(base))
    nodes = {node: read(tree / node) for node in [*ANCESTORS, ALICE, BOB]}
    for node, (_, deltas) in nodes.items():
        write_gguf(deltas, heads, out / "gguf" / f"{node}.gguf")
    for leaf in (ALICE, BOB):
        write_joined([nodes[n][1] for n in [*ANCESTORS, leaf]], nodes[leaf][0], out / "joined" / leaf.rsplit("/", 1)[1])


if __name__ == "__main__":
    main()
