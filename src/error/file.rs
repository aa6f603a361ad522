//! What can be wrong with a file: safetensors, GGUF, and the hub.
//!
//! **Invariant:** one variant a defect, each with what was expected and found, and what to do.

use std::path::PathBuf;

use safetensors::Dtype;

/// What a file is by its first bytes. Written out it says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileKind {
    /// Nothing.
    #[error("empty: fetch it again")]
    Empty,
    /// A pointer of Git LFS.
    #[error("a pointer of Git LFS, not the file itself: run `git lfs pull` where it was cloned")]
    LfsPointer,
    /// HTML or XML.
    #[error(
        "a web page, not the file itself (a log-in or an error?): fetch it again and look at the first lines"
    )]
    Page,
    /// A zip archive.
    #[error(
        "a zip archive, as torch.save writes them: pickles are never read; save the tensors with safetensors' save_file"
    )]
    Zip,
    /// A gzip stream.
    #[error("compressed with gzip: unpack it")]
    Gzip,
    /// A Python pickle.
    #[error("a Python pickle, which is never read: save the tensors with safetensors' save_file")]
    Pickle,
    /// JSON.
    #[error("JSON")]
    Json,
    /// Safetensors.
    #[error("safetensors: give it the suffix .safetensors, in a folder with its config.json")]
    SafeTensors,
    /// GGUF.
    #[error("GGUF: give it the suffix .gguf and open the file itself")]
    Gguf,
}

/// What is wrong with a safetensors file, or with a request to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafeTensorsDefect {
    /// Another kind of file under this name.
    #[error("not safetensors: the file is {found}")]
    OtherFile {
        /// What it is.
        found: FileKind,
    },
    /// The file ends before its header does.
    #[error(
        "the file has {file} bytes but its header needs {needed}: it is cut short or not safetensors; fetch it again"
    )]
    HeaderBeyondFile {
        /// Bytes up to the end of the header.
        needed: u64,
        /// Bytes in the file.
        file: u64,
    },
    /// The header is longer than any real one.
    #[error(
        "the header says it has {bytes} bytes, more than {limit}: not a safetensors file, or a damaged one"
    )]
    HeaderTooLarge {
        /// Its length as the file states it.
        bytes: u64,
        /// The longest that is read.
        limit: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("the header is not valid: {reason}; fetch the file again")]
    Header {
        /// What the parser said, with the place.
        reason: serde_json::Error,
    },
    /// More tensors than are read.
    #[error("the file has {found} tensors, more than {limit}")]
    TooManyTensors {
        /// Tensors in the header.
        found: usize,
        /// The most that are read.
        limit: usize,
    },
    /// Two tensors of one name.
    #[error("two tensors are called `{tensor}`: keep one of them")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor does not start where the one before it ends.
    #[error(
        "tensor `{tensor}` starts at byte {found} of the data, expected {expected}: tensors overlap or leave a gap"
    )]
    Offset {
        /// The name.
        tensor: String,
        /// End of the tensor before it.
        expected: usize,
        /// Its start.
        found: usize,
    },
    /// Shape and type do not lead to the tensor's length.
    #[error(
        "tensor `{tensor}` of shape {shape:?} and type {dtype} cannot have {bytes} bytes: the header is damaged"
    )]
    Size {
        /// The name.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
        /// The length its offsets span.
        bytes: usize,
    },
    /// The tensors do not fill the file.
    #[error(
        "the tensors need {expected} bytes after the header but the file has {found}: it is cut short; fetch it again"
    )]
    DataLength {
        /// What the header asks for.
        expected: usize,
        /// What the file has.
        found: usize,
    },
    /// There is no tensor of that name.
    #[error("there is no tensor `{tensor}`")]
    NoTensor {
        /// The name asked for.
        tensor: String,
    },
    /// The tensor is not of a float type that is read.
    #[error(
        "tensor `{tensor}` is of type {found}, expected F64, F32, F16 or BF16: convert the file"
    )]
    NotFloat {
        /// The name.
        tensor: String,
        /// Its type.
        found: Dtype,
    },
    /// A request beyond the tensor's end, or for a buffer of another length.
    #[error("elements {start}..{end} of tensor `{tensor}` into {out} places: it has {elements}")]
    Range {
        /// The name.
        tensor: String,
        /// First element asked for.
        start: usize,
        /// One past the last.
        end: usize,
        /// Length of the buffer.
        out: usize,
        /// Elements of the tensor.
        elements: usize,
    },
}

