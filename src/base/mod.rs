//! The base model: opened once, read-only, memory-mapped, with its content hash.
//!
//! **Invariant:** an open base has exactly the weights its architecture needs, each of the shape
//! its configuration names, whatever the file format; rows are given in Hugging Face order, and
//! norms as what is multiplied by.

mod end_tokens;
mod fetched;
mod gguf;
mod given;
mod hf;
mod hf_rope;
mod made;
mod published;
mod tied_head;
mod values;
mod wrapped;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) use end_tokens::is_control_text;
pub use fetched::fetched_smollm2;
pub use made::SHAPES;
pub(crate) use published::{base_key, cached_model, is_published, plain_twin};

use crate::arch::{ModelConfig, interleaved_row};
use crate::error::{FileKind, WeightDefect};
use crate::file::gguf::GgufFile;
use crate::file::safetensors::SafeTensorsFile;
use crate::file::sniff_file;
use crate::{Error, Result, WeightName};

/// Shape and storage of one weight of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// `[out, in]` for a matrix, `[len]` for a vector (norms, biases).
    pub shape: Vec<usize>,
    /// Storage type in the file, such as `BF16` or `Q4_1`.
    pub dtype: String,
}

impl WeightInfo {
    /// Rows; a vector is one row.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }
}

/// A base model on disk.
pub struct BaseModel {
    path: PathBuf,
    config: ModelConfig,
    files: Files,
    weights: BTreeMap<WeightName, Weight>,
    content_hash: OnceLock<String>,
}

/// The open files.
enum Files {
    SafeTensors(Vec<SafeTensorsFile>),
    Gguf(Box<GgufFile>),
    /// No file: made numbers.
    Made,
}

/// One weight and where it lies.
struct Weight {
    info: WeightInfo,
    /// Which of the files.
    file: usize,
    /// Its name there.
    tensor: String,
    /// Rows of a head, if each head's two halves are interleaved in the file.
    interleaved: Option<usize>,
    /// What is added to every value as it is in the file.
    added: f32,
}

