//! One text in the making: its tokens, its keys and values, its sampler, the node version it
//! belongs to.
//!
//! **Invariant:** keys and values are only ever used with weights that stand at the version they
//! were computed at.

use super::replica::{Kv, Replica};
use super::script::Script;
use super::shared::Shared;
use crate::model::{GenerateOptions, Logprobs, StopReason};
use crate::nodes::NodeVersion;
use crate::{Error, Result};

/// A text that is generated step by step, at the node version where it was begun. The weights may
/// move elsewhere between two steps; when they are back it goes on without computing anything
/// again.
pub struct Sequence {
    kv: Kv,
    script: Script,
}

/// What one step of a [`Sequence`] made.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The token that was chosen; none where the text has ended.
    pub token: Option<u32>,
    /// Text that is complete by now and cannot become part of a stop text, perhaps none.
    pub text: String,
    /// Of the token, if [`GenerateOptions::logprobs`] asked for them.
    pub logprobs: Option<Logprobs>,
    /// Why there is no further step, if there is none.
    pub stop: Option<StopReason>,
}

impl Sequence {
    /// Begins behind the tokens of a prompt.
    pub(super) fn new(
        replica: &dyn Replica,
        ids: &[u32],
        options: &GenerateOptions,
    ) -> Result<Self> {
        let shared = replica.shared();
        replica.check_usable()?;
        let kv = replica.kv(ids.len().saturating_add(options.max_tokens))?;
        let script = Script::new(shared, ids, options, kv.capacity)?;
        Ok(Self { kv, script })
    }

    /// The version at which it goes on.
    pub fn version(&self) -> &NodeVersion {
        self.kv.version()
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.script.decoding.prompt_tokens()
    }

    /// The new tokens so far.
    pub fn token_ids(&self) -> &[u32] {
        self.script.decoding.token_ids()
    }

    /// Tokens that were run through the model so far; more than there are if some had to be run
    /// again.
    pub fn run_tokens(&self) -> usize {
        self.script.decoding.run_tokens()
    }

    /// Why there is no further step, if there is none.
    pub fn stop(&self) -> Option<StopReason> {
        self.script.decoding.stop()
    }

    /// Ends it: there is no further step.
    pub fn cancel(&mut self) {
        self.script.decoding.end(StopReason::Cancelled);
    }

    /// Chooses the next token.
    pub(super) fn step(&mut self, replica: &dyn Replica) -> Result<Step> {
        let shared: &Shared = replica.shared();
        let tokenizer = shared.tokenizer()?;
        if self.kv.version() != replica.current() {
            let [sequence, weights] =
                [self.version(), replica.current()].map(|version| version.name().to_owned());
            return Err(Error::SequenceElsewhere { sequence, weights });
        }
        let token = match self.script.decoding.stop() {
            Some(_) => None,
            None => self.run(replica)?,
        };
        self.script.step(tokenizer, token)
    }

    /// Runs what is to be run. If that breaks off, or the device was lost meanwhile, all is run
    /// again by the next step.
    fn run(&mut self, replica: &dyn Replica) -> Result<Option<u32>> {
        if matches!(replica.forward(&mut self.kv), Err(Error::CacheOwner { .. })) {
            self.kv = replica.kv(self.kv.capacity)?;
            self.script.decoding.restart();
        }
        let mut forward = replica.forward(&mut self.kv)?;
        let chosen = self.script.decoding.step(&mut *forward);
        drop(forward);
        if chosen.is_err() {
            self.script.decoding.restart();
            self.kv.clear();
        }
        chosen
    }
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (prompt, new) = (self.prompt_tokens(), self.token_ids().len());
        f.debug_struct("Sequence")
            .field("version", self.version())
            .field("prompt", &prompt)
            .field("new", &new)
            .finish()
    }
}
