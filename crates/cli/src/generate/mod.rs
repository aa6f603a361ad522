//! `pleach generate`: continues a prompt at a node, streaming; or many at once, each at its own.

mod lines;
mod requests;
mod serving;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pleach::model::chat::Message;
use pleach::model::{GenerateOptions, Sampling, StopReason};
use pleach::runtime::Prompt;
use serde::Serialize;

use super::Console;
use super::model::{Arrived, Model, read_text};
use requests::Requests;
use serving::Serving;
#[cfg(feature = "serve")]
pub(crate) use serving::engine_options;

/// Continue a prompt at a node, the text streaming to stdout; or many prompts at once, each at its
/// own node
#[derive(Args)]
#[command(override_usage = "\
pleach generate [OPTIONS] --base <BASE> <--prompt <TEXT>|--prompt-file <FILE>>
       pleach generate [OPTIONS] --base <BASE> --requests <FILE.jsonl>")]
#[command(after_help = "\
Several --prompt and --node are pairs in order. One --node is for all prompts, one prompt for all \
nodes. All are served at once on one copy of the weights; each answer is printed when it is \
complete, under its number and node. With --json each is one line: id, node, prompt_tokens, \
token_ids, text, stop, stop_token, prefill_ms (from the start, waiting included), decode_ms; or id, \
node, error. Exit status 1 if any failed.

--requests takes one JSON object a line: id, node, prompt or messages \
([{\"role\": …, \"content\": …}]), max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, \
seed, stop (a text or a list), ignore_eos, merge, deadline_ms. What a line does not say is as the \
options say; its id is then the number of the line. All lines are checked before anything runs.

--merge leaf gives the tokens that each has alone; leaf, parent and root give the same whatever the \
company (on a GPU, but where rounding decides); with auto the last bits of logits depend on it.

On a terminal the text's control characters but line feeds and tabs are written out (\\u001b); a \
pipe or file gets the bytes.")]
pub(crate) struct Generate {
    #[command(flatten)]
    prompts: Prompts,
    #[command(flatten)]
    options: TextOptions,
    #[command(flatten)]
    serving: Serving,
    #[command(flatten)]
    model: Model,
    /// Node to stand at [default: /]; give it several times for several
    #[arg(long = "node", value_name = "NODE", help_heading = "Model")]
    nodes: Vec<String>,
}

/// Where the prompts are.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Prompts {
    /// The prompt; give it several times for several
    #[arg(short, long = "prompt", value_name = "TEXT", allow_hyphen_values = true)]
    prompts: Vec<String>,
    /// A file with the prompt, taken as it is; - is standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A file with a request a line, see below; - is standard input
    #[arg(long, value_name = "FILE.jsonl")]
    requests: Option<PathBuf>,
}

/// What to make of a prompt.
#[derive(Args)]
struct TextOptions {
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Choose among this many likeliest tokens only; 0 is all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together reach this probability only; 1 is all
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Choose among tokens at least this share as likely as the likeliest only; 0 is all
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divide the logits of tokens that were there before by this (multiply those below 0); 1 is
    /// off
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// End at this text, which is not printed; give it several times for several
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Seed of the random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Take the prompt as a user's message, written out by the model's chat template
    #[arg(long)]
    chat: bool,
    /// A system message before it
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,
    /// Which of the model's chat templates, where it has several [default: default]
    #[arg(long, value_name = "NAME", requires = "chat")]
    template: Option<String>,
    /// Go on after tokens that end a text
    #[arg(long)]
    ignore_eos: bool,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    node: String,
    fingerprint: String,
    prompt_tokens: usize,
    token_ids: Vec<u32>,
    text: String,
    /// `stop_token`, `stop_text`, `max_tokens`, `context_full` or `cancelled`.
    stop: &'static str,
    stop_token: Option<u32>,
    load_ms: f64,
    switch_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
}

impl Generate {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        if let Some(path) = &self.prompts.requests {
            let requests = Requests::from_lines(path, &self)?;
            return self.serving.serve(requests, &self.model, console);
        }
        let prompts = match &self.prompts.prompt_file {
            Some(path) => vec![read_text(path)?],
            None => self.prompts.prompts.clone(),
        };
        if prompts.len() > 1 || self.nodes.len() > 1 {
            let requests = Requests::from_pairs(prompts, &self)?;
            return self.serving.serve(requests, &self.model, console);
        }
        self.serving.refuse_for_one()?;
        let prompt = prompts.into_iter().next().unwrap_or_default();
        self.run_one(&self.options.prompt(prompt), console)
    }

    /// Node of a single prompt.
    fn node(&self) -> &str {
        self.nodes.first().map_or("/", String::as_str)
    }

    fn run_one(&self, prompt: &Prompt, console: &Console) -> anyhow::Result<ExitCode> {
        let options = self.options.generate_options();
        let Arrived { runtime, load_ms, switch } = self.model.arrive(self.node(), console)?;
        let mut printed = Ok(());
        let generation = runtime.generate(prompt, &options, |piece| {
            if !console.json {
                printed = console.say(piece);
            }
            // Nobody reads any more: a pipe that was closed.
            if printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        printed?;
        if !console.json {
            console.print("\n")?;
            console.note(&format!(
                "{}: loaded in {load_ms:.0} ms, switched in {:.1} ms; {} prompt tokens in {:.0} ms, {} new ones in {:.0} ms",
                generation.node,
                switch.total_ms,
                generation.prompt_tokens,
                generation.prefill_ms,
                generation.token_ids.len(),
                generation.decode_ms
            ));
            return Ok(ExitCode::SUCCESS);
        }
        let (stop, stop_token) = stop_fields(generation.stop);
        let answer = Answer {
            node: generation.node,
            fingerprint: runtime.fingerprint()?.to_hex().to_string(),
            prompt_tokens: generation.prompt_tokens,
            token_ids: generation.token_ids,
            text: generation.text,
            stop,
            stop_token,
            load_ms,
            switch_ms: switch.total_ms,
            prefill_ms: generation.prefill_ms,
            decode_ms: generation.decode_ms,
        };
        console.answer(&answer, String::new)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl TextOptions {
    fn generate_options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens,
            stop_texts: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repeat_penalty: self.repeat_penalty,
                seed: self.seed,
                ..Sampling::default()
            },
            ..GenerateOptions::default()
        }
    }

    /// The prompt that a text is: itself, or a user's message.
    fn prompt(&self, text: String) -> Prompt {
        if !self.chat {
            return Prompt::Text(text);
        }
        self.conversation(vec![Message { role: "user".to_owned(), content: text }])
    }

    /// A conversation, written out by the template asked for. One without a system message gets that
    /// of the options.
    fn conversation(&self, mut messages: Vec<Message>) -> Prompt {
        if let Some(content) = &self.system
            && messages.first().is_none_or(|first| first.role != "system")
        {
            messages.insert(0, Message { role: "system".to_owned(), content: content.clone() });
        }
        match self.template.clone() {
            Some(template) => Prompt::NamedChat { template, messages },
            None => Prompt::Chat(messages),
        }
    }
}

/// Why a text ended, as the JSON has it, and the token that ended it.
fn stop_fields(stop: StopReason) -> (&'static str, Option<u32>) {
    match stop {
        StopReason::StopToken(token) => ("stop_token", Some(token)),
        StopReason::StopText => ("stop_text", None),
        StopReason::MaxTokens => ("max_tokens", None),
        StopReason::ContextFull => ("context_full", None),
        StopReason::Cancelled => ("cancelled", None),
    }
}
