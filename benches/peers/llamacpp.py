"""llama.cpp (PyPI xllamacpp) on this CPU. Its adapters stay beside the weights and are applied to every token.

A request names the adapters it wants, each with a scale; all five of the walk are loaded.

usage: llamacpp.py --work WORK --tree TREE --model MODEL.gguf --name f16
"""

import json
from pathlib import Path

import xllamacpp

import common
from common import ALICE, ANCESTORS, BOB

NODES = [*ANCESTORS, ALICE, BOB]


def server(options):
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 1024, 1, True, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    adapters = []
    for node in NODES:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = str(options.work / "gguf" / f"{node}.gguf"), 0.0
        adapters.append(adapter)
    params.lora_adapters = adapters
    return xllamacpp.Server(params)


def ask(server, prompt, tokens, leaf=None):
    path = [*ANCESTORS, leaf] if leaf else []
    request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    request["lora"] = [{"id": i, "scale": float(node in path)} for i, node in enumerate(NODES)]
    answer = server.handle_completions(request)
    return answer if isinstance(answer, dict) else json.loads(answer)


def main():
    options = common.arguments(model={"type": Path, "required": True}, name={"required": True})
    llama, figures = server(options), {}
    for place, leaf in (("base", None), ("leaf", ALICE)):
        ask(llama, common.PROMPT, 4, leaf)
        answers = [ask(llama, common.PROMPT, common.DECODE_TOKENS, leaf) for _ in range(options.repeats)]
        figures[f"decode_tok_s_{place}"] = max(a["timings"]["predicted_per_second"] for a in answers)
        for suffix, length in common.PREFILL_TOKENS.items():
            answers = [ask(llama, common.long_prompt(length, i), 1, leaf) for i in range(options.repeats)]
            assert all(a["timings"]["prompt_n"] == length for a in answers), "the prompt has another length here"
            figures[f"prefill_tok_s_{place}{suffix}"] = max(a["timings"]["prompt_per_second"] for a in answers)
    figures["switch_leaf_ms"] = common.switch_ms(lambda leaf: ask(llama, common.PROMPT, 1, leaf), 10)
    text = ask(llama, common.PROMPT, common.TEXT_TOKENS, ALICE)["choices"][0]["text"]
    common.emit(f"llama.cpp {options.name}, path unmerged", text, figures, xllamacpp.get_system_info())


if __name__ == "__main__":
    main()
