//! Makes tiny models for tests and benches: a Hugging Face folder, or the same model as a GGUF
//! file.
//!
//! **Invariant:** the same [`TinyModel`] makes the same weights in both forms, up to the storage
//! type's rounding.

#![allow(
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    reason = "only tests run this: it may panic"
)]

pub mod adapter;
pub mod store;
pub mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::base::BaseModel;
use crate::error::SafeTensorsDefect;
use crate::file::gguf::GgufFile;
use crate::file::safetensors::SafeTensorsFile;
use crate::model::chat::{ChatTemplate, Message};
use crate::model::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A chat template as small models have it.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
    {% endif %}";

const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const MERGES: [(&str, &str); 5] = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")];

/// What to make. Heads have an even width, and matrix widths are multiples of 32, so that Q4_0 to
/// Q8_0 can store them.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// The family, by its configuration class.
    pub arch: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward block.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; `None`: the hidden width, shared out.
    pub head_dim: Option<usize>,
    /// Rows of the embedding; the tokenizer knows the first 264.
    pub vocab: usize,
    /// F32, F16 or BF16, of the folder.
    pub dtype: Dtype,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether q, k and v have biases (Qwen2 must).
    pub biases: bool,
    /// Safetensors files of the folder.
    pub shards: usize,
    /// Seed of the weights.
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            arch: "LlamaForCausalLM",
            hidden: 64,
            intermediate: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: None,
            vocab: 272,
            dtype: Dtype::F32,
            tied: true,
            biases: false,
            shards: 1,
            seed: 1,
        }
    }
}

/// One weight: its shape and its values, row-major.
pub type TinyWeight = (Vec<usize>, Vec<f32>);

impl TinyModel {
    /// Every weight by its Hugging Face name, in Hugging Face row order.
    pub fn weights(&self) -> BTreeMap<String, TinyWeight> {
        let (hidden, head_dim) = (self.hidden, self.head_dim());
        let (q, kv) = (head_dim * self.heads, head_dim * self.kv_heads);
        let mut shapes = BTreeMap::from([
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ]);
        if !self.tied {
            shapes.insert("lm_head.weight".to_owned(), vec![self.vocab, hidden]);
        }
        for layer in 0..self.layers {
            for (module, shape) in [
                ("self_attn.q_proj", vec![q, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, q]),
                ("mlp.gate_proj", vec![self.intermediate, hidden]),
                ("mlp.up_proj", vec![self.intermediate, hidden]),
                ("mlp.down_proj", vec![hidden, self.intermediate]),
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
            ] {
                if self.biases
                    && ["q_proj", "k_proj", "v_proj"].iter().any(|name| module.ends_with(name))
                {
                    shapes.insert(format!("model.layers.{layer}.{module}.bias"), vec![shape[0]]);
                }
                shapes.insert(format!("model.layers.{layer}.{module}.weight"), shape);
            }
        }
        if self.norms_heads() {
            for (layer, norm) in
                (0..self.layers).flat_map(|layer| ["q_norm", "k_norm"].map(|norm| (layer, norm)))
            {
                let name = format!("model.layers.{layer}.self_attn.{norm}.weight");
                shapes.insert(name, vec![head_dim]);
            }
        }
        let mut rng = StdRng::seed_from_u64(self.seed);
        shapes
            .into_iter()
            .map(|(name, shape)| {
                let norm = name.ends_with("norm.weight");
                let scale = if norm { 0.1 } else { 2.0 / (shape[shape.len() - 1] as f32).sqrt() };
                let value = |_| f32::from(norm) + scale * rng.random_range(-1.0f32..1.0);
                let values = (0..shape.iter().product()).map(value).collect();
                (name, (shape, values))
            })
            .collect()
    }
}

impl TinyModel {
    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden / self.heads)
    }

    fn norms_heads(&self) -> bool {
        self.arch.starts_with("Qwen3")
    }

    /// As a GGUF file names the family.
    fn gguf_arch(&self) -> &'static str {
        match self.arch {
            "Qwen2ForCausalLM" => "qwen2",
            "Qwen3ForCausalLM" => "qwen3",
            _ => "llama",
        }
    }
}

/// Writes `config.json`, safetensors, `tokenizer.json` and `tokenizer_config.json` into `dir`.
pub fn tiny_hf_model(dir: &Path, model: &TinyModel) {
    tiny_hf_model_of(dir, model, &model.weights());
}

