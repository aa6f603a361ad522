//! Conversations as prompts, through the model's own chat template.
//!
//! Templates render on a thread of their own with a large stack, since nesting is bounded by fuel
//! alone. Python's `%` is compiled to a call, because minijinja's operator knows no texts. What
//! makes the library panic is refused, and the panic stays off stderr (`contain.rs`).
//!
//! **Invariant:** a template has no access to anything but its conversation, the special tokens and
//! the time, and stops after a fixed amount of work.
//!
//! **Source:** transformers' `apply_chat_template`: Jinja with `trim_blocks`, `lstrip_blocks` and
//! loop controls, Python's methods, its own `tojson`, `raise_exception` and `strftime_now`.
//! `tests/fixtures/text/chat.json` holds what it renders.

mod clock;
mod json;
mod python;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::machinery::{self, CompiledTemplate, Instruction, Instructions, TemplateConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use super::special::FolderTokens;
use crate::base::BaseModel;
use crate::contain::contained;
use crate::error::{ChatDefect, TokenizerDefect};
use crate::file::gguf::GgufFile;
use crate::file::read_limited;
use crate::{Error, Result};

const MAX_TEMPLATE_BYTES: u64 = 4 << 20;
const FUEL: u64 = 1_000_000;
/// Stack of the thread that renders. A template can nest lists as deep as its fuel goes, and the
/// engine takes them apart by recursion; what is not used of it is never touched.
const STACK_BYTES: usize = 1 << 29;
/// Template that is taken where none is asked for.
const DEFAULT: &str = "default";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A model's chat templates: mostly one, called `default`.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    sources: BTreeMap<String, String>,
    /// Special tokens by the names that templates know them by, such as `bos_token`.
    tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// Finds the base's templates: in a GGUF file's metadata; in a folder's `chat_template.jinja`
    /// and `additional_chat_templates/`, or else in its `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Chat`] when there is none or the default one cannot be parsed, or the file's own
    /// error.
    pub fn for_base(base: &BaseModel) -> Result<Self> {
        match base.gguf() {
            Some(file) => Self::from_gguf(file)?.checked(),
            None => Self::from_folder(base.path())?.checked(),
        }
    }

