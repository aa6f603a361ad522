//! Decoding token by token.
//!
//! **Invariant:** text is cut only between characters, and all pieces together are the text that the tokens have behind the prompt.

use super::Tokenizer;
use crate::Result;

const UNFINISHED: char = '\u{fffd}';

/// Decodes token by token. A token may end within a character, and a decoder may treat a text's first token specially,
/// so new text is what the last tokens together say beyond what was given out already.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Start of the tokens that are decoded again for context.
    context: usize,
    /// Tokens whose text was given out.
    emitted: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), context: 0, emitted: 0 }
    }

    /// Goes on behind `prompt`: a decoder that leaves out a text's first space does not leave out the first one here.
    pub(super) fn after(mut self, prompt: &[u32]) -> Result<Self> {
        let context = prompt.last().copied().as_slice().to_vec();
        // Part of a character is no context: with what follows it would become another text.
        if !self.tokenizer.decode(&context)?.ends_with(UNFINISHED) {
            self.emitted = context.len();
            self.ids = context;
        }
        Ok(self)
    }

    /// Takes the next token and gives the text that is complete by now, perhaps none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) when the tokenizer refuses.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        // The replacement character at the end: an unfinished character, or a part of no character at all.
        if text.is_empty() || text.ends_with(UNFINISHED) {
            return Ok(String::new());
        }
        self.context = self.emitted;
        self.emitted = self.ids.len();
        Ok(text)
    }

    /// Gives what is left, an unfinished character as the replacement character.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) when the tokenizer refuses.
    pub fn finish(self) -> Result<String> {
        self.pending()
    }

    fn pending(&self) -> Result<String> {
        let given = self.tokenizer.decode(&self.ids[self.context..self.emitted])?;
        let all = self.tokenizer.decode(&self.ids[self.context..])?;
        match all.strip_prefix(&given) {
            Some(new) => Ok(new.to_owned()),
            // A byte that is no character's spoils those before it in its run.
            None => self.tokenizer.decode(&self.ids[self.emitted..]),
        }
    }
}
