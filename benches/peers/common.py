"""What every peer is measured with: the walk, the prompts, the clock and the line of JSON a script prints.

A line is {"system", "text", "figures": {name: value}, "note"}. Figures carry the names of `pleach bench --json`;
`prefill_*` is over 256 tokens, `prefill_*_64` over 64, and `decode_*` over 64 tokens after the short prompt.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

ANCESTORS = ["fr", "fr/sysadmin", "fr/sysadmin/name-line"]
ALICE, BOB = (f"{ANCESTORS[-1]}/{user}" for user in ("alice", "bob"))
PROMPT = "Commande : mkdir\nNOM :"
WORDS = [" time", " people", " water", " world", " family", " school", " music", " house"]  # one SmolLM2 token each
TEXT_TOKENS, DECODE_TOKENS, PREFILL_TOKENS = 24, 64, {"_64": 64, "": 256}


def arguments(**more):
    """Parses --work (the folder make_base.py wrote), --tree, --threads, --repeats and the `more` a script adds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=4)
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


def long_prompt(tokens, salt):
    """A text of exactly `tokens` SmolLM2 tokens; another `salt` of 0 to 7 makes another text, so that no prefix cache can answer."""
    return "".join(WORDS[(i * (salt + 3) + i // 8 + salt) % 8] for i in range(tokens))


def seconds(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def switch_ms(request, repeats):
    """Time of a change of node, where a request names its node: the first request after a change less the next one, median."""
    differences = []
    for i in range(2 * repeats):
        node = (ALICE, BOB)[i % 2]
        first, second = seconds(lambda: request(node)), seconds(lambda: request(node))
        differences.append(first - second)
    return 1e3 * max(0.0, statistics.median(differences))


def peak_memory_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def emit(system, text, figures, note=""):
    figures = {"peak_memory_bytes": peak_memory_bytes()} | figures
    load = round(os.getloadavg()[0], 2)  # of the last minute, this run among it
    print(json.dumps({"system": system, "text": text, "figures": figures, "note": note, "load": load}), flush=True)
