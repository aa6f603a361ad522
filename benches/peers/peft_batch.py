"""PEFT: one batch, an adapter a row (`generate(adapter_names=[...])`); where all rows have the same, it is simply active.

joined  the whole path as one adapter a user
leaf    the ancestors folded into the base for good beforehand, the leaf alone an adapter: such a base serves one task alone

usage: peft_batch.py --work WORK --tree TREE [--dtype f32|bf16] [--adapters joined|leaf]
"""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import batch_common as common
from common import ANCESTORS


def main():
    options = common.arguments(dtype={"choices": ["f32", "bf16"], "default": "f32"},
                               adapters={"choices": ["joined", "leaf"], "default": "joined"})
    torch.set_num_threads(options.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    hf = options.work / "hf"
    tokenizer = AutoTokenizer.from_pretrained(hf, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=dtype)
    for node in ANCESTORS if options.adapters == "leaf" else []:
        model = PeftModel.from_pretrained(model, options.tree / node, autocast_adapter_dtype=False).merge_and_unload()
    folder = options.work / "users" / options.adapters
    wanted = common.USERS[: max(options.batches)]
    model = PeftModel.from_pretrained(model, folder / wanted[0], adapter_name=wanted[0], autocast_adapter_dtype=False)
    for user in wanted[1:]:
        model.load_adapter(folder / user, adapter_name=user, autocast_adapter_dtype=False)
    model.to(dtype).eval()
    model.generation_config.eos_token_id = None

    def run(prompts, users, tokens):
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        length = inputs["input_ids"].shape[1]
        assert length == max(map(common.prompt_tokens, prompts)), "the prompt has another length here"
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            if users[0] is None:
                with model.disable_adapter():
                    out = model.generate(**inputs, **settings)
            elif len(set(users)) == 1:
                model.set_adapter(users[0])
                out = model.generate(**inputs, **settings)
            else:
                out = model.generate(**inputs, adapter_names=users, **settings)
        return tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)

    common.measure(options, f"PEFT {options.dtype}, {options.adapters}", common.clocked(run))


if __name__ == "__main__":
    main()
