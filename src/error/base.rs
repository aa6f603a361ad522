//! What can be wrong with a base model: its configuration and its weights.
//!
//! **Invariant:** one variant a defect, each with what was expected and found, and what to do.

use std::path::PathBuf;

use super::FileKind;

/// What is wrong with a base model's folder or configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigDefect {
    /// Neither a folder nor a GGUF file.
    #[error("not a base model: expected a folder with config.json or a GGUF file")]
    NotABase,
    /// A file of another kind.
    #[error("not a base model: the file is {found}")]
    OtherFile {
        /// What it is.
        found: FileKind,
    },
    /// One file of a folder.
    #[error("this is one file of a model: give its folder, {}", folder.display())]
    InsideFolder {
        /// The folder it lies in.
        folder: PathBuf,
    },
    /// A folder around a GGUF file.
    #[error("the folder has no config.json, but a GGUF file: give that, {}", file.display())]
    GgufInside {
        /// The file.
        file: PathBuf,
    },
    /// An adapter's folder.
    #[error(
        "this is an adapter, not a base model (its base is {base}): give it in a tree, and its base here"
    )]
    Adapter {
        /// What its configuration names, in quotes, or `unnamed`.
        base: String,
    },
    /// A GGUF file that is no model.
    #[error("`general.type` is {found}, expected model: give the base's own file{advice}")]
    GgufKind {
        /// What it is.
        found: String,
        /// What to do with it.
        advice: &'static str,
    },
    /// A model saved with PEFT's adapters in it.
    #[error(
        "`{tensor}` is of a PEFT model saved whole: load it, call merge_and_unload() (with the adapters) or unload() \
         (without), then save_pretrained(), and give that folder"
    )]
    PeftModel {
        /// A tensor that shows it.
        tensor: String,
    },
    /// Quantised weights in safetensors.
    #[error(
        "the weights are quantised ({method}); expected plain f64, f32, f16 or bf16 weights, or a GGUF file{twin}"
    )]
    Quantised {
        /// The method.
        method: String,
        /// What to take in its place, if the name says so.
        twin: String,
    },
    /// A file that the index names is not there.
    #[error("the index puts `{tensor}` into {}, which is missing: fetch it into the folder", file.display())]
    MissingShard {
        /// A tensor of it.
        tensor: String,
        /// The missing file.
        file: PathBuf,
    },
    /// A folder without `config.json`.
    #[error("there is no config.json: expected the folder of a Hugging Face model")]
    NoConfig,
    /// A folder without safetensors.
    #[error("there is neither model.safetensors nor model.safetensors.index.json: {hint}")]
    NoWeights {
        /// What to do.
        hint: &'static str,
    },
    /// A file that is not the JSON it has to be.
    #[error("not valid: {reason}")]
    Json {
        /// What the parser said, with the place.
        reason: serde_json::Error,
    },
    /// An architecture that is not run.
    #[error("the architecture is {found}; {run} are run")]
    Architecture {
        /// The file's.
        found: String,
        /// Those that are run.
        run: String,
    },
    /// Two keys name two families.
    #[error(
        "`architectures` says {architecture}, `model_type` says {model_type}: these compute differently; take the config.json of the model that the weights are of"
    )]
    FamilyConflict {
        /// The first of `architectures`.
        architecture: String,
        /// `model_type`.
        model_type: String,
    },
    /// A setting that changes the computation and is not supported.
    #[error("`{key}` is {found}, which is not supported; expected {expected}: choose another base")]
    Unsupported {
        /// The setting.
        key: String,
        /// The file's value.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
    /// A setting that is missing.
    #[error("`{key}` is missing: the model was not saved completely; fetch or convert it again")]
    Missing {
        /// The setting.
        key: String,
    },
    /// A setting out of any sensible range.
    #[error("`{key}` is {found}, expected {expected}: the file is damaged")]
    Value {
        /// The setting.
        key: String,
        /// The file's value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// The index names a file that is not one of the folder.
    #[error(
        "the index names `{file}`, expected a .safetensors file in the model's folder or one below it, not by a link"
    )]
    ShardName {
        /// The name.
        file: String,
    },
}

/// What is wrong with one weight of a base.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightDefect {
    /// The model has no such weight.
    #[error(
        "the base has no such weight: check the adapter's target modules, or whether it was made for another base"
    )]
    Unknown,
    /// The file lacks a weight that the configuration asks for.
    #[error(
        "missing, expected shape {expected:?}: the model is not complete, or its configuration is of another one"
    )]
    Missing {
        /// The shape by the configuration.
        expected: Vec<usize>,
    },
    /// The file has another shape than the configuration asks for.
    #[error("has shape {found:?}, expected {expected:?}: the configuration is of another model")]
    Shape {
        /// The shape by the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// The file has a weight that the architecture does not use.
    #[error(
        "the file has this tensor, but the configured architecture has no place for it: choose another base"
    )]
    NoPlace,
    /// Two tensors for one weight.
    #[error("two tensors are this weight: remove one of the files")]
    Twice,
    /// Rows that the weight does not have, or a buffer of another length.
    #[error("rows {start}..{end} into {out} places: it has {rows} rows of {cols}")]
    Rows {
        /// First row asked for.
        start: usize,
        /// One past the last.
        end: usize,
        /// Length of the buffer.
        out: usize,
        /// Rows of the weight.
        rows: usize,
        /// Columns of the weight.
        cols: usize,
    },
}