    /// The templates in the folder `dir`, which count in place of `base`'s; none where there are
    /// none. Special tokens that the folder does not name are the base's.
    ///
    /// # Errors
    /// As [`ChatTemplate::for_base`].
    pub fn in_folder(dir: &Path, base: &BaseModel) -> Result<Option<Self>> {
        let mut templates = match Self::from_folder(dir) {
            Ok(templates) => templates.checked()?,
            Err(Error::Chat { defect: ChatDefect::Missing, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let config = FolderTokens::read(dir)?;
        let own = match base.gguf() {
            Some(file) => gguf_tokens(file)?,
            None => named_tokens(&FolderTokens::read(base.path())?),
        };
        let said = |name: &str, tokens: &[(String, String)]| {
            config.mentions(name) || tokens.iter().any(|(known, _)| known == name)
        };
        for (name, text) in own {
            if !said(&name, &templates.tokens) {
                templates.tokens.push((name, text));
            }
        }
        Ok(Some(templates))
    }

    /// These, if the default one can be parsed.
    fn checked(self) -> Result<Self> {
        if let Some(source) = self.sources.get(DEFAULT) {
            self.contain(|| compile(&source::prepared(source).map_err(invalid)?).map(drop))?;
        }
        Ok(self)
    }

    fn from_gguf(file: &GgufFile) -> Result<Self> {
        let path = file.path().to_owned();
        let mut sources = BTreeMap::new();
        let named = file.texts("tokenizer.chat_templates")?.unwrap_or_default();
        for name in named.into_iter().filter(|name| *name != DEFAULT) {
            let source = file.text(&format!("tokenizer.chat_template.{name}"))?;
            sources.extend(source.map(|source| (name.to_owned(), source.to_owned())));
        }
        sources.extend(
            file.text("tokenizer.chat_template")?
                .map(|source| (DEFAULT.to_owned(), source.to_owned())),
        );
        if sources.is_empty() {
            return Err(Error::Chat { path, defect: ChatDefect::Missing });
        }
        Ok(Self { path, sources, tokens: gguf_tokens(file)? })
    }

    fn from_folder(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let config = FolderTokens::read(dir).map_err(|error| match error {
            Error::Tokenizer { path, defect: TokenizerDefect::Json { reason } } => {
                Error::Chat { path, defect: ChatDefect::Json { reason } }
            }
            other => other,
        })?;
        let own_file = dir.join("chat_template.jinja");
        let mut sources = named_files(&dir.join("additional_chat_templates"))?;
        if own_file.exists() {
            // One called `default` in the folder counts before the file, as in transformers.
            sources.entry(DEFAULT.to_owned()).or_insert(read_source(&own_file)?);
        }
        if !sources.is_empty() {
            return Ok(Self { path: own_file, sources, tokens: named_tokens(&config) });
        }
        Self::from_config(path, &config)?
            .ok_or_else(|| Error::Chat { path: dir.to_owned(), defect: ChatDefect::Missing })
    }

    /// The templates of a `tokenizer_config.json`.
    fn from_config(path: PathBuf, config: &FolderTokens) -> Result<Option<Self>> {
        let Some(written) = &config.chat_template else { return Ok(None) };
        let sources = match serde_json::from_value(written.clone()) {
            Ok(RawTemplate::One(source)) => BTreeMap::from([(DEFAULT.to_owned(), source)]),
            Ok(RawTemplate::List(all)) => {
                all.into_iter().map(|one| (one.name, one.template)).collect()
            }
            Ok(RawTemplate::Map(all)) => all,
            Err(_) => {
                let reason =
                    "`chat_template` is neither a text nor templates with their names".to_owned();
                return Err(Error::Chat { path, defect: ChatDefect::Template { reason } });
            }
        };
        Ok((!sources.is_empty()).then(|| Self { path, sources, tokens: named_tokens(config) }))
    }

    /// What the fuzzers run: a `tokenizer_config.json` if it is JSON, else a template.
    #[cfg(feature = "testing")]
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let path = PathBuf::from("bytes");
        if bytes.first() == Some(&b'{')
            && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
        {
            let config = FolderTokens::from_bytes(&path, bytes)?;
            let missing = Error::Chat { path: path.clone(), defect: ChatDefect::Missing };
            return Self::from_config(path, &config)?.ok_or(missing);
        }
        let sources =
            BTreeMap::from([(DEFAULT.to_owned(), String::from_utf8_lossy(bytes).into_owned())]);
        Ok(Self { path, sources, tokens: vec![("bos_token".to_owned(), "<s>".to_owned())] })
    }

    /// The templates' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// Writes a conversation as the prompt for the assistant's next turn, by the default template.
    ///
    /// # Errors
    /// [`Error::Chat`] when the template refuses the conversation or works too long.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        self.render_by(None, messages)
    }

    /// The same by the template called `name`.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and when there is none of that name.
    pub fn render_by(&self, name: Option<&str>, messages: &[Message]) -> Result<String> {
        let source = self.sources.get(name.unwrap_or(DEFAULT)).ok_or_else(|| {
            let known = self.names().collect::<Vec<_>>().join(", ");
            let defect = match name {
                Some(name) => ChatDefect::NoSuchTemplate { name: name.to_owned(), known },
                None => ChatDefect::NoDefault { known },
            };
            Error::Chat { path: self.path.clone(), defect }
        })?;
        let turn = |message: &Message| {
            Value::from_pairs([
                ("role", message.role.as_str()),
                ("content", message.content.as_str()),
            ])
        };
        let turns: Vec<Value> = messages.iter().map(turn).collect();
        let fixed = [
            ("messages", Value::from(turns)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(true)),
        ];
        let tokens =
            self.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let context = Value::from_pairs(tokens.chain(fixed));
        self.contain(|| run(&source::prepared(source).map_err(invalid)?, context))
    }

    fn contain<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, minijinja::Error> + Send,
    ) -> Result<T> {
        let done = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread = thread
                .spawn_scoped(scope, || contained(|| work().map_err(|error| described(&error))));
            thread.map(|thread| thread.join())
        });
        let reason = match done {
            Ok(Ok(Ok(Ok(value)))) => return Ok(value),
            Ok(Ok(Ok(Err(reason)))) => reason,
            Ok(Ok(Err(panic))) => format!("the template engine broke off: {panic}"),
            Ok(Err(_)) => "the template engine broke off".to_owned(),
            Err(error) => format!("no thread to render it in: {error}"),
        };
        Err(Error::Chat { path: self.path.clone(), defect: ChatDefect::Template { reason } })
    }
}

