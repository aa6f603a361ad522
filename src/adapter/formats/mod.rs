//! Adapters' file formats. Each reads to an [`Unbound`]: modules and unread tensors by the file's
//! own names.
//!
//! Another format is a folder or file beside `peft/`, a variant of [`Format`], and a line in
//! [`Format::of`] that says by which files it is known.
//!
//! **Invariant:** a format names no base: what a file says is the same whatever it is put on.

mod peft;
mod watched;

use std::path::Path;

pub(super) use peft::parse as parse_peft;
pub(crate) use peft::{CONFIG_FILE, TENSOR_FILE, named_base};
pub use peft::{PeftOptions, write_peft};

use super::Limits;
use super::module::Unbound;
use crate::error::AdapterDefect;
use crate::file::safetensors::SafeTensorsFile;
use crate::{Error, Result};

const PICKLE_FILE: &str = "adapter_model.bin";

/// The format of an adapter, and the paths of its files, which are there.
pub(super) enum Format {
    Peft(peft::Files),
}

impl Format {
    /// The format of the adapter at `path`, by the files that lie there.
    ///
    /// # Errors
    /// [`Error::Io`] where nothing is or may be looked at; [`AdapterDefect::NotAFolder`],
    /// [`AdapterDefect::Foreign`], [`AdapterDefect::Pickle`] and [`AdapterDefect::MissingFile`]
    /// inside [`Error::Adapter`].
    pub(super) fn of(path: &Path) -> Result<Self> {
        let refuse = |defect| Err(Error::adapter(path, defect));
        // What is not there at all, or may not be looked at, has the system's own words. One look:
        // it may come and go.
        if !std::fs::metadata(path).map_err(|source| Error::io(path, source))?.is_dir() {
            return refuse(AdapterDefect::NotAFolder);
        }
        let files = peft::Files::in_folder(path);
        let Some(missing) = files.missing() else { return Ok(Self::Peft(files)) };
        let names = names_in(path)?;
        refuse(match names.iter().find_map(|name| Some((name, foreign(name)?))) {
            Some((file, what)) => AdapterDefect::Foreign { missing, file: file.clone(), what },
            None if missing == TENSOR_FILE && path.join(PICKLE_FILE).exists() => {
                AdapterDefect::Pickle
            }
            None => AdapterDefect::MissingFile { file: missing },
        })
    }

    /// Reads what its headers say, and no tensor.
    pub(super) fn header(&self, limits: &Limits) -> Result<Unbound> {
        let Self::Peft(files) = self;
        files.header(limits)
    }

    /// Reads its files whole.
    pub(super) fn read(&self, limits: &Limits) -> Result<(Unbound, Contents)> {
        let Self::Peft(files) = self;
        files.read(limits, || ())
    }
}

/// An adapter's files, whole, in owned memory.
pub(super) struct Contents {
    /// The file that the modules' spans name tensors of.
    pub(super) tensors: SafeTensorsFile,
    /// What that file is called.
    tensor_file: &'static str,
    /// The other files by name.
    others: Vec<(&'static str, Vec<u8>)>,
    /// Of the bytes that were parsed, all of them.
    pub(super) hash: blake3::Hash,
}

impl Contents {
    /// Every file by name.
    pub(super) fn files(&self) -> Vec<(&'static str, &[u8])> {
        let others = self.others.iter().map(|(name, bytes)| (*name, &bytes[..]));
        others.chain([(self.tensor_file, self.tensors.file_bytes())]).collect()
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io(folder, source))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Whose adapter a file called `name` is, and what to do, where it is none that is read.
fn foreign(name: &str) -> Option<&'static str> {
    Some(match name {
        "adapters.safetensors" => {
            "MLX's, whose factors are transposed and whose config is another; convert it to PEFT's \
             format"
        }
        "adapter_0.pt" | "adapter_0.safetensors" => {
            "torchtune's; let its checkpointer write PEFT's format (`output_dir` with \
             `adapter_model.safetensors`)"
        }
        "pytorch_lora_weights.safetensors" => {
            "diffusers', for an image model; adapters of language models are run"
        }
        "adapter_model.safetensors.index.json" => SHARD,
        _ if name.starts_with("adapter_model-") => SHARD,
        _ if name.ends_with(".gguf") => {
            "a GGUF file; PEFT's own folder, which it was made from, is needed"
        }
        _ => return None,
    })
}

const SHARD: &str = "a part of an adapter cut into shards; save it in one file (`save_pretrained` \
                     with a larger `max_shard_size`)";
