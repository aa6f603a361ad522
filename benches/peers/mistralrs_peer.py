"""mistral.rs (PyPI mistralrs) on this CPU. A request takes one adapter, applied to every token; it cannot stack a path.

So that it does the same work, a leaf's path is given to it as one adapter with the nodes' factors side by side (`joined/`).

usage: mistralrs_peer.py --work WORK --tree TREE [--dtype f32|f16|bf16]
"""

import mistralrs

import common

DTYPES = {name: getattr(mistralrs.ModelDType, name.upper()) for name in ("f32", "f16", "bf16")}


def main():
    options = common.arguments(dtype={"choices": list(DTYPES), "default": "f16"})
    leaves = {leaf: leaf.rsplit("/", 1)[1] for leaf in (common.ALICE, common.BOB)}
    which = mistralrs.Which.Lora(
        model_id=str(options.work / "hf"),
        adapters=[mistralrs.LoraAdapter(alias, str(options.work / "joined" / alias)) for alias in leaves.values()],
        arch=mistralrs.Architecture.Llama,
        dtype=DTYPES[options.dtype],
    )
    runner, figures = mistralrs.Runner(which=which, prefix_cache_n=0), {}

    def ask(prompt, tokens, leaf=None):
        request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
        request |= {"adapter": leaves[leaf]} if leaf else {}
        return runner.send_completion_request(mistralrs.CompletionRequest(model="base", **request))

    for place, leaf in (("base", None), ("leaf", common.ALICE)):
        ask(common.PROMPT, 4, leaf)
        answers = [ask(common.PROMPT, common.DECODE_TOKENS, leaf) for _ in range(options.repeats)]
        figures[f"decode_tok_s_{place}"] = max(a.usage.avg_compl_tok_per_sec for a in answers)
        for suffix, length in common.PREFILL_TOKENS.items():
            answers = [ask(common.long_prompt(length, i), 1, leaf) for i in range(options.repeats)]
            assert all(a.usage.prompt_tokens == length for a in answers), "the prompt has another length here"
            figures[f"prefill_tok_s_{place}{suffix}"] = max(a.usage.avg_prompt_tok_per_sec for a in answers)
    figures["switch_leaf_ms"] = common.switch_ms(lambda leaf: ask(common.PROMPT, 1, leaf), 10)
    text = ask(common.PROMPT, common.TEXT_TOKENS, common.ALICE).choices[0].text
    common.emit(f"mistral.rs {options.dtype}, joined path unmerged", text, figures)


if __name__ == "__main__":
    main()
