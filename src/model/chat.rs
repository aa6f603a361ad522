//! Conversations as prompts, through the model's own chat template.
//!
//! **Invariant:** a template has no access to anything but its conversation, the two tokens and today's date, and stops
//! after a fixed amount of work.
//!
//! **Source:** transformers' `apply_chat_template`: Jinja with `trim_blocks` and `lstrip_blocks`, Python's string
//! methods, `raise_exception` and `strftime_now`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};

use crate::base::BaseModel;
use crate::error::ChatDefect;
use crate::file::gguf::GgufFile;
use crate::file::read_limited;
use crate::{Error, Result};

const MAX_TEMPLATE_BYTES: u64 = 4 << 20;
const FUEL: u64 = 10_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    bos_token: String,
    eos_token: String,
}

/// The parts of `tokenizer_config.json` that a template needs.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<RawTemplate>,
    bos_token: Option<RawToken>,
    eos_token: Option<RawToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawToken {
    Text(String),
    Token { content: String },
}

impl ChatTemplate {
    /// Finds the base's template: in a GGUF file's metadata, or a folder's `chat_template.jinja` or
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Chat`] when there is none or it cannot be parsed, or the file's own error.
    pub fn for_base(base: &BaseModel) -> Result<Self> {
        let template = match base.gguf() {
            Some(file) => Self::from_gguf(file)?,
            None => Self::from_folder(base.path())?,
        };
        template.environment()?;
        Ok(template)
    }

    fn from_gguf(file: &GgufFile) -> Result<Self> {
        let path = file.path().to_owned();
        let Some(source) = file.text("tokenizer.chat_template")? else {
            return Err(Error::Chat { path, defect: ChatDefect::Missing });
        };
        let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let token = |key| -> Result<String> {
            let id = file.integer(key)?.and_then(|id| usize::try_from(id).ok());
            Ok(id.and_then(|id| tokens.get(id)).copied().unwrap_or_default().to_owned())
        };
        let (bos_token, eos_token) = (token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?);
        Ok(Self { path, source: source.to_owned(), bos_token, eos_token })
    }

    fn from_folder(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let config: TokenizerConfig = match path.exists() {
            true => serde_json::from_slice(&read_limited(&path, MAX_TEMPLATE_BYTES)?)
                .map_err(|reason| Error::Chat { path: path.clone(), defect: ChatDefect::Json { reason } })?,
            false => TokenizerConfig::default(),
        };
        let (bos_token, eos_token) = (text(config.bos_token), text(config.eos_token));
        let own_file = dir.join("chat_template.jinja");
        if own_file.exists() {
            let source = String::from_utf8_lossy(&read_limited(&own_file, MAX_TEMPLATE_BYTES)?).into_owned();
            return Ok(Self { path: own_file, source, bos_token, eos_token });
        }
        let source = config.chat_template.and_then(|template| match template {
            RawTemplate::One(source) => Some(source),
            RawTemplate::Named(all) => all.into_iter().find(|one| one.name == "default").map(|one| one.template),
        });
        match source {
            Some(source) => Ok(Self { path, source, bos_token, eos_token }),
            None => Err(Error::Chat { path: dir.to_owned(), defect: ChatDefect::Missing }),
        }
    }

    /// Writes a conversation as the prompt for the assistant's next turn.
    ///
    /// # Errors
    /// [`Error::Chat`] when the template refuses the conversation or works too long.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let turn = |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
        let turns: Vec<Value> = messages.iter().map(turn).collect();
        let context = context! {
            messages => turns,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            add_generation_prompt => true,
        };
        let environment = self.environment()?;
        let template = environment.get_template("chat").map_err(|e| self.error(&e))?;
        template.render(context).map_err(|e| self.error(&e))
    }

    fn environment(&self) -> Result<Environment<'_>> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| self.error(&e))?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template("chat", &self.source).map_err(|e| self.error(&e))?;
        Ok(environment)
    }

    fn error(&self, error: &minijinja::Error) -> Error {
        Error::Chat { path: self.path.clone(), defect: ChatDefect::Template { reason: format!("{error:#}") } }
    }
}

fn text(token: Option<RawToken>) -> String {
    match token {
        None => String::new(),
        Some(RawToken::Text(text) | RawToken::Token { content: text }) => text,
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Today's date, UTC, in the directives that chat templates use.
fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format_date(seconds / 86_400, &format)
}

fn format_date(days: u64, format: &str) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (year, month, day) = civil_date(days);
    let name = MONTHS[month - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('d')) => out.push_str(&format!("{day:02}")),
            ('%', Some('m')) => out.push_str(&format!("{month:02}")),
            ('%', Some('Y')) => out.push_str(&year.to_string()),
            ('%', Some('B')) => out.push_str(name),
            ('%', Some('b')) => out.push_str(&name[..3]),
            ('%', directive) => {
                let message = format!("strftime_now knows %d %m %Y %B %b, not %{}", directive.unwrap_or(' '));
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

/// Year, month (1 to 12) and day of a day counted from 1 January 1970.
fn civil_date(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TinyModel, tiny_gguf, tiny_hf_model};

    fn template(source: &str) -> ChatTemplate {
        let (bos_token, eos_token) = ("<s>".to_owned(), "</s>".to_owned());
        ChatTemplate { path: "test".into(), source: source.to_owned(), bos_token, eos_token }
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
            assert_eq!((&template.bos_token[..], &template.eos_token[..]), ("<|endoftext|>", "<|im_end|>"));
        }
    }

    #[test]
    fn own_file_and_named_templates_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("tokenizer_config.json");
        std::fs::write(
            &config,
            r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#,
        )
        .unwrap();
        assert_eq!(ChatTemplate::from_folder(dir.path()).unwrap().source, "d");
        std::fs::write(dir.path().join("chat_template.jinja"), "own").unwrap();
        assert_eq!(ChatTemplate::from_folder(dir.path()).unwrap().source, "own");
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
            "{{ strftime_now('%Q') }}",
        ] {
            let error = template(source).render(&user("a")).unwrap_err();
            assert!(matches!(error, Error::Chat { defect: ChatDefect::Template { .. }, .. }), "{error}");
        }
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        for (days, date) in
            [(0, "01 Jan 1970"), (11_016, "29 Feb 2000"), (11_017, "01 Mar 2000"), (20_513, "01 Mar 2026")]
        {
            assert_eq!(format_date(days, "%d %b %Y").unwrap(), date);
        }
        assert_eq!(format_date(20_513, "%Y-%m-%d %B").unwrap(), "2026-03-01 March");
    }
}
