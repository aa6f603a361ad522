"""pleach itself: `pleach generate --requests`, one line a row, each at its user's node.

Every batch is a process of its own, so it reads the base and the leaves anew. Its time is the largest prefill_ms + decode_ms
of its lines, which begins when the base is loaded and has the reading and compiling of the leaves in it. Its CPU time is all of
the process's: only the difference of two batches has a meaning.

usage: pleach_batch.py --work WORK --tree TREE --base BASE.gguf --command 'cargo run --release --' [--merge auto|root|...]
"""

import json
import resource
import shlex
import shutil
import subprocess

import batch_common as common
from common import ANCESTORS

KV_MIB = "256"  # all of it is taken at the start; 16 rows of 97 tokens need a third


def write_tree(options):
    """The tree with make_users.py's users beside alice and bob."""
    tree = options.work / "users" / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(options.tree, tree)
    for user in common.USERS:
        shutil.copytree(options.work / "users" / "leaf" / user, tree / ANCESTORS[-1] / user)
    return tree


def main():
    options = common.arguments(base={"required": True}, command={"required": True}, merge={"default": "auto"})
    file = options.work / "users" / "requests.jsonl"
    call = [*shlex.split(options.command), "generate", "--requests", str(file), "--json", "--base", options.base]
    call += ["--tree", str(write_tree(options)), "--threads", str(options.threads), "--merge", options.merge]
    call += ["--ignore-eos", "--temperature", "0", "--kv-budget", KV_MIB]

    def timed(prompts, users, tokens):
        nodes = [f"{ANCESTORS[-1]}/{user}" if user else "/" for user in users]
        rows = [{"id": i, "node": n, "prompt": p, "max_tokens": tokens} for i, (n, p) in enumerate(zip(nodes, prompts))]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answered = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = sorted(map(json.loads, answered.splitlines()), key=lambda line: line["id"])
        assert len(lines) == len(rows), f"{len(lines)} answers to {len(rows)} requests"
        for i, line in enumerate(lines):
            assert line["prompt_tokens"] == common.prompt_tokens(prompts[i]), "the prompt has another length here"
            assert len(line["token_ids"]) == tokens, f"{len(line['token_ids'])} tokens of {tokens}"
        seconds = max(line["prefill_ms"] + line["decode_ms"] for line in lines) / 1e3
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return [line["text"] for line in lines], seconds, cpu

    name = "pleach" if options.merge == "auto" else f"pleach --merge {options.merge}"
    common.measure(options, name, timed, peak=lambda: 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


if __name__ == "__main__":
    main()