/// What the engine says, with the lines around the place; of a line that is long no more than its
/// beginning.
fn described(error: &minijinja::Error) -> String {
    const SHOWN: usize = 160;
    let text = format!("{error:#}");
    let lines = text.lines().take(24).map(|line| match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `chat_template` as it is written.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawTemplate {
    One(String),
    List(Vec<NamedTemplate>),
    Map(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The special tokens that a GGUF file names.
fn gguf_tokens(file: &GgufFile) -> Result<Vec<(String, String)>> {
    let texts = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let mut tokens = Vec::new();
    for (key, name) in [
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
        ("seperator", "sep_token"),
        ("padding", "pad_token"),
        ("cls", "cls_token"),
        ("mask", "mask_token"),
    ] {
        let id = file
            .signed(&format!("tokenizer.ggml.{key}_token_id"))?
            .and_then(|id| usize::try_from(id).ok());
        tokens.extend(
            id.and_then(|id| texts.get(id)).map(|text| (name.to_owned(), (*text).to_owned())),
        );
    }
    Ok(tokens)
}

/// The special tokens that a template knows; of a class that has them by default, those, too.
fn named_tokens(config: &FolderTokens) -> Vec<(String, String)> {
    let mut tokens: Vec<(String, String)> =
        config.named.iter().map(|(name, token)| (name.clone(), token.content.clone())).collect();
    let class = config.class.as_deref().unwrap_or_default();
    let defaults: &[(&str, &str)] = match class.strip_suffix("Fast").unwrap_or(class) {
        "LlamaTokenizer" => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        "GPT2Tokenizer" => &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
        ],
        _ => &[],
    };
    for (name, text) in defaults {
        if !config.mentions(name) {
            tokens.push(((*name).to_owned(), (*text).to_owned()));
        }
    }
    tokens
}

/// `NAME.jinja` files of a folder, by name.
fn named_files(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut sources = BTreeMap::new();
    if !folder.is_dir() {
        return Ok(sources);
    }
    let io = |reason| Error::Io { path: folder.to_owned(), source: reason };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".jinja"));
        if let Some(name) = name {
            sources.insert(name.to_owned(), read_source(&path)?);
        }
    }
    Ok(sources)
}

fn read_source(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&read_limited(path, MAX_TEMPLATE_BYTES)?).into_owned())
}

/// The engine with all that transformers' has.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_debug(false);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(python::method);
    environment.add_function(python::REMAINDER, python::remainder);
    environment.add_function("raise_exception", raise_exception);
    environment
        .add_function("strftime_now", |format: String| clock::strftime(clock::now(), &format));
    environment.add_function("cycler", python::cycler);
    environment.add_function("joiner", python::joiner);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("default", python::default);
    environment.add_filter("d", python::default);
    environment.add_filter("int", python::int);
    environment.add_filter("float", python::float);
    environment.add_test("sequence", python::is_sequence);
    environment
}

