//! What can be wrong with an adapter: each defect named, with what was expected, what was found and
//! what to do.

use std::path::PathBuf;

use crate::suggest::did_you_mean;

/// Why an adapter is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterDefect {
    /// A file every adapter has is not there.
    #[error(
        "there is no {file} in this folder; is it a PEFT adapter saved with `save_pretrained`?"
    )]
    MissingFile {
        /// The missing file.
        file: &'static str,
    },
    /// A file where the folder is wanted.
    #[error(
        "this is a file; an adapter is PEFT's folder with adapter_config.json and adapter_model.safetensors: give the \
         folder (of a GGUF adapter, the one that it was made from)"
    )]
    NotAFolder,
    /// The folder holds an adapter in another program's format.
    #[error("there is no {missing} in this folder; {file} is {what}")]
    Foreign {
        /// The missing file.
        missing: &'static str,
        /// The file that it is known by.
        file: String,
        /// What it is, and what to do.
        what: &'static str,
    },
    /// Its files were written or replaced while they were read, so they may belong to two versions.
    #[error(
        "{file} was changed or replaced while the adapter was read; try again when nobody writes to this folder"
    )]
    Changed {
        /// The file.
        file: &'static str,
    },
    /// Only the pickled form of the tensors is there.
    #[error(
        "adapter_model.bin is a Python pickle, which can run code when it is read, and is never opened here; save the \
         adapter again with `save_pretrained(path, safe_serialization=True)`"
    )]
    Pickle,
    /// `adapter_config.json` is not a JSON object.
    #[error("adapter_config.json is not a JSON object: {source}")]
    ConfigNotJson {
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// The adapter is of another PEFT method.
    #[error("peft_type is {found}; only LORA is supported")]
    PeftType {
        /// The method's name, or `missing`.
        found: String,
    },
    /// A known key has a value that changes the maths in a way that is not supported.
    #[error("adapter_config.json has {key} = {value}, which is not supported: {advice}")]
    ConfigUnsupported {
        /// The key.
        key: String,
        /// Its value, shortened.
        value: String,
        /// What the key would do, and what to do instead.
        advice: &'static str,
    },
    /// A file beside the adapter is a link that leads out of its folder.
    #[error("{file} leads out of the folder, to {}; put the file itself there", target.display())]
    Outside {
        /// The file.
        file: String,
        /// Where it leads.
        target: PathBuf,
    },
    /// A key nobody here knows has a value that may change the maths.
    #[error(
        "adapter_config.json has an unknown key {key} = {value}; it may change the maths, so it is not ignored: remove \
         the key if you know that it does not"
    )]
    ConfigUnknownKey {
        /// The key.
        key: String,
        /// Its value, shortened.
        value: String,
    },
    /// A key's value has the wrong type or lies out of range.
    #[error("adapter_config.json has {key} = {found}, expected {expected}")]
    ConfigValue {
        /// The key.
        key: String,
        /// What it may be.
        expected: &'static str,
        /// Its value, shortened.
        found: String,
    },
    /// A regular expression is longer than the limit.
    #[error("a pattern of {key} is {length} bytes long, the limit is {limit}: {pattern}…")]
    PatternTooLong {
        /// The key that holds it.
        key: &'static str,
        /// Its beginning.
        pattern: String,
        /// Its length in bytes.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A regular expression does not parse, or needs too many steps to match.
    #[error(
        "the pattern `{pattern}` of {key} cannot be used: {source}; simplify it or list the modules by name"
    )]
    PatternInvalid {
        /// The key that holds it.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// What the regex engine said.
        source: Box<fancy_regex::Error>,
    },
    /// More patterns than can be tried on every module in reasonable time.
    #[error("{patterns} patterns on {modules} modules are too many to try; list fewer patterns")]
    TooManyPatterns {
        /// Patterns in the config.
        patterns: usize,
        /// Modules in the tensor file.
        modules: usize,
    },
    /// A pattern of `rank_pattern` or `alpha_pattern` selects no module of the file.
    #[error(
        "the pattern `{pattern}` of {key} matches none of the {modules} modules in the file (the first is {example}); \
         its rank or alpha would silently be lost: correct or remove it"
    )]
    PatternMatchesNothing {
        /// `rank_pattern` or `alpha_pattern`.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// Modules in the file.
        modules: usize,
        /// One of them.
        example: String,
    },
    /// More tensors than the limit.
    #[error("adapter_model.safetensors has {found} tensors, the limit is {limit}")]
    TooManyTensors {
        /// Tensors in the file.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The keys name two adapters.
    #[error(
        "the tensors belong to two adapters, `{first}` and `{second}` ({tensor}); save each in a folder of its own"
    )]
    SeveralAdapters {
        /// The first one's name.
        first: String,
        /// The other's.
        second: String,
        /// A key of the second.
        tensor: String,
    },
    /// There is no tensor in the file.
    #[error("adapter_model.safetensors has no LoRA tensors; nothing would be adapted")]
    NoTargets,
    /// A tensor is not the A or B of a LoRA.
    #[error("the tensor {tensor} is not supported: {reason}")]
    TensorRefused {
        /// The tensor's key.
        tensor: String,
        /// What it is, and what to do.
        reason: &'static str,
    },
    /// The copy of the base's embedding or head that lies in the file is another one.
    #[error(
        "the tensor {tensor} differs from the base's own weight in row {row}: a retrained or resized embedding would replace \
         it, which is not supported, or the base is another one; save with `save_pretrained(path, \
         save_embedding_layers=False)` if only the LoRA part was trained"
    )]
    CopyDiffers {
        /// The tensor's key.
        tensor: String,
        /// The first row found to differ.
        row: usize,
    },
    /// Factors that `ensure_weight_tying` makes one are two.
    #[error(
        "ensure_weight_tying is true, and the factors of lm_head are not those of embed_tokens transposed; PEFT would load \
         one pair for both: save it again, or set ensure_weight_tying to false if two pairs are meant"
    )]
    TiedFactorsDiffer,
    /// A module has A without B, or B without A.
    #[error("{module} has {present} but no {missing}; the file is incomplete: save it again")]
    MissingHalf {
        /// The module.
        module: String,
        /// The half that is there.
        present: &'static str,
        /// The half that is not.
        missing: &'static str,
    },
    /// Two modules of the file adapt one weight.
    #[error("{first} and {second} both adapt {weight}; keep one of them")]
    DuplicateTarget {
        /// The weight.
        weight: String,
        /// One module.
        first: String,
        /// The other module.
        second: String,
    },
    /// A tensor's shape is not that of a LoRA matrix.
    #[error("the tensor {tensor} has shape {shape:?}, expected {expected}")]
    TensorShape {
        /// The tensor's key.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The shape it should have.
        expected: &'static str,
    },
    /// A tensor's element type cannot be read.
    #[error("the tensor {tensor} is stored as {dtype}; expected F64, F32, F16 or BF16")]
    TensorDtype {
        /// The tensor's key.
        tensor: String,
        /// Its element type.
        dtype: String,
    },
    /// A rank is zero.
    #[error("{module} has rank 0; a rank is at least 1")]
    RankZero {
        /// The module, or the config's key.
        module: String,
    },
    /// A rank is larger than the limit.
    #[error(
        "{module} has rank {rank}, the limit is {limit}; raise it with --max-rank or `Limits::rank` if the file is trusted"
    )]
    RankTooLarge {
        /// The module.
        module: String,
        /// Its rank.
        rank: usize,
        /// The limit.
        limit: usize,
    },
    /// The ranks of A, of B and of the config differ.
    #[error(
        "{module}: lora_A has rank {lora_a}, lora_B has rank {lora_b} and adapter_config.json says {config}; all three \
         must be equal: {}",
        match turned {
            true => "the other side of both has the config's rank, so A and B are swapped, or each is transposed (MLX \
                     stores them so); convert the file to PEFT's format",
            false => "the config belongs to another file, or a pattern is missing",
        }
    )]
    RankMismatch {
        /// The module.
        module: String,
        /// Rows of A.
        lora_a: usize,
        /// Columns of B.
        lora_b: usize,
        /// `rank_pattern`'s rank, or `r`.
        config: usize,
        /// Whether the other side of both is of the config's rank.
        turned: bool,
    },
    /// The file holds a module that the config does not select.
    #[error(
        "{module} has tensors, but adapter_config.json does not select it ({reason}); PEFT would leave it out, so \
         one of the two files is wrong"
    )]
    NotTargeted {
        /// The module.
        module: String,
        /// Which key leaves it out.
        reason: &'static str,
    },
    /// `alpha / rank` is not a finite number.
    #[error("{module}: alpha {alpha} over rank {rank} is not a finite scaling")]
    ScalingNotFinite {
        /// The module.
        module: String,
        /// Its alpha.
        alpha: f64,
        /// Its rank.
        rank: usize,
    },
    /// Weights the adapter changes are not in the base.
    #[error(
        "{count} of the {total} weights it adapts are not in the base {base}: {}{}{}; it was made for {made_for}",
        first.join(", "),
        if *count > first.len() { ", …" } else { "" },
        did_you_mean(nearest)
    )]
    NotInBase {
        /// How many are missing.
        count: usize,
        /// How many it adapts.
        total: usize,
        /// The first three of them.
        first: Vec<String>,
        /// The base's names nearest to the first.
        nearest: Vec<String>,
        /// The base.
        base: String,
        /// The base that the adapter's config names.
        made_for: String,
    },
    /// A weight of the base has another shape than the adapter was trained for.
    #[error(
        "it was trained for {weight} of {}×{}, but the base {base} has {}×{} ({count} of {total} weights differ); it \
         was made for {made_for}",
        adapter[0], adapter[1], found[0], found[1]
    )]
    ShapeMismatch {
        /// The first weight that differs.
        weight: String,
        /// Its `[out, in]` by the adapter.
        adapter: [usize; 2],
        /// Its `[out, in]` in the base.
        found: [usize; 2],
        /// How many differ.
        count: usize,
        /// How many it adapts.
        total: usize,
        /// The base.
        base: String,
        /// The base that the adapter's config names.
        made_for: String,
    },
    /// A value is NaN or infinite.
    #[error(
        "the tensor {tensor} is {value} at row {row}, column {column}; the training has diverged or the file is damaged"
    )]
    NotFinite {
        /// The tensor's key.
        tensor: String,
        /// Row of the value.
        row: usize,
        /// Column of the value.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A change that no LoRA adapter can hold.
    #[error(
        "the change to {weight} is {kind}, and a LoRA adapter holds low-rank changes only; leave this node out"
    )]
    NotLowRank {
        /// The weight.
        weight: String,
        /// `dense` or `sparse`.
        kind: &'static str,
    },
    /// A weight that is written under no module's name.
    #[error(
        "{weight} is not the weight of a module as PEFT names them, such as model.layers.0.mlp.up_proj.weight; leave it \
         out or rename it"
    )]
    NotAModule {
        /// The weight.
        weight: String,
    },
    /// There is no change, and PEFT has no adapter without one.
    #[error(
        "there is no change to write, and PEFT knows no adapter that changes nothing; use the base as it is"
    )]
    NothingToWrite,
    /// The folder to write into holds something.
    #[error(
        "this folder is not empty, and nothing is overwritten; give another folder, or empty this one first"
    )]
    FolderNotEmpty,
}
