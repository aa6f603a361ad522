"""Print the lines of JSON the scripts wrote as Markdown: the table, pleach against each goal, and the texts.

Where a system was measured in several rounds, a figure is its best (least time, most tokens a second); of memory and drift,
the largest.

usage: table.py RESULTS.jsonl
"""

import json
import sys

GOALS = [  # what, the least ratio, a peer's system and figure, pleach's figure; a time counts peer/pleach, a speed pleach/peer
    ("switch alice → bob against PEFT, whole path", 200, "PEFT f32, merged, whole path", "switch_leaf_ms", "switch_leaf_ms"),
    ("switch alice → bob against PEFT, leaf only", 10, "PEFT f32, merged, leaf only", "switch_leaf_ms", "switch_leaf_ms"),
    ("decode at alice against llama.cpp at alice", 1.6, "llama.cpp f16, path unmerged", "decode_tok_s_leaf", "decode_tok_s_leaf"),
    ("decode at alice against llama.cpp's base", 1.0, "llama.cpp f16, path unmerged", "decode_tok_s_base", "decode_tok_s_leaf"),
    ("prefill against llama.cpp's base", 1.0, "llama.cpp f16, path unmerged", "prefill_tok_s_base", "prefill_tok_s_base"),
]
COLUMNS = [
    ("root → alice, ms", "switch_path_ms"), ("alice → bob, ms", "switch_leaf_ms"), ("drift", None),
    ("decode tok/s, base", "decode_tok_s_base"), ("at alice", "decode_tok_s_leaf"),
    ("prefill 64 tok/s, base", "prefill_tok_s_base_64"), ("at alice", "prefill_tok_s_leaf_64"),
    ("prefill 256 tok/s, base", "prefill_tok_s_base"), ("at alice", "prefill_tok_s_leaf"),
    ("peak memory, MB", "peak_memory_bytes"),
]


def best_of(lines):
    """{system: {"text", "figures"}} in the order of first appearance."""
    systems = {}
    for line in lines:
        kept = systems.setdefault(line["system"], {"text": line["text"], "figures": {}})["figures"]
        for name, value in line["figures"].items():
            if value is not None:
                best = min if name.endswith("_ms") else max
                kept[name] = best(kept.get(name, value), value)
    return systems


def number(value):
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def drift(figures):
    if "drift_bits" in figures:
        return f"{figures['drift_bits']:.0f} bits"
    if "drift_share" in figures:
        share, largest = 100 * figures["drift_share"], figures["drift_max_over_mean"]
        return f"{share:.1f} % of weights, up to {largest:.1g} × mean \\|w\\| after {figures['switches']}"
    return "–"


def row(cells):
    print("| " + " | ".join(cells) + " |")


def main():
    with open(sys.argv[1]) as lines:
        systems = best_of(json.loads(line) for line in lines if line.strip())
    row(["system", *(title for title, _ in COLUMNS)])
    row(["---"] + ["---:"] * len(COLUMNS))
    for system, kept in systems.items():
        figures = kept["figures"]
        scaled = figures | {"peak_memory_bytes": figures.get("peak_memory_bytes", 0) / 1e6 or None}
        row([system, *(number(scaled.get(name)) if name else drift(figures) for _, name in COLUMNS)])
    if "pleach" in systems:
        print()
        row(["pleach", "times", "goal", "met"])
        row(["---", "---:", "---:", "---"])
        for what, goal, system, theirs, ours in GOALS:
            peer = systems.get(system, {"figures": {}})["figures"].get(theirs)
            pleach = systems["pleach"]["figures"].get(ours)
            if peer and pleach:
                ratio = peer / pleach if ours.endswith("_ms") else pleach / peer
                row([what, f"{ratio:.2f}", f"≥ {goal}", "yes" if ratio >= goal else "no"])
    print("\nText at alice (24 tokens, greedy):\n")
    for system, kept in systems.items():
        print(f"- {system}: `{kept['text'].strip()}`")


if __name__ == "__main__":
    main()
