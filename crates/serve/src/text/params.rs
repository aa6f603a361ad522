//! What the body of a completion or a chat asks for.
//!
//! **Invariant:** a field that would change the answer and is not done is refused by its name; one
//! that nobody knows is passed over. `null` is as if the field were not there.

use std::collections::BTreeMap;
use std::time::Duration;

use pleach::{GenerateOptions, Merge, Message, Prompt, Sampling};
use serde::Deserialize;
use serde_json::Value;

use crate::body;
use crate::error::ApiError;

/// Most answers to one request.
const MAX_CHOICES: usize = 128;
/// Most likely tokens beside each one.
const MAX_LOGPROBS: usize = 20;
/// Most texts to stop at.
const MAX_STOPS: usize = 16;
/// Longest salt, and longest number of a request, in bytes.
const MAX_SHORT_BYTES: usize = 128;
/// New tokens of a completion that does not say how many, as OpenAI's.
const COMPLETION_TOKENS: usize = 16;

/// Fields that ask for something that is not done, unless they say nothing.
const NOT_DONE: [(&str, &str); 13] = [
    ("tools", "tools are not done; describe them in a message, and parse the answer"),
    ("functions", "functions are not done; describe them in a message, and parse the answer"),
    ("function_call", "functions are not done"),
    ("suffix", "filling in before a suffix is not done"),
    ("prompt_logprobs", "logprobs of the prompt are not done"),
    ("min_tokens", "a least number of tokens is not done; ignore_eos goes on to max_tokens"),
    ("audio", "audio is not done"),
    ("guided_json", "guided decoding is not done"),
    ("guided_regex", "guided decoding is not done"),
    ("guided_choice", "guided decoding is not done"),
    ("guided_grammar", "guided decoding is not done"),
    ("structured_outputs", "guided decoding is not done"),
    ("prompt_embeds", "embeddings in place of a prompt are not done"),
];

/// Which of the two routes is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Completion,
    Chat,
}

/// A body, as it is written.
#[derive(Deserialize)]
struct Fields {
    model: Option<String>,
    prompt: Option<Value>,
    messages: Option<Value>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    n: Option<usize>,
    best_of: Option<usize>,
    stop: Option<Value>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    seed: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    logprobs: Option<Value>,
    top_logprobs: Option<usize>,
    echo: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    cache_salt: Option<String>,
    request_id: Option<String>,
    tool_choice: Option<Value>,
    response_format: Option<Value>,
    modalities: Option<Vec<String>>,
    add_generation_prompt: Option<bool>,
    merge: Option<String>,
    deadline_ms: Option<u64>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

/// What usage a stream says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StreamUsage {
    /// In a chunk of its own at the end.
    pub(crate) at_end: bool,
    /// In every chunk.
    pub(crate) always: bool,
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    /// As the client calls it; the base where it does not say.
    pub(crate) model: Option<String>,
    pub(crate) prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    /// The first answer's; `max_tokens` is set once the prompt is counted.
    pub(crate) options: GenerateOptions,
    /// Most new tokens, where the client says.
    pub(crate) max_tokens: Option<usize>,
    /// Which of its fields says so.
    pub(crate) limit_name: &'static str,
    pub(crate) merge: Merge,
    pub(crate) deadline: Option<Duration>,
    pub(crate) salt: String,
    /// What the client calls the request.
    pub(crate) request_id: Option<String>,
    pub(crate) echo: bool,
    /// Nothing: the answer comes whole.
    pub(crate) stream: Option<StreamUsage>,
}

