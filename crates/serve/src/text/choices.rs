//! The answers to one request, as they come.
//!
//! **Invariant:** all are computed by one version of the node, or the request fails.
//! **Invariant:** whoever drops them cancels what has not ended.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::http::StatusCode;
use pleach::model::Logprobs;
use pleach::{Answer, Error, NodeVersion, Prompt, Request, Step, StopReason};

use super::params::{Asked, Kind};
use crate::access::Caller;
use crate::app::App;
use crate::error::ApiError;
use crate::flights::Flight;
use crate::log::Entry;

/// What is handed over to the engine.
pub(super) struct Submission {
    pub(super) asked: Asked,
    pub(super) caller: Caller,
    pub(super) entry: Entry,
    /// When the request came.
    pub(super) asked_at: Instant,
}

/// A token that was chosen, and what was likely in its place.
pub(super) struct Chosen {
    pub(super) token: u32,
    pub(super) logprobs: Logprobs,
}

/// One answer.
pub(super) struct Choice {
    answer: Answer,
    pub(super) flight: Flight,
    /// What stands before its text, where that is asked for.
    pub(super) echo: String,
    pub(super) text: String,
    /// Its tokens, where logprobs are wanted.
    pub(super) chosen: Vec<Chosen>,
    /// Characters of those that a stream has sent before these.
    pub(super) offset: usize,
    pub(super) stop: Option<StopReason>,
}

/// All answers to one request.
pub(super) struct Choices {
    pub(super) list: Vec<Choice>,
    /// The one that is looked at first, so that each has its turn.
    turn: usize,
    /// Of each prompt once.
    pub(super) prompt_tokens: usize,
    /// What the client calls the model.
    pub(super) model: String,
    /// What its node was when the request came.
    asked_version: NodeVersion,
    pub(super) options: pleach::GenerateOptions,
    caller: Caller,
    entry: Entry,
}

/// A step of one of the answers.
pub(super) type Stepped = (usize, Step);

impl Choices {
    /// Hands a request over to the engine.
    pub(super) fn submit(app: &Arc<App>, submission: Submission) -> Result<Self, ApiError> {
        let Submission { asked, caller, entry, asked_at } = submission;
        let model = asked.model.clone().unwrap_or_else(|| app.base_name.clone());
        let version = app.version(&caller, &model)?;
        let vocab_size = app.engine.base().config().vocab_size;
        let bias = &asked.options.sampling.logit_bias;
        if let Some((token, _)) = bias.iter().find(|(token, _)| *token as usize >= vocab_size) {
            let message =
                format!("logit_bias: token {token} is outside the vocabulary of {vocab_size}");
            return Err(ApiError::bad("logit_bias", message));
        }
        let of_engine = |error: Error| app.of_lookup(&caller, &model, error);
        let most = app.bounds.request_wait;
        let deadline = asked.deadline.map_or(most, |own| own.min(most));
        let mut list = Vec::new();
        let mut prompt_tokens = 0;
        for prompt in &asked.prompts {
            let ids = app.engine.encode(prompt).map_err(ApiError::of_text)?;
            let max_tokens = most_tokens(&asked, ids.len(), app.context())?
                .unwrap_or_else(|| app.room_behind(ids.len()));
            prompt_tokens += ids.len();
            let echo = match prompt {
                _ if !asked.echo => String::new(),
                Prompt::Text(text) => text.clone(),
                _ => {
                    let tokenizer = app.engine.tokenizer().map_err(ApiError::of_text)?;
                    tokenizer.decode(&ids).map_err(ApiError::of_text)?
                }
            };
            for _ in 0..asked.n {
                let mut options = asked.options.clone();
                options.max_tokens = max_tokens;
                let seed = options.sampling.seed;
                options.sampling.seed = seed.wrapping_add(list.len() as u64);
                let request = Request {
                    options,
                    merge: asked.merge,
                    deadline: Some(deadline),
                    salt: [caller.salt(), asked.salt.as_bytes()].concat(),
                    ..Request::new(version.name(), Prompt::Tokens(ids.clone()))
                };
                let answer = app.engine.submit_at(version.clone(), request).map_err(of_engine)?;
                let flight = Flight::new(app, &caller, version.name(), &answer, asked_at);
                let (text, chosen, stop) = (String::new(), Vec::new(), None);
                list.push(Choice {
                    answer,
                    flight,
                    echo: echo.clone(),
                    text,
                    chosen,
                    offset: 0,
                    stop,
                });
            }
        }
        let name = version.name().to_owned();
        entry.note(|line| {
            (line.node, line.generation) = (Some(name), version.generation());
            line.prompt_tokens = prompt_tokens;
        });
        Ok(Self {
            list,
            turn: 0,
            prompt_tokens,
            model,
            asked_version: version,
            options: asked.options,
            caller,
            entry,
        })
    }

