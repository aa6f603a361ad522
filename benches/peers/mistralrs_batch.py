"""mistral.rs (PyPI mistralrs): concurrent requests, `adapter` in each.

A Runner takes one call at a time, but a streaming one returns at once: all rows are sent, then all answers are read. The
prompt is a user's message, so its chat template is set to be the message alone. On a CPU its scheduler batches sequences of
equal length only (`--ragged`).

usage: mistralrs_batch.py --work WORK --tree TREE [--dtype f32|f16|bf16] [--isq HQQ8|...] [--adapters joined|leaf]
"""

import logging
import os

os.environ.setdefault("RUST_LOG", "error")

import mistralrs

import batch_common as common

DTYPES = {name: getattr(mistralrs.ModelDType, name.upper()) for name in ("f32", "f16", "bf16")}


def main():
    options = common.arguments(dtype={"choices": list(DTYPES), "default": "f32"},
                               adapters={"choices": ["joined", "leaf"], "default": "joined"},
                               isq={"help": "quantise the base while loading"})
    logging.disable(logging.INFO)
    wanted = common.USERS[: max(options.batches)]
    adapters = [mistralrs.LoraAdapter(u, str(options.work / "users" / options.adapters / u)) for u in wanted]
    hf, dtype = str(options.work / "hf"), DTYPES[options.dtype]
    which = mistralrs.Which.Lora(model_id=hf, adapters=adapters, arch=mistralrs.Architecture.Llama, dtype=dtype)
    template = options.work / "message.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    runner = mistralrs.Runner(which=which, prefix_cache_n=0, max_seqs=max(options.batches), in_situ_quant=options.isq,
                              jinja_explicit=str(template))

    def start(prompt, user, tokens):
        request = {"messages": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, "stream": True}
        request |= {"adapter": user} if user else {}
        return runner.send_chat_completion_request(mistralrs.ChatCompletionRequest(model="base", **request))

    def run(prompts, users, tokens):
        answers = []
        for prompt, stream in zip(prompts, [start(*row, tokens) for row in zip(prompts, users)]):
            chunks = list(stream)
            usage = chunks[-1].usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (common.prompt_tokens(prompt), tokens), usage
            answers.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
        return answers

    name = f"mistral.rs {options.isq or options.dtype}, {options.adapters}"
    common.measure(options, name, common.clocked(run))


if __name__ == "__main__":
    main()
