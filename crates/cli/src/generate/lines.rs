//! A file of requests: one JSON object a line.
//!
//! **Invariant:** a key that is not known, or given twice, is refused: nothing asked for is passed
//! over. What a line does not say is as the options of the command say.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pleach::model::GenerateOptions;
use pleach::model::chat::Message;
use pleach::runtime::Prompt;
use pleach::{Merge, Request};
use serde::Deserialize;
use serde_json::Value;

use super::requests::Asked;
use super::serving::MergeAt;
use super::{Generate, TextOptions};
use crate::model::input_name;

/// A line as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<Value>,
    node: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Turn>>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    seed: Option<u64>,
    stop: Option<Value>,
    ignore_eos: Option<bool>,
    merge: Option<MergeAt>,
    deadline_ms: Option<u64>,
}

/// A message as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: String,
    content: String,
}

/// Reads all lines but the blank ones. Nothing is looked up yet.
pub(super) fn read(path: &Path, bytes: &[u8], command: &Generate) -> anyhow::Result<Vec<Asked>> {
    let mut all = Vec::new();
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let whence = format!("{}, line {number}", input_name(path));
        let asked = asked(line, number, command).with_context(|| whence.clone())?;
        all.push(Asked { whence: Some(whence), ..asked });
    }
    ensure!(
        !all.is_empty(),
        "{} holds no request; write one JSON object a line, such as {{\"prompt\": \"Hello\"}}",
        input_name(path)
    );
    Ok(all)
}

fn asked(line: &[u8], number: u64, command: &Generate) -> anyhow::Result<Asked> {
    let line: Line = serde_json::from_slice(line).map_err(|error| in_line(&error))?;
    let id = match line.id {
        None => number.into(),
        Some(id @ Value::String(_)) => id,
        Some(Value::Number(id)) if id.is_u64() || id.is_i64() => id.into(),
        Some(other) => bail!("id is {other}, expected a text or a whole number of 64 bits"),
    };
    let messages = line.messages.map(|turns| {
        turns.into_iter().map(|Turn { role, content }| Message { role, content }).collect()
    });
    let prompt = prompt(line.prompt, messages, &command.options)?;
    let mut options = command.options.generate_options();
    if let Some(stop) = line.stop {
        options.stop_texts = stop_texts(stop)?;
    }
    let sampling = &mut options.sampling;
    sampling.temperature = line.temperature.unwrap_or(sampling.temperature);
    sampling.top_k = line.top_k.or(sampling.top_k);
    sampling.top_p = line.top_p.or(sampling.top_p);
    sampling.min_p = line.min_p.or(sampling.min_p);
    sampling.repeat_penalty = line.repeat_penalty.unwrap_or(sampling.repeat_penalty);
    sampling.seed = line.seed.unwrap_or(sampling.seed);
    let options = GenerateOptions {
        max_tokens: line.max_tokens.unwrap_or(options.max_tokens),
        ignore_eos: line.ignore_eos.unwrap_or(options.ignore_eos),
        ..options
    };
    let node = line.node.unwrap_or_else(|| command.node().to_owned());
    let merge = line.merge.map_or_else(|| command.serving.merge(), Merge::from);
    let deadline =
        line.deadline_ms.map(Duration::from_millis).or_else(|| command.serving.deadline());
    let request = Request { merge, deadline, options, ..Request::new(node, prompt) };
    Ok(Asked { id, request, whence: None })
}

fn prompt(
    text: Option<String>,
    messages: Option<Vec<Message>>,
    options: &TextOptions,
) -> anyhow::Result<Prompt> {
    match (text, messages) {
        (Some(text), None) => Ok(options.prompt(text)),
        (None, Some(messages)) => {
            ensure!(!messages.is_empty(), "messages is empty, expected one message at least");
            Ok(options.conversation(messages))
        }
        (None, None) => bail!("there is neither prompt nor messages, expected one of both"),
        (Some(_), Some(_)) => bail!("there are prompt and messages, expected one of both"),
    }
}

fn stop_texts(stop: Value) -> anyhow::Result<Vec<String>> {
    let stop = if stop.is_string() { Value::Array(vec![stop]) } else { stop };
    serde_json::from_value(stop).ok().context("stop is neither a text nor a list of texts")
}

/// The error with its column alone: as for the JSON, there is but one line.
fn in_line(error: &serde_json::Error) -> anyhow::Error {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(text) => anyhow::anyhow!("column {}: {text}", error.column()),
        None => anyhow::anyhow!("{text}"),
    }
}
