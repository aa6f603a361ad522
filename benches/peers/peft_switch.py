"""PEFT on this CPU, in one of three ways of standing at a node:

path      merged: from user to user the whole path is unmerged and merged, which is what PEFT offers for a stack
leaf      merged: the ancestors are folded into the base for good beforehand and only the leaf is swapped, the kindest use
unmerged  the path's adapters active beside the base: nothing is merged, every token pays for them

The drift is what is left in the weights once the walk's last node is unmerged again. With --drift-only nothing else is
measured: no speeds, and no times that a busy machine would spoil.

usage: peft_switch.py --work WORK --tree TREE --way path|leaf|unmerged --dtype f32|bf16 [--switches N] [--drift-only]
N is even.
"""

import statistics

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
from common import ALICE, ANCESTORS, BOB


def weights(model):
    """What the adapters are merged into, by name; the model's own tensors, not copies."""
    return {k: v for k, v in model.state_dict().items() if k.endswith("base_layer.weight")}


def drift(before, model):
    """Share of the weights that changed, and the largest change over the mean |w|."""
    after, changed, total, largest, size = weights(model), 0, 0, 0.0, 0.0
    for name, old in before.items():
        difference = (after[name].double() - old.double()).abs()
        changed, total = changed + int((difference != 0).sum()), total + old.numel()
        largest, size = max(largest, float(difference.max())), size + float(old.double().abs().sum())
    return {"drift_share": changed / total, "drift_max_over_mean": largest / (size / total)}


def greedy(model, tokenizer, prompt, tokens):
    """(text, seconds of the prompt, seconds of the tokens after the first)."""
    ids, found = tokenizer(prompt, return_tensors="pt").input_ids, []
    state = {}

    def forward(ids):
        out = model(input_ids=ids, past_key_values=state.get("cache"), use_cache=True, logits_to_keep=1)
        state["cache"] = out.past_key_values
        found.append(out.logits[:, -1].argmax(-1, keepdim=True))

    def decode():
        for _ in range(tokens - 1):
            forward(found[-1])

    prefill, decoding = common.seconds(lambda: forward(ids)), common.seconds(decode)
    return tokenizer.decode(torch.cat(found, 1)[0]), prefill, decoding


def speeds(model, tokenizer, place, repeats):
    figures = {}
    greedy(model, tokenizer, common.PROMPT, 4)
    best = min(greedy(model, tokenizer, common.PROMPT, common.DECODE_TOKENS + 1)[2] for _ in range(repeats))
    figures[f"decode_tok_s_{place}"] = common.DECODE_TOKENS / best
    for suffix, length in common.PREFILL_TOKENS.items():
        times = [greedy(model, tokenizer, common.long_prompt(length, i), 1)[1] for i in range(repeats)]
        figures[f"prefill_tok_s_{place}{suffix}"] = length / min(times)
    return figures


def load_all(model, nodes):
    model = PeftModel.from_pretrained(model, nodes[0], adapter_name="0")
    for i, node in enumerate(nodes[1:], 1):
        model.load_adapter(node, adapter_name=str(i))
    return model.eval()


def walk(model, stacks, switches):
    """Merges the first stack and goes to and fro between the two, ending at the first, where the speeds are measured."""
    model.merge_adapter(stacks[1])  # the first merge and unmerge pay for what later ones reuse
    model.unmerge_adapter()

    def switch(stack):
        model.unmerge_adapter()
        model.merge_adapter(stack)

    first = common.seconds(lambda: model.merge_adapter(stacks[0]))
    times = [common.seconds(lambda: switch(stacks[(i + 1) % 2])) for i in range(switches)]
    return {"switch_path_ms": 1e3 * first, "switch_leaf_ms": 1e3 * statistics.median(times), "switches": switches}


@torch.no_grad()
def main():
    options = common.arguments(
        way={"choices": ["path", "leaf", "unmerged"], "required": True},
        dtype={"choices": ["f32", "bf16"], "default": "f32"},
        switches={"type": int, "default": 20},
        **{"drift-only": {"action": "store_true"}},
    )
    assert options.switches % 2 == 0, "an even number of switches ends at alice"
    torch.set_num_threads(options.threads)
    folder = options.work / "hf"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    measure = (lambda *_: {}) if options.drift_only else speeds
    figures = measure(model, tokenizer, "base", options.repeats) if options.way == "path" else {}
    ancestors, leaves = [options.tree / n for n in ANCESTORS], [options.tree / ALICE, options.tree / BOB]
    if options.way == "leaf":
        for node in ancestors:
            model = PeftModel.from_pretrained(model, node).merge_and_unload()
        model, stacks = load_all(model, leaves), (["0"], ["1"])
    else:
        model, stacks = load_all(model, [*ancestors, *leaves]), (["0", "1", "2", "3"], ["0", "1", "2", "4"])
    unmerged = options.work / f"unmerged-{options.dtype}.pt"
    if options.way == "unmerged":
        choose = model.base_model.set_adapter
        times = [common.seconds(lambda: choose(stacks[(i + 1) % 2])) for i in range(options.switches)]
        figures["switch_leaf_ms"] = 1e3 * statistics.median(times)
    else:
        torch.save(weights(model), unmerged)  # on disk, so that a copy for the drift is no part of the peak memory
        figures |= walk(model, stacks, options.switches)
    if options.way == "leaf":
        del figures["switch_path_ms"]  # its "root" has the ancestors in it
    figures |= measure(model, tokenizer, "leaf", options.repeats)
    text = greedy(model, tokenizer, common.PROMPT, common.TEXT_TOKENS)[0]
    figures["peak_memory_bytes"] = common.peak_memory_bytes()
    if options.way != "unmerged":
        model.unmerge_adapter()
        figures |= drift(torch.load(unmerged), model)
        unmerged.unlink()
    if options.drift_only:
        figures = {name: value for name, value in figures.items() if name.startswith("drift") or name == "switches"}
    ways = {"path": "merged, whole path", "leaf": "merged, leaf only", "unmerged": "path active, unmerged"}
    common.emit(f"PEFT {options.dtype}, {ways[options.way]}", text, figures)


if __name__ == "__main__":
    main()
