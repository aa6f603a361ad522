//! What can be wrong with a tokenizer or a chat template.
//!
//! **Invariant:** one variant a defect, each with what was expected and found, and what to do.

/// Why a tokenizer cannot be built or cannot take a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerDefect {
    /// The base has no tokenizer.
    #[error("there is no tokenizer here: give a tokenizer.json with --tokenizer FILE")]
    Missing,
    /// A GGUF vocabulary of a kind that is not read.
    #[error(
        "the vocabulary is of kind `{found}`, only `gpt2` (byte-level BPE) is read: give the model's tokenizer.json with --tokenizer FILE"
    )]
    Kind {
        /// `tokenizer.ggml.model`.
        found: String,
    },
    /// A GGUF pre-tokenizer that is not known.
    #[error(
        "the pre-tokenizer `{found}` is not known: give the model's tokenizer.json with --tokenizer FILE"
    )]
    PreTokenizer {
        /// `tokenizer.ggml.pre`.
        found: String,
    },
    /// A value of the vocabulary that does not fit the others.
    #[error(
        "the vocabulary is damaged: {what}; give the model's tokenizer.json with --tokenizer FILE"
    )]
    Vocabulary {
        /// What does not fit.
        what: String,
    },
    /// A GGUF vocabulary without the merges that make its tokens.
    #[error(
        "the {merges} merges make {reached} of the {tokens} tokens of several letters: merges were lost, and words would fall apart into bytes; convert the model again, or give its tokenizer.json with --tokenizer FILE"
    )]
    MergesLost {
        /// Merges in the file.
        merges: usize,
        /// Tokens that a merge makes.
        reached: usize,
        /// Tokens that some merge has to make.
        tokens: usize,
    },
    /// A file that is not JSON, or not the JSON it has to be.
    #[error("not valid: {reason}; fetch the model's file again")]
    Json {
        /// What the parser said, with the place.
        reason: serde_json::Error,
    },
    /// An entry of a file that is not what it has to be.
    #[error("`{entry}` is {found}, expected {expected}; fetch the model's file again")]
    Entry {
        /// Where, with its path in the file.
        entry: String,
        /// What stands there.
        found: &'static str,
        /// What has to.
        expected: &'static str,
    },
    /// The tokenizer library refused.
    #[error("{reason}; give the model's tokenizer.json with --tokenizer FILE")]
    Library {
        /// What it said.
        reason: String,
    },
}

/// Why a conversation cannot be written as a prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatDefect {
    /// The model has no chat template.
    #[error("the model has no chat template: it was not trained for chat; generate without --chat")]
    Missing,
    /// Several templates, none of which is the default.
    #[error(
        "there are several chat templates and none is the default: say which with --template ({known})"
    )]
    NoDefault {
        /// Their names.
        known: String,
    },
    /// No template of the name asked for.
    #[error("there is no chat template `{name}`; there are: {known}")]
    NoSuchTemplate {
        /// The name.
        name: String,
        /// Those there are.
        known: String,
    },
    /// The template cannot be parsed or fails on this conversation.
    #[error("the chat template fails: {reason}; check the roles, or generate without --chat")]
    Template {
        /// What the template engine said.
        reason: String,
    },
    /// A file that is not the JSON it has to be.
    #[error("not valid: {reason}")]
    Json {
        /// What the parser said, with the place.
        reason: serde_json::Error,
    },
}
