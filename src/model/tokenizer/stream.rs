//! Decoding token by token.
//!
//! **Invariant:** text is cut only between characters, and all pieces together are the text that
//! the tokens have behind the prompt.

use super::Tokenizer;
use crate::Result;

const UNFINISHED: char = '\u{fffd}';

/// Decodes token by token. A token may end within a character, and a decoder may treat a text's
/// first token specially, so new text is what the last tokens together say beyond what was given
/// out already.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    state: StreamState,
}

/// How far a text is decoded: a stream without its tokenizer.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamState {
    ids: Vec<u32>,
    /// Start of the tokens that are decoded again for context.
    context: usize,
    /// Tokens whose text was given out.
    emitted: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, state: StreamState::default() }
    }

    /// Goes on behind `prompt`.
    pub(super) fn after(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self> {
        Ok(Self { tokenizer, state: StreamState::after(tokenizer, prompt)? })
    }

    /// Takes the next token and returns the text that is complete by now, perhaps none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) when the tokenizer refuses.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.state.push(self.tokenizer, id)
    }

    /// Returns what is left, an unfinished character as the replacement character.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) when the tokenizer refuses.
    pub fn finish(self) -> Result<String> {
        self.state.rest(self.tokenizer)
    }
}

impl StreamState {
    /// Goes on behind `prompt`: a decoder that leaves out a text's first space does not leave out
    /// the first one here.
    pub(crate) fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<Self> {
        let context = prompt.last().copied().as_slice().to_vec();
        // Part of a character is no context: with what follows it would become another text.
        if tokenizer.decode(&context)?.ends_with(UNFINISHED) {
            return Ok(Self::default());
        }
        Ok(Self { emitted: context.len(), ids: context, context: 0 })
    }

    /// As [`TextStream::push`].
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.rest(tokenizer)?;
        // The replacement character at the end: an unfinished character, or a part of no character
        // at all.
        if text.is_empty() || text.ends_with(UNFINISHED) {
            return Ok(String::new());
        }
        self.context = self.emitted;
        self.emitted = self.ids.len();
        Ok(text)
    }

    /// The text that was not given out yet.
    pub(crate) fn rest(&self, tokenizer: &Tokenizer) -> Result<String> {
        let given = tokenizer.decode(&self.ids[self.context..self.emitted])?;
        let all = tokenizer.decode(&self.ids[self.context..])?;
        match all.strip_prefix(&given) {
            Some(new) => Ok(new.to_owned()),
            // A byte that is no character's spoils those before it in its run.
            None => tokenizer.decode(&self.ids[self.emitted..]),
        }
    }
}
