"""pleach and llama.cpp as HTTP servers, sixteen clients at sixteen users, one after the other: a line of JSON each.

The users are make_users.py's, each with the whole path of four adapters. llama.cpp is xllamacpp's own HTTP server with a slot
a client; `path` stacks three shared ancestors and the leaf in each request, `joined` takes the path as one adapter. The load
is http_load.py's, a process beside the server: on one core more than the server's threads, if there is one.

usage: http_peers.py --work WORK --tree TREE --base BASE.gguf --command target/release/pleach [--threads 1] [--clients 16]
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batch_common import USERS
from common import ANCESTORS
from pleach_batch import write_tree

HERE = Path(__file__).parent
LLAMA = """
import sys, time, xllamacpp
model, threads, slots, *adapters = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = model, int(slots), 256 * int(slots)
params.warmup, params.verbosity = True, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
loras = []
for path in adapters:
    lora = xllamacpp.CommonAdapterLoraInfo()
    lora.path, lora.scale = path, 0.0
    loras.append(lora)
params.lora_adapters = loras
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def load(options, name, url, fields):
    """What clients see of the server at `url`."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in fields))
        file.flush()
        call = [sys.executable, str(HERE / "http_load.py"), "--url", url, "--fields", file.name, "--system", name]
        call += ["--clients", str(options.clients), "--requests", str(options.requests), "--tokens", str(options.tokens)]
        print(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout.strip(), flush=True)


def pleach(options, *more):
    call = [*shlex.split(options.command), "serve", "--json", "--device", "cpu", "--base", options.base]
    call += ["--tree", str(write_tree(options)), "--threads", str(options.threads), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*call, "--log", "off", "--kv-budget", "256"], stdout=subprocess.PIPE, text=True) as server:
        url = json.loads(server.stdout.readline())["url"]
        fields = [{"model": f"{ANCESTORS[-1]}/{user}"} | dict(more) for user in USERS]
        load(options, "pleach" + "".join(f" {key} {value}" for key, value in more), url.rstrip("/"), fields)
        server.terminate()
        assert server.wait() == 0


def llama(options, kind):
    folder = options.work / "users"
    shared = [f"{i}.gguf" for i in range(3)] if kind == "path" else []
    paths = [*(folder / "gguf" / name for name in shared)]
    paths += [folder / ("gguf" if kind == "path" else "joined-gguf") / f"{user}.gguf" for user in USERS]
    call = [sys.executable, "-c", LLAMA, str(options.work / "base-f16.gguf"), str(options.threads), str(options.clients)]
    call += map(str, paths)
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        while not (url := server.stdout.readline().strip()).startswith("http"):
            assert url or server.poll() is None, "llama.cpp's server ended"
        time.sleep(2)
        on = [set(range(len(shared))) | {len(shared) + i} for i in range(len(USERS))]
        fields = [{"lora": [{"id": i, "scale": float(i in user)} for i in range(len(paths))], "cache_prompt": False} for user in on]
        load(options, f"llama.cpp f16, {kind}", url, fields)
        server.stdin.close()
        server.kill()


def main():
    parser = argparse.ArgumentParser()
    for name in ("work", "tree"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("base", "command"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in (("threads", 1), ("clients", 16), ("requests", 3), ("tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    pleach(options)
    llama(options, "path")
    llama(options, "joined")
    pleach(options)


if __name__ == "__main__":
    main()