/// Compiles a template; `%` then goes through [`python::remainder`], since the engine's knows no
/// texts.
fn compile(source: &str) -> Result<CompiledTemplate<'_>, minijinja::Error> {
    let config = TemplateConfig {
        syntax_config: SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?,
        default_auto_escape: Arc::new(|_| AutoEscape::None),
    };
    let mut compiled = CompiledTemplate::new("chat", source, &config)?;
    let respell = |instructions: &mut Instructions<'_>| {
        let mut at = 0;
        while let Some(instruction) = instructions.get_mut(at) {
            if matches!(instruction, Instruction::Rem) {
                *instruction = Instruction::CallFunction(python::REMAINDER, Some(2));
            }
            at += 1;
        }
    };
    respell(&mut compiled.instructions);
    compiled.blocks.values_mut().for_each(respell);
    Ok(compiled)
}

fn run(source: &str, context: Value) -> Result<String, minijinja::Error> {
    let environment = environment();
    let compiled = compile(source)?;
    let mut text = String::new();
    let mut out = machinery::make_string_output(&mut text);
    machinery::eval(
        &environment,
        &compiled.instructions,
        context,
        &compiled.blocks,
        &mut out,
        AutoEscape::None,
    )?;
    drop(out);
    Ok(text)
}

fn invalid(message: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::SyntaxError, message)
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TinyModel, tiny_gguf, tiny_hf_model};

    fn template(source: &str) -> ChatTemplate {
        let tokens = vec![
            ("bos_token".to_owned(), "<s>".to_owned()),
            ("eos_token".to_owned(), "</s>".to_owned()),
        ];
        ChatTemplate {
            path: "test".into(),
            sources: BTreeMap::from([(DEFAULT.to_owned(), source.to_owned())]),
            tokens,
        }
    }

    fn user(content: &str) -> Vec<Message> {
        vec![Message { role: "user".to_owned(), content: content.to_owned() }]
    }

    #[test]
    fn folder_and_gguf_give_the_same_prompt() {
        let dir = tempfile::tempdir().unwrap();
        tiny_hf_model(dir.path(), &TinyModel::default());
        let path = dir.path().join("tiny.gguf");
        tiny_gguf(&path, &TinyModel::default(), candle_core::quantized::GgmlDType::Q8_0);
        for path in [dir.path(), &path] {
            let template = ChatTemplate::for_base(&BaseModel::open(path).unwrap()).unwrap();
            assert_eq!(
                template.render(&user("Salut")).unwrap(),
                "<|im_start|>user\nSalut<|im_end|>\n<|im_start|>assistant\n"
            );
            let tokens = [("bos_token", "<|endoftext|>"), ("eos_token", "<|im_end|>")];
            assert_eq!(
                template.tokens,
                tokens.map(|(name, text)| (name.to_owned(), text.to_owned()))
            );
        }
    }

    #[test]
    fn model_without_a_template_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = ChatTemplate::from_folder(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Chat { defect: ChatDefect::Missing, .. }), "{error}");
    }

    #[test]
    fn python_methods_and_block_trimming_work_as_in_transformers() {
        let source = "{%- for m in messages %}\n  {% if m.role.upper().startswith('US') %}\n{{ bos_token }}{{ m['content'].strip() }}\n  {% endif %}\n{% endfor %}";
        assert_eq!(template(source).render(&user(" a ")).unwrap(), "<s>a\n");
    }

    #[test]
    fn template_that_raises_loops_or_is_broken_is_an_error() {
        for source in [
            "{{ raise_exception('roles must alternate') }}",
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
            "{% if %}",
            "{{ 1 % 0 }}",
        ] {
            let error = template(source).render(&user("a")).unwrap_err();
            assert!(
                matches!(error, Error::Chat { defect: ChatDefect::Template { .. }, .. }),
                "{error}"
            );
        }
    }
}