impl Asked {
    /// Reads a body.
    pub(crate) fn read(kind: Kind, body: Value) -> Result<Self, ApiError> {
        refuse_what_is_not_done(&body)?;
        let fields: Fields = body::fields(body)?;
        fields.check()?;
        let Fields { model, n, .. } = &fields;
        let (model, n) = (model.clone(), n.unwrap_or(1));
        let prompts = match kind {
            Kind::Completion => prompts(fields.prompt.as_ref())?,
            Kind::Chat => vec![Prompt::Chat(messages(fields.messages.as_ref())?)],
        };
        let choices = prompts.len().saturating_mul(n);
        if n == 0 || choices > MAX_CHOICES {
            let message = format!(
                "{n} answers to each of {} prompts; 1 to {MAX_CHOICES} in all are made at once",
                prompts.len()
            );
            return Err(ApiError::bad("n", message));
        }
        let (limit_name, max_tokens) = match (fields.max_completion_tokens, fields.max_tokens) {
            (Some(most), _) => ("max_completion_tokens", Some(most)),
            (None, most) => ("max_tokens", most),
        };
        let max_tokens = match kind {
            Kind::Completion => max_tokens.or(Some(COMPLETION_TOKENS)),
            Kind::Chat => max_tokens,
        };
        let (logprobs, echo) = (fields.logprobs(kind)?, fields.echo.unwrap_or(false));
        if echo && logprobs.is_some() {
            return Err(ApiError::bad(
                "echo",
                "logprobs of the prompt are not done; leave out one of echo and logprobs",
            ));
        }
        if echo && kind == Kind::Chat {
            return Err(ApiError::bad("echo", "the last message cannot be repeated in an answer"));
        }
        let salt = short("cache_salt", fields.cache_salt.as_ref())?.unwrap_or_default();
        let request_id = short("request_id", fields.request_id.as_ref())?;
        let options = GenerateOptions {
            max_tokens: 0,
            stop_tokens: fields.stop_token_ids.clone().unwrap_or_default(),
            stop_texts: stops(fields.stop.as_ref())?,
            ignore_eos: fields.ignore_eos.unwrap_or(false),
            logprobs,
            sampling: fields.sampling()?,
        };
        options.check().map_err(ApiError::of_text)?;
        Ok(Self {
            kind,
            model,
            prompts,
            n,
            options,
            max_tokens,
            limit_name,
            merge: merge(fields.merge.as_deref())?,
            deadline: fields.deadline_ms.map(Duration::from_millis),
            salt,
            request_id,
            echo,
            stream: fields.stream_usage()?,
        })
    }
}

impl Fields {
    /// Refuses what the other fields ask for that is not done.
    fn check(&self) -> Result<(), ApiError> {
        let is_no_tool = |choice: &Value| choice == "none" || choice == "auto";
        let is_text = |format: &Value| format.get("type").is_some_and(|kind| kind == "text");
        let texts = |kinds: &Vec<String>| kinds.iter().all(|kind| kind == "text");
        let best = self.best_of.unwrap_or(0);
        let refusals = [
            (
                self.tool_choice.as_ref().is_some_and(|choice| !is_no_tool(choice)),
                "tool_choice",
                "tools are not done",
            ),
            (
                self.response_format.as_ref().is_some_and(|format| !is_text(format)),
                "response_format",
                "only {\"type\": \"text\"} is done; ask for JSON in a message",
            ),
            (
                self.modalities.as_ref().is_some_and(|kinds| !texts(kinds)),
                "modalities",
                "only [\"text\"] is done",
            ),
            (
                best > self.n.unwrap_or(1),
                "best_of",
                "choosing the best of more answers than n is not done",
            ),
            (
                self.add_generation_prompt == Some(false),
                "add_generation_prompt",
                "continuing the last message is not done; use /v1/completions",
            ),
        ];
        match refusals.iter().find(|(is_asked, ..)| *is_asked) {
            Some((_, name, why)) => {
                Err(ApiError::bad(name, format!("{name}: {why}")).code("unsupported_parameter"))
            }
            None => Ok(()),
        }
    }

    fn sampling(&self) -> Result<Sampling, ApiError> {
        let top_k = match self.top_k {
            // Both are all.
            None | Some(-1 | 0) => None,
            Some(k) => Some(usize::try_from(k).map_err(|_| {
                ApiError::bad("top_k", format!("top_k is {k}; a number from 1, or 0 or -1 for all"))
            })?),
        };
        let bias = |(token, bias): (&String, &f32)| {
            let id = token.parse().map_err(|_| {
                ApiError::bad("logit_bias", format!("logit_bias: {token:?} is no token id"))
            })?;
            Ok((id, *bias))
        };
        let logit_bias = self.logit_bias.iter().flatten().map(bias).collect::<Result<_, _>>()?;
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias,
            seed: self.seed.map_or_else(rand::random, i64::cast_unsigned),
        })
    }

    /// How many likely tokens are wanted beside each, if any.
    fn logprobs(&self, kind: Kind) -> Result<Option<usize>, ApiError> {
        let wanted = match (kind, &self.logprobs) {
            (_, None) => None,
            (Kind::Chat, Some(Value::Bool(wanted))) => {
                wanted.then(|| self.top_logprobs.unwrap_or(0))
            }
            (Kind::Completion, Some(Value::Number(number))) if number.is_u64() => {
                Some(number.as_u64().and_then(|k| usize::try_from(k).ok()).unwrap_or(usize::MAX))
            }
            (Kind::Chat, Some(_)) => {
                return Err(ApiError::bad("logprobs", "logprobs: true or false is expected"));
            }
            (Kind::Completion, Some(_)) => {
                return Err(ApiError::bad("logprobs", "logprobs: a number from 0 is expected"));
            }
        };
        if kind == Kind::Chat && self.top_logprobs.is_some_and(|k| k > 0) && wanted.is_none() {
            return Err(ApiError::bad("top_logprobs", "top_logprobs needs logprobs to be true"));
        }
        if let Some(k) = wanted.filter(|k| *k > MAX_LOGPROBS) {
            let param = if kind == Kind::Chat { "top_logprobs" } else { "logprobs" };
            return Err(ApiError::bad(
                param,
                format!("{param} is {k}, at most {MAX_LOGPROBS} are given"),
            ));
        }
        Ok(wanted)
    }

    fn stream_usage(&self) -> Result<Option<StreamUsage>, ApiError> {
        let is_streamed = self.stream.unwrap_or(false);
        match &self.stream_options {
            Some(_) if !is_streamed => Err(ApiError::bad(
                "stream_options",
                "Stream options can only be defined when `stream=True`.",
            )),
            None => Ok(is_streamed.then(StreamUsage::default)),
            Some(options) => {
                let at_end = options.include_usage.unwrap_or(false);
                let always = at_end && options.continuous_usage_stats.unwrap_or(false);
                Ok(Some(StreamUsage { at_end, always }))
            }
        }
    }
}