    /// The version that computes them, once one has made a step. One that is to make no token ends at
    /// once and is computed by none: then what the node was when the request came.
    pub(super) fn version(&self) -> &NodeVersion {
        let version = self.list.first().and_then(|first| first.answer.progress().version());
        version.unwrap_or(&self.asked_version)
    }

    /// New tokens of all.
    pub(super) fn completion_tokens(&self) -> usize {
        self.list.iter().map(|choice| choice.flight.tokens).sum()
    }

    /// The next step of any that has not ended; `None` behind the last.
    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(usize, pleach::Result<Step>)>> {
        let mut is_over = true;
        let (turn, count) = (self.turn, self.list.len());
        for i in (0..count).map(|i| (turn + i) % count) {
            match self.list[i].answer.poll_step(context) {
                Poll::Ready(Some(step)) => {
                    self.turn = i + 1;
                    return Poll::Ready(Some((i, step)));
                }
                Poll::Ready(None) => {}
                Poll::Pending => is_over = false,
            }
        }
        if is_over { Poll::Ready(None) } else { Poll::Pending }
    }

    /// The same, waited for and noted.
    pub(super) async fn next(&mut self, app: &App) -> Result<Option<Stepped>, ApiError> {
        let Some((i, step)) = poll_fn(|context| self.poll_next(context)).await else {
            return Ok(None);
        };
        let choice = &mut self.list[i];
        choice.flight.note(&step);
        let step = step.map_err(|error| app.of_lookup(&self.caller, &self.model, error))?;
        if step.stop == Some(StopReason::Cancelled) {
            return Err(ApiError::stopping());
        }
        let version = self.list[i].answer.progress().version();
        if version.is_some_and(|version| version != self.version()) {
            let message = "The node was replaced while the request waited; ask again";
            return Err(ApiError::new(StatusCode::CONFLICT, message).param("model"));
        }
        Ok(Some((i, step)))
    }

    /// The first step.
    pub(super) async fn first_step(&mut self, app: &App) -> Result<Stepped, ApiError> {
        let first = self.next(app).await?;
        first.ok_or_else(|| ApiError::failed("an answer without a step".to_owned()))
    }

    /// Adds a step to its answer. Returns the text that came with it.
    pub(super) fn take(&mut self, (i, step): Stepped) -> String {
        let choice = &mut self.list[i];
        choice.stop = step.stop;
        if let (Some(token), Some(logprobs)) = (step.token, step.logprobs) {
            choice.chosen.push(Chosen { token, logprobs });
        }
        step.text
    }

    /// Waits for all of them behind the first step.
    pub(super) async fn collect(&mut self, app: &App, first: Stepped) -> Result<(), ApiError> {
        let mut next = Some(first);
        while let Some((i, step)) = next {
            let text = self.take((i, step));
            self.list[i].text += &text;
            next = self.next(app).await?;
        }
        Ok(())
    }
}

impl Drop for Choices {
    fn drop(&mut self) {
        let tokens = self.completion_tokens();
        let first = self.list.iter().filter_map(|choice| choice.flight.first_token_ms());
        let first = first.min_by(f64::total_cmp);
        self.entry.note(|line| (line.completion_tokens, line.first_token_ms) = (tokens, first));
    }
}

impl App {
    /// New tokens that the context and the memory for keys and values have room for behind a prompt.
    /// The last one is chosen and not run.
    fn room_behind(&self, prompt: usize) -> usize {
        (self.context().min(self.engine.capacity()) + 1).saturating_sub(prompt).max(1)
    }
}

/// Most new tokens behind a prompt, if the client says; refused where they do not fit the context.
fn most_tokens(asked: &Asked, prompt: usize, context: usize) -> Result<Option<usize>, ApiError> {
    let is_long = |most: &usize| prompt <= context && prompt.saturating_add(*most) > context;
    let told = asked.max_tokens.filter(is_long);
    if prompt > context || told.is_some() {
        let wanted = told.map_or_else(String::new, |most| {
            format!(" and {} asks for {most} more", asked.limit_name)
        });
        let param = match asked.kind {
            _ if prompt <= context => asked.limit_name,
            Kind::Completion => "prompt",
            Kind::Chat => "messages",
        };
        let message = format!(
            "This model's maximum context length is {context} tokens; the prompt has {prompt}{wanted}. Shorten one of them"
        );
        return Err(ApiError::bad(param, message).code("context_length_exceeded"));
    }
    Ok(asked.max_tokens)
}
