"""Print the lines of JSON the batch scripts wrote as Markdown: the table, pleach against each goal, and some users' texts.

usage: batch_table.py RESULTS.jsonl
"""

import json
import sys

from table import number, row

ROWS, MODE = 16, "each"  # the batch the goals are about: as many users as rows
OURS = ["pleach", "pleach --merge root"]
GOALS = [  # a peer, the least ratio of decode speeds, against which of OURS
    ("mistral.rs f32, joined", 3, OURS),
    ("mistral.rs f16, joined", 3, OURS),
    ("llama.cpp base-f16, path", 5, OURS),
    ("PEFT f32, joined", 5, OURS),
    ("PEFT bf16, joined", 5, OURS),
    ("PEFT bf16, leaf", 2.5, OURS[:1]),
]
COLUMNS = [("decode tok/s", "decode_tok_s"), ("whole tok/s", "total_tok_s"), ("peak MB", "peak_mb")]


def goal(speeds, peer, least, ours):
    """One cell of the second table: the ratio and whether it is reached."""
    if peer not in speeds or ours not in speeds:
        return "not measured"
    if min(speeds[peer], speeds[ours]) <= 0:
        return "lost in noise"
    ratio = speeds[ours] / speeds[peer]
    return f"{ratio:.2f}, {'yes' if ratio >= least else 'no'}"


def main():
    with open(sys.argv[1]) as lines:
        lines = [json.loads(line) for line in lines if line.strip()]
    shapes = {f"{x['threads']} thread(s), {x['decode']} tokens a row, {x['repeats']} repeat(s)" for x in lines}
    print("; ".join(sorted(shapes)) + "\n")
    row(["system", "rows", "mode", *(title for title, _ in COLUMNS)])
    row(["---", "---:", "---"] + ["---:"] * len(COLUMNS))
    for line in lines:
        figures = (number(line[name]) if line[name] > 0 else "noise" for _, name in COLUMNS)
        row([line["system"], str(line["rows"]), line["mode"], *figures])
    print(f"\nDecode, {ROWS} rows of {ROWS} users:\n")
    speeds = {x["system"]: x["decode_tok_s"] for x in lines if (x["rows"], x["mode"]) == (ROWS, MODE)}
    row(["against", "goal", *(f"{ours}: times, met" for ours in OURS)])
    row(["---", "---:"] + ["---:"] * len(OURS))
    for peer, least, against in GOALS:
        row([peer, f"≥ {least}", *(goal(speeds, peer, least, ours) if ours in against else "–" for ours in OURS)])
    print("\nOne prompt for all users of the largest batch (12 tokens, greedy): distinct texts, the first and the last:\n")
    widest = max((x["rows"] for x in lines if x["mode"] == MODE), default=None)
    for line in lines:
        if (line["rows"], line["mode"]) == (widest, MODE):
            some = " and ".join(f"`{line['texts'][i].strip()}`" for i in (0, -1))
            print(f"- {line['system']}: {line['distinct_texts']} of {widest}, {some}")



if __name__ == "__main__":
    main()