/// The same with these weights in place of the model's own.
pub fn tiny_hf_model_of(dir: &Path, model: &TinyModel, weights: &BTreeMap<String, TinyWeight>) {
    std::fs::create_dir_all(dir).unwrap();
    let write_json = |name: &str, value: &serde_json::Value| {
        std::fs::write(dir.join(name), serde_json::to_vec_pretty(value).unwrap()).unwrap();
    };
    write_json("config.json", &tiny_config(model));
    write_json(
        "tokenizer_config.json",
        &json!({ "eos_token": "<|im_end|>", "bos_token": {"content": "<|endoftext|>"}, "chat_template": CHAT_TEMPLATE }),
    );
    tiny_tokenizer().save(dir.join("tokenizer.json"), true).unwrap();

    let raw: Vec<_> = weights
        .iter()
        .map(|(name, (shape, values))| (name, shape, encode(model.dtype, values)))
        .collect();
    let mut weight_map = serde_json::Map::new();
    for (index, part) in raw.chunks(raw.len().div_ceil(model.shards)).enumerate() {
        let file = match model.shards {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let views = part.iter().map(|(name, shape, bytes)| {
            weight_map.insert((*name).clone(), file.clone().into());
            ((*name).clone(), TensorView::new(model.dtype, (*shape).clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.join(&file)).unwrap();
    }
    if model.shards > 1 {
        write_json(
            "model.safetensors.index.json",
            &json!({ "metadata": {}, "weight_map": weight_map }),
        );
    }
}

fn tiny_config(model: &TinyModel) -> serde_json::Value {
    let mut config = json!({
        "architectures": [model.arch],
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "vocab_size": model.vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": model.tied,
        "attention_bias": false,
        "bos_token_id": 0,
        "eos_token_id": 2,
    });
    if let Some(head_dim) = model.head_dim {
        config["head_dim"] = head_dim.into();
    }
    config
}

/// The same model as a GGUF file: matrices in `dtype`, vectors in F32.
pub fn tiny_gguf(path: &Path, model: &TinyModel, dtype: GgmlDType) {
    let arch = model.gguf_arch();
    let weights = model.weights();
    let tensors: Vec<(String, QTensor)> = weights
        .iter()
        .map(|(name, (shape, values))| {
            let heads = match name {
                _ if arch != "llama" => None,
                _ if name.contains("q_proj") => Some(model.heads),
                _ if name.contains("k_proj") => Some(model.kv_heads),
                _ => None,
            };
            let values =
                heads.map_or_else(|| values.clone(), |heads| permute(values, shape[0], heads));
            let tensor = Tensor::from_vec(values, shape.clone(), &Device::Cpu).unwrap();
            let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
            (gguf_name(name), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let (tokens, merges) = tiny_vocabulary();
    let token_types =
        (0..tokens.len()).map(|id| Value::I32(if id < SPECIALS.len() { 3 } else { 1 })).collect();
    let strings = |items: Vec<String>| Value::Array(items.into_iter().map(Value::String).collect());
    let number = |value: usize| Value::U32(value as u32);
    let metadata: Vec<(String, Value)> = [
        ("general.architecture", Value::String(arch.to_owned())),
        ("{arch}.block_count", number(model.layers)),
        ("{arch}.context_length", number(512)),
        ("{arch}.embedding_length", number(model.hidden)),
        ("{arch}.feed_forward_length", number(model.intermediate)),
        ("{arch}.attention.head_count", number(model.heads)),
        ("{arch}.attention.head_count_kv", number(model.kv_heads)),
        ("{arch}.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("{arch}.rope.freq_base", Value::F32(10000.0)),
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("smollm".to_owned())),
        ("tokenizer.ggml.tokens", strings(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(token_types)),
        (
            "tokenizer.ggml.merges",
            strings(merges.into_iter().map(|(a, b)| format!("{a} {b}")).collect()),
        ),
        ("tokenizer.ggml.bos_token_id", number(0)),
        ("tokenizer.ggml.eos_token_id", number(2)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", Value::String(CHAT_TEMPLATE.to_owned())),
    ]
    .into_iter()
    .chain(model.head_dim.map(|head_dim| ("{arch}.attention.key_length", number(head_dim))))
    .map(|(key, value)| (key.replace("{arch}", arch), value))
    .collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// GGUF's row order of a Llama q or k: `reshape(heads, 2, rows / heads / 2, cols).swapaxes(1, 2)`.
fn permute(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (cols, half) = (values.len() / rows, rows / heads / 2);
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for j in 0..half {
            for part in 0..2 {
                let row = (head * 2 + part) * half + j;
                out.extend_from_slice(&values[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

fn gguf_name(name: &str) -> String {
    [
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Special tokens, the 256 bytes, then one token a merge: 264 in all.
fn tiny_vocabulary() -> (Vec<String>, Vec<(String, String)>) {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let specials = SPECIALS.iter().map(ToString::to_string);
    let merged = MERGES.iter().map(|(a, b)| format!("{a}{b}"));
    let tokens = specials.chain(bytes.iter().map(ToString::to_string)).chain(merged).collect();
    (tokens, MERGES.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect())
}

fn tiny_tokenizer() -> tokenizers::Tokenizer {
    let (tokens, merges) = tiny_vocabulary();
    let vocab: Vocab = tokens.into_iter().zip(0..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).build().unwrap();
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_special_tokens(SPECIALS.map(|token| AddedToken::from(token, true))).unwrap();
    tokenizer
}

/// Whether a bench is to measure: `cargo bench` says so, while `cargo test` runs it once, to see
/// that it works.
pub fn measures() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// The real base that some tests need, `SmolLM2-135M-Instruct.Q4_1.gguf`: the file that
/// `PLEACH_SMOLLM2` names, or the one in the cache folder. Without it the test says so and is
/// skipped, but fails where `CI` is set.
pub fn smollm2_base() -> Option<PathBuf> {
    let path = crate::base::fetched_smollm2()?;
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{} is missing: run scripts/fetch-base",
        path.display()
    );
    eprintln!("skipped: {} is missing: run scripts/fetch-base", path.display());
    None
}

/// Opens the bytes of a safetensors file and reads every tensor: what the fuzzers and the saved
/// inputs run.
pub fn read_safetensors_bytes(bytes: Vec<u8>) -> Result<()> {
    let file = SafeTensorsFile::from_bytes(bytes, "bytes")?;
    for name in file.names() {
        match file.to_f32(name) {
            Ok(_) | Err(Error::SafeTensors { defect: SafeTensorsDefect::NotFloat { .. }, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens the bytes of a GGUF file as a base with tokenizer and chat template, and reads every
/// weight: what the fuzzers and the saved inputs run.
pub fn read_gguf_bytes(bytes: Vec<u8>) -> Result<()> {
    let base = BaseModel::from_gguf(GgufFile::from_bytes(bytes, "bytes")?)?;
    for (name, info) in base.weights() {
        let mut row = vec![0.0; info.cols()];
        (0..info.rows()).try_for_each(|at| base.read_rows(name, at..at + 1, &mut row))?;
    }
    let prompt = Message { role: "user".to_owned(), content: "hello".to_owned() };
    let text = ChatTemplate::for_base(&base)?.render(&[prompt])?;
    let tokenizer = Tokenizer::for_base(&base, None)?;
    tokenizer.decode(&tokenizer.encode(&text)?).map(drop)
}

/// Reads bytes as a `tokenizer.json`, and what follows a first zero byte as the
/// `tokenizer_config.json` beside it; takes texts apart and puts them together again. What the
/// fuzzers and the saved inputs run.
pub fn read_tokenizer_bytes(bytes: &[u8]) -> Result<()> {
    let split = bytes.iter().position(|byte| *byte == 0);
    let (file, config) = split.map_or((bytes, None), |at| (&bytes[..at], Some(&bytes[at + 1..])));
    let tokenizer = Tokenizer::from_json(file, config, 1 << 20)?;
    for text in ["", "hello w", "  l'été 2024,\t\n 12345 don't", "日本語 👩‍👩‍👧 ß\u{301}<|im_end|>"]
    {
        let ids = tokenizer.encode(text)?;
        tokenizer.decode(&ids)?;
        let mut stream = tokenizer.stream_after(&ids)?;
        (0..300).step_by(7).try_for_each(|id| stream.push(id).map(drop))?;
        stream.finish()?;
    }
    Ok(())
}

/// Renders bytes as a chat template, or as a `tokenizer_config.json` that has one. What the fuzzers
/// and the saved inputs run.
pub fn read_chat_bytes(bytes: &[u8]) -> Result<()> {
    let message =
        |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let turns = [
        message("system", "be brief"),
        message("user", "hello\r\n{{ x }} é"),
        message("assistant", ""),
    ];
    let templates = ChatTemplate::from_bytes(bytes)?;
    let name = templates.names().next().map(str::to_owned);
    templates.render_by(name.as_deref(), &turns).map(drop)
}

/// A GPU for a test, a software adapter if there is no other. Without any the test says so and is
/// skipped, but fails where `CI` is set.
#[cfg(feature = "gpu")]
pub fn gpu(options: &crate::device::gpu::GpuOptions) -> Option<crate::device::gpu::Gpu> {
    match crate::device::gpu::Gpu::open(options) {
        Ok(gpu) => Some(gpu),
        Err(Error::NoSuchDevice { .. }) => {
            let advice = "install a GPU driver, or software Vulkan (mesa-vulkan-drivers)";
            assert!(std::env::var_os("CI").is_none(), "no GPU and no software adapter: {advice}");
            eprintln!("skipped: no GPU and no software adapter: {advice}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
