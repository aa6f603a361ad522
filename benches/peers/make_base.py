"""Write the base in the forms the peers read, from the one GGUF file pleach reads.

OUT/hf         a Hugging Face folder: weights dequantised to f32, q and k rows back in Hugging Face order, tokenizer.json
OUT/base-f16.gguf   the same weights in f16, rows as they were, for llama.cpp

usage: make_base.py BASE.gguf OUT
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BLOCK = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hugging_face_name(name):
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{BLOCK[parts[2]]}.weight"
    return f"{OUTER[parts[0]]}.weight"


def to_gguf_rows(w, heads):
    """Rows of q or k (or of an adapter's B), from Hugging Face order (halves of a head) to GGUF's (interleaved pairs)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def to_hugging_face_rows(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def heads_of(reader):
    key = "llama.attention.head_count"
    return {"attn_q": reader.fields[key].contents(), "attn_k": reader.fields[f"{key}_kv"].contents()}


def write_folder(reader, weights, out):
    out.mkdir(parents=True, exist_ok=True)
    field = lambda key: reader.fields[key].contents()  # noqa: E731
    heads, tensors = heads_of(reader), {}
    for name, w in weights.items():
        part = name.split(".")[-2]
        w = to_hugging_face_rows(w, heads[part]) if part in heads else w
        tensors[hugging_face_name(name)] = np.ascontiguousarray(w)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "float32",
        "vocab_size": field("llama.vocab_size"), "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"), "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads["attn_q"], "num_key_value_heads": heads["attn_k"],
        "max_position_embeddings": field("llama.context_length"), "rope_theta": field("llama.rope.freq_base"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in weights,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(field, out)


def write_tokenizer(field, out):
    if (field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        sys.exit("make_base.py knows the tokenizer of SmolLM only")
    tokens, control = field("tokenizer.ggml.tokens"), int(gguf.TokenType.CONTROL)
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, kinds) if k == control])
    tokenizer.save(str(out / "tokenizer.json"))
    named = {f"{kind}_token": tokens[field(f"tokenizer.ggml.{kind}_token_id")] for kind in ("bos", "eos")}
    named |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": field("tokenizer.chat_template")}
    (out / "tokenizer_config.json").write_text(json.dumps(named, indent=1))


def write_f16(reader, weights, path):
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))
    for name, w in weights.items():
        writer.add_tensor(name, w.astype(np.float16) if w.ndim == 2 else w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    reader = gguf.GGUFReader(source)
    weights = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    write_folder(reader, weights, out / "hf")
    write_f16(reader, weights, out / "base-f16.gguf")


if __name__ == "__main__":
    main()
