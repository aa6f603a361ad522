"""llama.cpp (PyPI xllamacpp): its server with as many slots as rows, `lora` in each request, requests from threads.

`path`: three shared ancestors and the leaf, stacked; `joined`: the whole path as one adapter a user; `leaf`: the leaf alone.

usage: llamacpp_batch.py --work WORK --tree TREE --model MODEL.gguf [--adapters path|joined|leaf]
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xllamacpp

import batch_common as common


def main():
    options = common.arguments(model={"type": Path, "required": True},
                               adapters={"choices": ["path", "joined", "leaf"], "default": "path"})
    wanted, folder = common.USERS[: max(options.batches)], options.work / "users"
    shared = [str(folder / "gguf" / f"{i}.gguf") for i in range(3)] if options.adapters == "path" else []
    kind = "joined-gguf" if options.adapters == "joined" else "gguf"
    paths = shared + [str(folder / kind / f"{user}.gguf") for user in wanted]
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.n_parallel, params.warmup, params.verbosity = max(options.batches), True, -1
    params.n_ctx = 256 * params.n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    adapters = []
    for path in paths:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, 0.0
        adapters.append(adapter)
    params.lora_adapters = adapters
    server = xllamacpp.Server(params)

    def ask(prompt, user, tokens):
        request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        on = set(range(len(shared))) | {len(shared) + wanted.index(user)} if user else set()
        request["lora"] = [{"id": i, "scale": float(i in on)} for i in range(len(paths))]
        answer = server.handle_completions(request)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        usage = answer["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (common.prompt_tokens(prompt), tokens), usage
        return answer["choices"][0]["text"]

    with ThreadPoolExecutor(max(options.batches)) as pool:
        def run(prompts, users, tokens):
            return list(pool.map(ask, prompts, users, [tokens] * len(prompts)))

        name = f"llama.cpp {options.model.stem}, {options.adapters}"
        common.measure(options, name, common.clocked(run), xllamacpp.get_system_info())


if __name__ == "__main__":
    main()
