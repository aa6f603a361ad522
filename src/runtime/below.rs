//! A node's model while the weights stay above it: what is not merged is applied in factored form.

use super::{NodeVersion, Replica, Runtime, Scores, StepRow};
use crate::Result;
use crate::model::{PREFILL, Pick, Picked, check_prompt};
use crate::runtime::Prompt;

impl Runtime {
    /// Logits of the position after `prompt` at `node`, while the weights stay where they stand: at
    /// the node or above it. They are those of [`Self::score`] at the node up to rounding: a switch
    /// rounds each integer of a delta, this does not.
    ///
    /// # Errors
    /// As [`Self::switch_to`]; [`Error::SequenceElsewhere`](crate::Error::SequenceElsewhere) where the
    /// weights stand elsewhere than at the node or above.
    pub fn score_below(&mut self, prompt: &Prompt, node: &str) -> Result<Scores> {
        let prompt_ids = self.encode(prompt)?;
        let version = self.shared.nodes.resolve(node)?;
        self.replica.hold(&version)?;
        let logits = logits(&*self.replica, &version, &prompt_ids);
        self.replica.release(&version);
        Ok(Scores { node: version.name().to_owned(), prompt_ids, logits: logits? })
    }
}

fn logits(replica: &dyn Replica, version: &NodeVersion, prompt: &[u32]) -> Result<Vec<f32>> {
    check_prompt(prompt, replica.shared().base.config().max_position_embeddings)?;
    let mut pool = replica.pool_for(prompt.len(), 1)?;
    let table = pool.pages().open(replica.owner(version));
    let mut parts = prompt.chunks(PREFILL).peekable();
    while let Some(tokens) = parts.next() {
        let pick = parts.peek().is_none().then_some(Pick::Logits);
        let row = StepRow { version, table, tokens, pick };
        if let Some(Picked::Logits(logits)) = replica.step(&mut pool, &[row])?.remove(0)? {
            return Ok(logits);
        }
    }
    unreachable!("the last part of a prompt that is not empty has its logits")
}
