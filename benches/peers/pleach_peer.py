"""pleach itself: the figures of `pleach bench --json` and the text of `pleach generate`, as a line like the peers'.

usage: pleach_peer.py --work WORK --tree TREE --base BASE.gguf --command 'cargo run --release --'
"""

import json
import shlex
import subprocess

import common


def main():
    options = common.arguments(base={"required": True}, command={"required": True})
    shared = ["--base", options.base, "--tree", str(options.tree), "--threads", str(options.threads), "--json"]

    def pleach(command, *more):
        call = [*shlex.split(options.command), command, *shared, *more]
        return json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)

    prompt = ["--prompt", common.PROMPT, "--max-tokens", str(common.TEXT_TOKENS), "--temperature", "0"]
    text = pleach("generate", "--node", common.ALICE, *prompt)["text"]
    figures = {f["name"]: f["value"] for f in pleach("bench")["figures"]}
    common.emit("pleach", text, figures)


if __name__ == "__main__":
    main()