/// Refuses fields that ask for what is not done.
fn refuse_what_is_not_done(body: &Value) -> Result<(), ApiError> {
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    };
    for (name, why) in NOT_DONE {
        if body.get(name).is_some_and(|value| !says_nothing(value)) {
            return Err(ApiError::bad(name, format!("{name}: {why}")).code("unsupported_parameter"));
        }
    }
    Ok(())
}

/// The prompts of a completion: a text, token ids, or a list of either.
pub(crate) fn prompts(value: Option<&Value>) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |found: &str| {
        let expected = "a text, a list of token ids, or a list of either is expected";
        Err(ApiError::bad("prompt", format!("prompt: {expected}, {found} was found")))
    };
    let one = |value: &Value| match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(items) => tokens(items).map(Prompt::Tokens),
        _ => None,
    };
    match value {
        None => Err(ApiError::bad("prompt", "there is no prompt")),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text.clone())]),
        Some(Value::Array(items)) if items.is_empty() => wrong("an empty list"),
        Some(Value::Array(items)) => match tokens(items) {
            Some(ids) => Ok(vec![Prompt::Tokens(ids)]),
            None => match items.iter().map(one).collect() {
                Some(prompts) => Ok(prompts),
                None => wrong("a list of something else"),
            },
        },
        Some(_) => wrong("something else"),
    }
}

/// Token ids, if all are.
fn tokens(items: &[Value]) -> Option<Vec<u32>> {
    items.iter().map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// The turns of a chat. A content of parts is the text of its parts, line by line.
pub(crate) fn messages(value: Option<&Value>) -> Result<Vec<Message>, ApiError> {
    let bad = |message: String| Err(ApiError::bad("messages", message));
    let Some(value) = value else { return bad("there are no messages".to_owned()) };
    let Some(items) = value.as_array().filter(|items| !items.is_empty()) else {
        return bad("messages: a list of at least one is expected".to_owned());
    };
    let mut messages = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let Some(role) = item.get("role").and_then(Value::as_str) else {
            return bad(format!("messages[{i}].role: a text is expected"));
        };
        let content = match item.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                match parts.iter().map(text_of).collect::<Option<Vec<_>>>() {
                    Some(texts) => texts.join("\n"),
                    None => {
                        return bad(format!(
                            "messages[{i}].content: a part is no text; images, audio and files are not done"
                        ));
                    }
                }
            }
            Some(Value::Null) | None if role == "assistant" => String::new(),
            _ => {
                return bad(format!(
                    "messages[{i}].content: a text or a list of parts is expected"
                ));
            }
        };
        // What newer clients call it.
        let role = if role == "developer" { "system" } else { role };
        messages.push(Message { role: role.to_owned(), content });
    }
    Ok(messages)
}

/// The text of a part, if it is one.
fn text_of(part: &Value) -> Option<&str> {
    let kind = part.get("type").map_or(Some("text"), Value::as_str);
    part.get("text").filter(|_| kind == Some("text")).and_then(Value::as_str)
}

fn stops(value: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let wrong = || Err(ApiError::bad("stop", "stop: a text or a list of texts is expected"));
    let stops = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => {
            let texts: Option<Vec<_>> =
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            match texts {
                Some(texts) => texts,
                None => return wrong(),
            }
        }
        Some(_) => return wrong(),
    };
    if stops.len() > MAX_STOPS {
        let message = format!("stop has {} texts, at most {MAX_STOPS} are looked for", stops.len());
        return Err(ApiError::bad("stop", message));
    }
    Ok(stops)
}

