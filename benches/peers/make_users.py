"""Sixteen users below fr/sysadmin/name-line, made from alice by other signs of B's rows, in the forms the peers read.

OUT/users/leaf/USER      the leaf alone as PEFT (rank 2, q and v)
OUT/users/joined/USER    the whole path as one PEFT adapter (rank 32, all linears), for peers that take one a request
OUT/users/gguf/USER.gguf, OUT/users/gguf/{0,1,2}.gguf   leaf and ancestors for llama.cpp
OUT/users/joined-gguf/USER.gguf                         the whole path for llama.cpp

usage: make_users.py BASE.gguf TREE OUT
"""

import json
import sys
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file

from batch_common import USERS
from common import ALICE, ANCESTORS
from make_adapters import read, write_gguf, write_joined
from make_base import heads_of


def main():
    base, tree, out = map(Path, sys.argv[1:])
    out = out / "users"
    heads = heads_of(gguf.GGUFReader(base))
    ancestors = [read(tree / node)[1] for node in ANCESTORS]
    for i, deltas in enumerate(ancestors):
        write_gguf(deltas, heads, out / "gguf" / f"{i}.gguf")
    config, leaf = read(tree / ALICE)
    plain = json.loads((tree / ALICE / "adapter_config.json").read_text())
    tensors = load_file(tree / ALICE / "adapter_model.safetensors")
    for i, user in enumerate(USERS):
        signs = torch.Generator().manual_seed(i)
        flip = {m: torch.where(torch.rand(b.shape[0], 1, generator=signs) < 0.2, -1.0, 1.0) for m, (_, b) in leaf.items()}
        mine = {m: (a, b * flip[m]) for m, (a, b) in leaf.items()}
        folder = out / "leaf" / user
        folder.mkdir(parents=True, exist_ok=True)
        changed = dict(tensors)
        for m, f in flip.items():
            key = f"base_model.model.{m}.lora_B.weight"
            changed[key] = (tensors[key].float() * f).to(tensors[key].dtype)
        save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(plain, indent=1))
        write_gguf(mine, heads, out / "gguf" / f"{user}.gguf")
        write_joined([*ancestors, mine], config, out / "joined" / user)
        write_gguf(read(out / "joined" / user)[1], heads, out / "joined-gguf" / f"{user}.gguf")


if __name__ == "__main__":
    main()
