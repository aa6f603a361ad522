//! Answers as OpenAI's API writes them, with what is ours beside: the node, its generation, and the
//! fingerprint of what computed them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pleach::StopReason;
use pleach::model::Logprobs;
use serde_json::{Map, Value, json};

use super::choices::{Choice, Choices, Chosen};
use super::params::Kind;
use crate::app::App;

/// What all parts of one answer say alike.
pub(super) struct Render {
    pub(super) app: Arc<App>,
    pub(super) kind: Kind,
    id: String,
    created: u64,
    model: String,
    node: String,
    generation: Option<u64>,
    fingerprint: String,
}

impl Render {
    /// Of answers of which one has made its first step.
    pub(super) fn new(app: &Arc<App>, kind: Kind, id: &str, choices: &Choices) -> Self {
        let version = choices.version();
        let prefix = match kind {
            Kind::Completion => "cmpl-",
            Kind::Chat => "chatcmpl-",
        };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            app: app.clone(),
            kind,
            id: format!("{prefix}{id}"),
            created,
            model: choices.model.clone(),
            node: version.name().to_owned(),
            generation: version.generation(),
            fingerprint: app.fingerprint(version),
        }
    }

    /// The whole answer.
    pub(super) fn whole(&self, choices: &Choices) -> Value {
        let object = match self.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion",
        };
        let list: Vec<Value> = choices
            .list
            .iter()
            .enumerate()
            .map(|(i, choice)| self.whole_choice(i, choice, choices))
            .collect();
        let mut answer = self.head(object, Value::Array(list));
        answer.insert("usage".to_owned(), usage(choices));
        Value::Object(answer)
    }

    fn whole_choice(&self, index: usize, choice: &Choice, choices: &Choices) -> Value {
        let text = format!("{}{}", choice.echo, choice.text);
        let (finish_reason, stop_reason) = why(choice, choices);
        let logprobs = self.logprobs(choice, choices);
        match self.kind {
            Kind::Completion => json!({"index": index, "text": text, "logprobs": logprobs,
                "finish_reason": finish_reason, "stop_reason": stop_reason}),
            Kind::Chat => json!({"index": index,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": logprobs, "finish_reason": finish_reason, "stop_reason": stop_reason}),
        }
    }

    /// The first chunk of a chat's answer.
    pub(super) fn opening(&self, index: usize) -> Map<String, Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let choice =
            json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
        self.chunk(json!([choice]))
    }

    /// A chunk with a text, and with why it ended if it did.
    pub(super) fn step(&self, index: usize, text: &str, choices: &Choices) -> Map<String, Value> {
        let choice = &choices.list[index];
        let (finish_reason, stop_reason) = why(choice, choices);
        let logprobs = self.logprobs(choice, choices);
        let mut value = match self.kind {
            Kind::Completion => json!({"index": index, "text": text, "logprobs": logprobs}),
            Kind::Chat => {
                let delta = if text.is_empty() { json!({}) } else { json!({ "content": text }) };
                json!({"index": index, "delta": delta, "logprobs": logprobs})
            }
        };
        value["finish_reason"] = finish_reason;
        value["stop_reason"] = stop_reason;
        self.chunk(json!([value]))
    }

    /// The chunk that says nothing but the usage.
    pub(super) fn closing(&self, choices: &Choices) -> Map<String, Value> {
        let mut chunk = self.chunk(json!([]));
        chunk.insert("usage".to_owned(), usage(choices));
        chunk
    }

    fn chunk(&self, choices: Value) -> Map<String, Value> {
        let object = match self.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion.chunk",
        };
        self.head(object, choices)
    }

    fn head(&self, object: &str, choices: Value) -> Map<String, Value> {
        let Self { id, created, model, node, generation, fingerprint, .. } = self;
        let head = json!({"id": id, "object": object, "created": created, "model": model, "choices": choices,
            "system_fingerprint": fingerprint, "node": node, "node_generation": generation});
        match head {
            Value::Object(head) => head,
            _ => Map::new(),
        }
    }

    /// Logprobs of tokens; null where none are wanted.
    fn logprobs(&self, choice: &Choice, choices: &Choices) -> Value {
        if choices.options.logprobs.is_none() {
            return Value::Null;
        }
        match self.kind {
            Kind::Completion => self.completion_logprobs(choice),
            Kind::Chat => {
                let content: Vec<Value> =
                    choice.chosen.iter().map(|chosen| self.chat_logprobs(chosen)).collect();
                json!({"content": content, "refusal": null})
            }
        }
    }

    fn completion_logprobs(&self, choice: &Choice) -> Value {
        let (mut offset, mut offsets) = (choice.offset, Vec::new());
        let (mut tokens, mut of_tokens, mut top) = (Vec::new(), Vec::new(), Vec::new());
        for Chosen { token, logprobs } in &choice.chosen {
            let text = self.token_text(*token);
            offsets.push(offset);
            offset += text.chars().count();
            let Logprobs { chosen, top: likeliest } = logprobs;
            let mut map: Map<String, Value> = likeliest
                .iter()
                .map(|(id, logprob)| (self.token_text(*id), json!(logprob)))
                .collect();
            map.entry(text.clone()).or_insert(json!(chosen));
            tokens.push(text);
            of_tokens.push(*chosen);
            top.push(Value::Object(map));
        }
        json!({"text_offset": offsets, "token_logprobs": of_tokens, "tokens": tokens, "top_logprobs": top})
    }

    fn chat_logprobs(&self, Chosen { token, logprobs }: &Chosen) -> Value {
        let one = |id: u32, logprob: f32| {
            let bytes = self.token_bytes(id);
            json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes})
        };
        let top: Vec<Value> = logprobs.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
        let mut value = one(*token, logprobs.chosen);
        value["top_logprobs"] = Value::Array(top);
        value
    }

    /// Characters of these tokens.
    pub(super) fn chars(&self, chosen: &[Chosen]) -> usize {
        chosen.iter().map(|chosen| self.token_text(chosen.token).chars().count()).sum()
    }

    fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        // There is one: it wrote the text.
        self.app.engine.tokenizer().map(|tokenizer| tokenizer.token_bytes(id)).unwrap_or_default()
    }
}

/// How many tokens were read and made.
pub(super) fn usage(choices: &Choices) -> Value {
    let (prompt, completion) = (choices.prompt_tokens, choices.completion_tokens());
    json!({"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion})
}

/// Why a text ended, in OpenAI's word, and what it ended at, as vLLM has it: a token or a text of the
/// request's own.
fn why(choice: &Choice, choices: &Choices) -> (Value, Value) {
    let options = &choices.options;
    match choice.stop {
        None => (Value::Null, Value::Null),
        Some(StopReason::StopToken(token)) if options.stop_tokens.contains(&token) => {
            (json!("stop"), json!(token))
        }
        Some(StopReason::StopText) => match &options.stop_texts[..] {
            [text] => (json!("stop"), json!(text)),
            // Which of several is not known.
            _ => (json!("stop"), Value::Null),
        },
        Some(StopReason::StopToken(_)) => (json!("stop"), Value::Null),
        Some(StopReason::MaxTokens | StopReason::ContextFull) => (json!("length"), Value::Null),
        // An answer that is cut off is no answer: it is an error before it comes here.
        Some(StopReason::Cancelled) => (Value::Null, Value::Null),
    }
}