/// A text that may not be long.
fn short(name: &str, text: Option<&String>) -> Result<Option<String>, ApiError> {
    match text.filter(|text| text.len() > MAX_SHORT_BYTES) {
        Some(text) => {
            let message =
                format!("{name} has {} bytes, at most {MAX_SHORT_BYTES} are taken", text.len());
            Err(ApiError::bad(name, message))
        }
        None => Ok(text.cloned()),
    }
}

fn merge(name: Option<&str>) -> Result<Merge, ApiError> {
    match name {
        None | Some("auto") => Ok(Merge::Automatic),
        Some("leaf") => Ok(Merge::Leaf),
        Some("parent") => Ok(Merge::Parent),
        Some("root") => Ok(Merge::Root),
        Some(other) => {
            let message = format!("merge is {other:?}; auto, leaf, parent or root is expected");
            Err(ApiError::bad("merge", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn completion(mut body: Value) -> Result<Asked, ApiError> {
        if body.get("prompt").is_none() {
            body["prompt"] = json!("x");
        }
        Asked::read(Kind::Completion, body)
    }

    #[test]
    fn null_is_as_if_it_were_not_there() {
        let nulls = json!({"prompt": "x", "n": null, "stop": null, "logprobs": null, "seed": null,
            "stream": null, "stream_options": null, "tools": null, "response_format": null,
            "logit_bias": null, "suffix": null, "best_of": null, "max_tokens": null});
        let asked = completion(nulls).unwrap();
        assert_eq!((asked.n, asked.max_tokens, asked.stream), (1, Some(16), None));
        assert_eq!((asked.options.logprobs, asked.model), (None, None));
    }

    #[test]
    fn the_limit_is_known_by_the_name_it_was_given() {
        for name in ["max_tokens", "max_completion_tokens"] {
            let asked = completion(json!({name: 3})).unwrap();
            assert_eq!((asked.limit_name, asked.max_tokens), (name, Some(3)));
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let cases = [
            json!({"tools": [{}]}),
            json!({"tool_choice": "required"}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"best_of": 2}),
            json!({"suffix": "x"}),
            json!({"echo": true, "logprobs": 1}),
            json!({"min_tokens": 3}),
            json!({"prompt_logprobs": 1}),
            json!({"modalities": ["audio"]}),
            json!({"guided_json": {}}),
            json!({"n": 0}),
            json!({"n": 129}),
            json!({"stop": 3}),
            json!({"stop": ""}),
            json!({"logprobs": 21}),
            json!({"logprobs": true}),
            json!({"temperature": -1}),
            json!({"top_p": 0}),
            json!({"top_k": -2}),
            json!({"frequency_penalty": 3}),
            json!({"logit_bias": {"x": 1}}),
            json!({"merge": "top"}),
            json!({"cache_salt": "x".repeat(129)}),
            json!({"request_id": "x".repeat(129)}),
            json!({"stream_options": {"include_usage": true}}),
            json!({"max_tokens": "many"}),
            json!({"max_tokens": -1}),
            json!({"prompt": []}),
            json!({"prompt": {}}),
            json!({"prompt": [1, "x"]}),
            json!({"prompt": [-1]}),
        ];
        for body in cases {
            let name = body.as_object().unwrap().keys().next().unwrap().clone();
            let error = completion(body.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(&name[..]), "{body} {error:?}");
            assert_eq!(error.status, 400);
        }
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let of = |value: Value| prompts(Some(&value)).unwrap();
        assert_eq!(of(json!("a")), [Prompt::Text("a".to_owned())]);
        assert_eq!(of(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(of(json!(["a", "b"])).len(), 2);
        assert_eq!(of(json!([[1], [2, 3]]))[1], Prompt::Tokens(vec![2, 3]));
    }

    #[test]
    fn a_chat_takes_texts_and_parts_that_are_texts() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let value = json!([{"role": "developer", "content": "s"}, {"role": "user", "content": parts},
            {"role": "assistant", "content": null}]);
        let found = messages(Some(&value)).unwrap();
        let found: Vec<_> = found.iter().map(|m| (&m.role[..], &m.content[..])).collect();
        assert_eq!(found, [("system", "s"), ("user", "a\nb"), ("assistant", "")]);
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
        for bad in
            [json!([]), json!("x"), json!([{"content": "x"}]), json!([{"role": "user"}]), image]
        {
            assert_eq!(messages(Some(&bad)).unwrap_err().param.as_deref(), Some("messages"));
        }
    }
}
