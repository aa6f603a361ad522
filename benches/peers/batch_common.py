"""What every script of the batch measurement shares: users, prompts, modes, the clock and the line of JSON.

A batch has B rows, each a prompt of LENGTH tokens (equal lengths, other text in each row) followed by DECODE greedy tokens,
end-of-sequence ignored. Modes: `base` no adapter, `one` the same user in every row, `each` another user in every row,
`four` four users in turn. Before the clock starts the same users are warmed up, among it with the same short prompt in every
row: what differs between those texts is the adapters' work.

decode_tok_s = B * DECODE / (time of 1 + DECODE tokens - time of 1 token); total_tok_s = B * (1 + DECODE) / time of all.
decode_tok_cpu_s is the same over the process's CPU time (all its threads): with one thread, what a quiet core would give,
whatever the neighbours do (pools that wait by spinning count their waiting).
"""

import argparse
import json
import os
import time
from pathlib import Path

from common import PROMPT, long_prompt, peak_memory_bytes

USERS = [f"user{i:02}" for i in range(16)]
LENGTH, DECODE, TEXT_TOKENS = 32, 64, 12
MODES = ("base", "one", "four", "each")


def arguments(**more):
    """Parses --work (the folder make_base.py and make_users.py wrote), the shape of batches and the `more` a script adds."""
    several = lambda kind: lambda text: [kind(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=several(int), default=[1, 4, 16])
    parser.add_argument("--modes", type=several(str), default=["base", "one", "each"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--decode", type=int, default=DECODE)
    parser.add_argument("--ragged", action="store_true", help="row i has LENGTH + i tokens")
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    options = parser.parse_args()
    if unknown := set(options.modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")
    if not all(1 <= rows <= len(USERS) for rows in options.batches):
        parser.error(f"a batch has 1 to {len(USERS)} rows, as there are {len(USERS)} users")
    return options


def prompts(options, rows, salt):
    return [long_prompt(LENGTH + (i if options.ragged else 0), salt + i) for i in range(rows)]


def prompt_tokens(prompt):
    """How many tokens a prompt must have with every system."""
    return 9 if prompt == PROMPT else prompt.count(" ")


def users(mode, rows):
    four = [USERS[i % 4] for i in range(rows)]
    return {"base": [None] * rows, "one": [USERS[0]] * rows, "four": four, "each": USERS[:rows]}[mode]


def clocked(run):
    """`run(prompts, users, tokens)` gives the rows' texts; with a clock around it, (texts, seconds, seconds of the CPU)."""
    def timed(*batch):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        texts = run(*batch)
        return texts, time.perf_counter() - begin, time.process_time() - begin_cpu
    return timed


def measure(options, system, timed, note="", peak=peak_memory_bytes):
    """`timed(prompts, users, tokens)` runs one whole batch; see `clocked`."""
    for rows in options.batches:
        for mode in options.modes:
            who = users(mode, rows)
            timed(prompts(options, rows, 1000), who, 2)  # adapters resident, kernels chosen
            texts, best = timed([PROMPT] * rows, who, TEXT_TOKENS)[0], {}
            for i in range(options.repeats):
                for tokens in (1, 1 + options.decode):
                    _, took, cpu = timed(prompts(options, rows, 50 * i), who, tokens)
                    best[tokens] = min(best.get(tokens, took), took)
                    best["cpu", tokens] = min(best.get(("cpu", tokens), cpu), cpu)
            decode = best[1 + options.decode] - best[1]
            decode_cpu = best["cpu", 1 + options.decode] - best["cpu", 1]
            figures = {
                "decode_tok_s": rows * options.decode / decode,
                "decode_tok_cpu_s": rows * options.decode / decode_cpu,
                "step_ms": 1e3 * decode / options.decode,
                "step_cpu_ms": 1e3 * decode_cpu / options.decode,
                "total_tok_s": rows * (1 + options.decode) / best[1 + options.decode],
                "prefill_ms": 1e3 * best[1],
            }
            line = {"system": system, "rows": rows, "mode": mode, "threads": options.threads, "ragged": options.ragged}
            line |= {k: round(v, 2) for k, v in figures.items()}
            line |= {"decode": options.decode, "repeats": options.repeats, "texts": texts}
            line |= {"distinct_texts": len(set(texts)), "peak_mb": peak() // 10**6}
            line |= {"load": round(os.getloadavg()[0], 2), "note": note}
            print(json.dumps(line), flush=True)