/// What is wrong with a GGUF file, or with a request to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufDefect {
    /// Another kind of file under this name.
    #[error("not a GGUF file: it is {found}")]
    OtherFile {
        /// What it is.
        found: FileKind,
    },
    /// The numbers are written the other way round.
    #[error(
        "a big-endian GGUF file, made for another kind of processor: fetch or convert the little-endian one"
    )]
    BigEndian,
    /// The file does not start as a GGUF file does.
    #[error("not a GGUF file: it does not start with the letters GGUF")]
    Magic,
    /// A version that is not read.
    #[error(
        "GGUF version {found} is not read, only 2 and 3: convert the model again with a current converter"
    )]
    Version {
        /// The file's version.
        found: u32,
    },
    /// Something in the header reaches past the file's end.
    #[error(
        "at byte {at} the header needs {needed} more bytes but {left} are left: the file is cut short; fetch it again"
    )]
    BeyondFile {
        /// Where.
        at: usize,
        /// Bytes needed there.
        needed: u64,
        /// Bytes left in the file.
        left: u64,
    },
    /// A count or length that no real file has.
    #[error("{what} of {found}, more than {limit}: a damaged or hostile file")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The file's figure.
        found: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// Reading the header would take more memory than the file is worth.
    #[error("the header would take more than {limit} bytes of memory: a damaged or hostile file")]
    Memory {
        /// Twice the file's size plus 16 MiB.
        limit: u64,
    },
    /// A key or tensor name that is no plain text.
    #[error("at byte {at} a name is not plain UTF-8 text: a damaged file")]
    Name {
        /// Where.
        at: usize,
    },
    /// Two metadata keys or two tensors of one name.
    #[error("`{name}` occurs twice: a damaged file")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// `general.alignment` is not a power of two from 8 to 65536, as a u32.
    #[error("general.alignment must be a u32 power of two from 8 to 65536: a damaged file")]
    Alignment,
    /// A tensor of a type that is not read.
    #[error(
        "tensor `{tensor}` has type number {found}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K and IQ4_NL are read: \
         quantise the model to one of these"
    )]
    TensorType {
        /// The name.
        tensor: String,
        /// GGML's number of the type.
        found: u32,
    },
    /// A tensor whose shape is empty, too large, or not whole blocks.
    #[error(
        "tensor `{tensor}` has shape {shape:?}, which is empty, too large or not whole blocks of its type"
    )]
    Shape {
        /// The name.
        tensor: String,
        /// Its shape, rows first.
        shape: Vec<usize>,
    },
    /// A tensor that does not lie inside the file.
    #[error(
        "tensor `{tensor}` has {bytes} bytes at {start}, but the file ends at {file}: it is cut short; fetch it again"
    )]
    TensorBeyondFile {
        /// The name.
        tensor: String,
        /// Its place in the file.
        start: u64,
        /// Its length.
        bytes: u64,
        /// Bytes in the file.
        file: u64,
    },
    /// A tensor that is not aligned, or shares bytes with another.
    #[error("tensor `{tensor}` at byte {start} is not aligned or overlaps another: a damaged file")]
    Offset {
        /// The name.
        tensor: String,
        /// Its place in the file.
        start: u64,
    },
    /// A tensor cannot be dequantised.
    #[error("a tensor cannot be dequantised: {reason}")]
    Parse {
        /// What the decoder said.
        reason: Box<candle_core::Error>,
    },
    /// A part of a split model, of which another one has to be given.
    #[error("part {part} of a model of {count} parts: give the first, {}", first.display())]
    NotFirstPart {
        /// This part, from 1.
        part: u64,
        /// All of them.
        count: u64,
        /// Where the first should be.
        first: PathBuf,
    },
    /// A part of a split model that is called otherwise, so that its siblings cannot be found.
    #[error(
        "part {part} of a model of {count} parts, whose name has to end in -{part:05}-of-{count:05}.gguf: give all parts \
         the names they had"
    )]
    PartName {
        /// This part, from 1.
        part: u64,
        /// All of them.
        count: u64,
    },
    /// A part of a split model that is not there.
    #[error("part {part} of {count}, {}, is missing: fetch it into the same folder", file.display())]
    MissingPart {
        /// The missing part, from 1.
        part: u64,
        /// All of them.
        count: u64,
        /// Its file.
        file: PathBuf,
    },
    /// A file that its name calls another part than it is.
    #[error(
        "by its metadata this is part {found} of {found_count}, by its name {part} of {count}: fetch it again"
    )]
    PartNumber {
        /// By its name, from 1.
        part: u64,
        /// By the first part.
        count: u64,
        /// By its metadata, from 1.
        found: u64,
        /// By its metadata.
        found_count: u64,
    },
    /// The parts do not have the tensors that the first one counts.
    #[error(
        "the parts have {found} tensors, expected {expected}: one of them is of another model; fetch them again"
    )]
    PartTensors {
        /// `split.tensors.count`.
        expected: u64,
        /// In all parts.
        found: u64,
    },
    /// A metadata value of another type than its key has.
    #[error(
        "metadata `{key}` is not {expected}: the file is damaged or from a converter that is not known"
    )]
    Metadata {
        /// The key.
        key: String,
        /// What it has to be.
        expected: &'static str,
    },
    /// There is no tensor of that name.
    #[error("there is no tensor `{tensor}`")]
    NoTensor {
        /// The name asked for.
        tensor: String,
    },
    /// A request beyond the tensor's end, or for a buffer of another length.
    #[error(
        "rows {start}..{end} of tensor `{tensor}` into {out} places: it has {rows} rows of {cols}"
    )]
    Range {
        /// The name.
        tensor: String,
        /// First row asked for.
        start: usize,
        /// One past the last.
        end: usize,
        /// Length of the buffer.
        out: usize,
        /// Rows of the tensor.
        rows: usize,
        /// Columns of the tensor.
        cols: usize,
    },
}

/// Why a model cannot be fetched from the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubDefect {
    /// Not a model's name.
    #[error(
        "not a model's name: expected ORG/NAME or ORG/NAME@REVISION of letters, digits, `-`, `_` and `.`"
    )]
    Name,
    /// The program was built without the hub.
    #[error(
        "this build cannot download models: build with `--features hub`, or give a folder or a .gguf file"
    )]
    NotBuilt,
    /// A file cannot be fetched.
    #[error(
        "cannot fetch {file}: {reason}; check the name and the network, or give a folder or a .gguf file"
    )]
    Fetch {
        /// The file.
        file: String,
        /// What the hub client said.
        reason: String,
    },
}