impl BaseModel {
    /// Opens a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// When a file is missing or damaged, the architecture or a setting is not supported, or the
    /// weights are not those that the configuration asks for.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_folder(path);
        }
        let named =
            path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if path.exists() && !named && sniff_file(path) != Some(FileKind::Gguf) {
            return Err(Error::Config { path: path.to_owned(), defect: wrapped::no_gguf(path) });
        }
        Self::from_gguf(GgufFile::open_mapped(path)?)
    }

    /// Takes an open GGUF file.
    ///
    /// # Errors
    /// As [`BaseModel::open`].
    pub fn from_gguf(file: GgufFile) -> Result<Self> {
        let (config, biases) = gguf::read_config(&file)?;
        let mut found = BTreeMap::new();
        for (tensor, info) in file.tensors().filter(|(tensor, _)| *tensor != gguf::ROPE_FACTORS) {
            let name = config.block.name_of_gguf(tensor);
            let name = name.ok_or_else(|| no_place(file.path(), WeightName::new(tensor)))?;
            let weight = Weight {
                info: WeightInfo { shape: info.shape.clone(), dtype: info.dtype.to_string() },
                file: 0,
                tensor: tensor.to_owned(),
                interleaved: config.block.is_interleaved(tensor).then_some(config.head_dim),
                added: 0.0,
            };
            found.insert(name, weight);
        }
        let path = file.path().to_owned();
        let weights = select(&path, config.expected_weights(biases), found)?;
        Ok(Self {
            path,
            config,
            files: Files::Gguf(Box::new(file)),
            weights,
            content_hash: OnceLock::new(),
        })
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let (mut config, biases) = hf::read_config(path)?;
        let files = hf::open_files(path)?;
        let peft = wrapped::is_peft_model(&files)
            .map_err(|defect| Error::Config { path: path.to_owned(), defect })?;
        let mut found = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for tensor in file.names().filter(|tensor| !tensor.ends_with("rotary_emb.inv_freq")) {
                let info = file.info(tensor)?;
                let name = WeightName::new(if peft { wrapped::inner_name(tensor) } else { tensor });
                let weight = Weight {
                    info: WeightInfo { shape: info.shape.clone(), dtype: info.dtype.to_string() },
                    file: index,
                    tensor: tensor.to_owned(),
                    interleaved: None,
                    added: config.block.added(&name),
                };
                if found.insert(name.clone(), weight).is_some() {
                    let (path, defect) = (path.to_owned(), WeightDefect::Twice);
                    return Err(Error::Weight { path, weight: name, defect });
                }
            }
        }
        if config.tie_word_embeddings {
            config.tie_word_embeddings = tied_head::settle(&mut found, &files)?;
        }
        let path = path.to_owned();
        let weights = select(&path, config.expected_weights(biases), found)?;
        Ok(Self {
            path,
            config,
            files: Files::SafeTensors(files),
            weights,
            content_hash: OnceLock::new(),
        })
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The GGUF file, if the base is one: it has the tokenizer, too.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.files {
            Files::Gguf(file) => Some(file),
            Files::SafeTensors(_) | Files::Made => None,
        }
    }

    /// Every weight with its shape, in name order.
    pub fn weights(&self) -> Box<dyn Iterator<Item = (&WeightName, &WeightInfo)> + '_> {
        Box::new(self.weights.iter().map(|(name, weight)| (name, &weight.info)))
    }

    /// Shape and storage of one weight.
    ///
    /// # Errors
    /// [`Error::Weight`] when the model has none of that name.
    pub fn weight(&self, name: &WeightName) -> Result<&WeightInfo> {
        self.find(name).map(|weight| &weight.info)
    }

    /// Parameters of the model: elements of all its weights, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        self.weights()
            .map(|(_, info)| info.shape.iter().map(|dim| *dim as u64).product::<u64>())
            .sum()
    }

    /// Dequantises `rows` of weight `name` into `out` (`rows.len() × in`, row-major, f32), in
    /// Hugging Face row order. A vector is one row.
    ///
    /// # Errors
    /// [`Error::Weight`] when the model has no such weight or rows, or `out` has another length;
    /// the file's own error when its type cannot be read.
    pub fn read_rows(&self, name: &WeightName, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let weight = self.find(name)?;
        let (count, cols, Range { start, end }) = (weight.info.rows(), weight.info.cols(), rows);
        if start > end || end > count || out.len() != (end - start) * cols {
            let defect = WeightDefect::Rows { start, end, out: out.len(), rows: count, cols };
            return Err(self.weight_error(name, defect));
        }
        match (&self.files, weight.interleaved) {
            (Files::Made, _) => made::fill(name, &weight.info, start..end, out),
            (Files::SafeTensors(files), _) => {
                files[weight.file].read_f32(&weight.tensor, start * cols..end * cols, out)?;
            }
            (Files::Gguf(file), None) => file.read_rows(&weight.tensor, start..end, out)?,
            (Files::Gguf(file), Some(head_dim)) if weight.info.shape.len() == 1 => {
                let mut stored = vec![0.0; cols];
                file.read_rows(&weight.tensor, start..end, &mut stored)?;
                for (row, value) in out.iter_mut().enumerate() {
                    *value = stored[interleaved_row(row, head_dim)];
                }
            }
            (Files::Gguf(file), Some(head_dim)) => {
                for (row, out) in (start..end).zip(out.chunks_exact_mut(cols)) {
                    let stored = interleaved_row(row, head_dim);
                    file.read_rows(&weight.tensor, stored..stored + 1, out)?;
                }
            }
        }
        if weight.added != 0.0 {
            out.iter_mut().for_each(|value| *value += weight.added);
        }
        Ok(())
    }

    /// BLAKE3 of the weight file's bytes, in hex; of several files, BLAKE3 over one line
    /// `NAME HASH` each, by name. Computed on the first call, which reads all of the file.
    pub fn content_hash(&self) -> &str {
        self.content_hash.get_or_init(|| match &self.files {
            Files::Made => hash(self.path.as_os_str().as_encoded_bytes()),
            Files::Gguf(file) => {
                let folder = self.path.parent().unwrap_or(Path::new(""));
                hash_files(folder, &file.files().collect::<Vec<_>>())
            }
            Files::SafeTensors(files) => {
                let files: Vec<_> =
                    files.iter().map(|file| (file.path(), file.file_bytes())).collect();
                hash_files(&self.path, &files)
            }
        })
    }

    fn find(&self, name: &WeightName) -> Result<&Weight> {
        self.weights.get(name).ok_or_else(|| self.weight_error(name, WeightDefect::Unknown))
    }

    fn weight_error(&self, name: &WeightName, defect: WeightDefect) -> Error {
        Error::Weight { path: self.path.clone(), weight: name.clone(), defect }
    }
}

fn hash(bytes: &[u8]) -> String {
    blake3::Hasher::new().update_rayon(bytes).finalize().to_hex().to_string()
}

/// The hash of one file, or of a list of several, which are named as they are below `base` (its own
/// folder, or the one that it lies in).
fn hash_files(base: &Path, files: &[(&Path, &[u8])]) -> String {
    if let [(_, bytes)] = files {
        return hash(bytes);
    }
    let line = |(path, bytes): &(&Path, &[u8])| {
        let below =
            path.strip_prefix(base).unwrap_or(Path::new(path.file_name().unwrap_or_default()));
        format!("{} {}\n", below.to_string_lossy().replace('\\', "/"), hash(bytes))
    };
    hash(files.iter().map(line).collect::<String>().as_bytes())
}

/// Checks what was found against what the architecture needs.
fn select(
    path: &Path,
    expected: BTreeMap<WeightName, Vec<usize>>,
    found: BTreeMap<WeightName, Weight>,
) -> Result<BTreeMap<WeightName, Weight>> {
    let error = |weight: &WeightName, defect| Error::Weight {
        path: path.to_owned(),
        weight: weight.clone(),
        defect,
    };
    for (name, shape) in expected.iter() {
        match found.get(name).map(|weight| &weight.info.shape) {
            None => return Err(error(name, WeightDefect::Missing { expected: shape.clone() })),
            Some(found) if found != shape => {
                return Err(error(
                    name,
                    WeightDefect::Shape { expected: shape.clone(), found: found.clone() },
                ));
            }
            Some(_) => {}
        }
    }
    match found.keys().find(|name| !expected.contains_key(name)) {
        Some(name) => Err(no_place(path, name.clone())),
        None => Ok(found),
    }
}

fn no_place(path: &Path, weight: WeightName) -> Error {
    Error::Weight { path: path.to_owned(), weight, defect: WeightDefect::NoPlace }
}

#[cfg(test)]
mod tests;
