//! `pleach score`: the likeliest next tokens after a prompt, and all logits to a file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use pleach::runtime::{NextToken, Prompt};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use super::Console;
use super::model::{Arrived, Model, read_text};

/// List the likeliest next tokens after a prompt at a node
#[derive(Args)]
pub(crate) struct Score {
    #[command(flatten)]
    prompt: PromptText,
    /// How many tokens to list
    #[arg(long, value_name = "K", default_value_t = 10)]
    top: usize,
    /// Write the logits of all tokens to this file: tensor `logits`, f32, one for every token
    #[arg(long, value_name = "FILE.safetensors")]
    logits: Option<PathBuf>,
    #[command(flatten)]
    model: Model,
    /// Node to stand at
    #[arg(long, default_value = "/", help_heading = "Model")]
    node: String,
}

/// A prompt, given or in a file.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct PromptText {
    /// The prompt
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the prompt, taken as it is; - is standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
}

impl PromptText {
    fn read(&self) -> anyhow::Result<String> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Ok(text.clone()),
            (None, path) => read_text(path.as_deref().expect("clap wants one of both")),
        }
    }
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    node: String,
    fingerprint: String,
    prompt_ids: Vec<u32>,
    top: Vec<NextToken>,
}

impl Score {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let prompt = Prompt::Text(self.prompt.read()?);
        let Arrived { runtime, .. } = self.model.arrive(&self.node, console)?;
        let scores = runtime.score(&prompt)?;
        let top = runtime.likeliest(&scores, self.top)?;
        if let Some(path) = &self.logits {
            write_logits(path, &scores.logits)?;
        }
        let fingerprint = runtime.fingerprint()?.to_hex().to_string();
        let answer = Answer { node: scores.node, fingerprint, prompt_ids: scores.prompt_ids, top };
        console.answer(&answer, || {
            let line = |t: &NextToken| {
                format!("{:9.4}  {:8.2}  {:6}  {:?}\n", t.logprob, percent(t), t.id, t.text)
            };
            let lines: String = answer.top.iter().map(line).collect();
            format!("  logprob         %      id  text\n{lines}")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn percent(token: &NextToken) -> f32 {
    token.logprob.exp() * 100.0
}

fn write_logits(path: &Path, logits: &[f32]) -> anyhow::Result<()> {
    let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let tensor = TensorView::new(Dtype::F32, vec![logits.len()], &bytes).context("logits")?;
    let file =
        safetensors::serialize([("logits", tensor)], None::<HashMap<_, _>>).context("logits")?;
    std::fs::write(path, file).with_context(|| path.display().to_string())
}
