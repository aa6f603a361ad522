//! Texts that end a generation, wherever the tokens lie.
//!
//! **Invariant:** what was given out is never part of a stop text: what may become one is held back
//! until it cannot. Where a text is cut does not depend on how it was split into pieces.

/// Looks for stop texts in a text that comes in pieces.
pub struct StopTexts {
    stops: Vec<String>,
    /// Not given out yet: it may be the start of a stop text.
    held: String,
    done: bool,
}

impl StopTexts {
    /// Looks for `stops`; none of them is empty.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.to_vec();
        Self { stops, held: String::new(), done: false }
    }

    /// Whether a stop text was complete: the stop text and all behind it is left out.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes the next piece and returns the text that is no part of a stop text.
    pub fn push(&mut self, piece: &str) -> String {
        if self.done {
            return String::new();
        }
        self.held.push_str(piece);
        // The one that is complete first counts; of those that end together, the longest.
        let complete = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        if let Some((_, start)) = complete.min() {
            self.done = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let given = self.held.len() - self.may_start();
        let rest = self.held.split_off(given);
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns what was held back and became no stop text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of what is held that a stop text starts with.
    fn may_start(&self) -> usize {
        let lengths = self.stops.iter().map(|stop| {
            let starts = stop
                .char_indices()
                .map(|(at, _)| at)
                .filter(|at| self.held.ends_with(&stop[..*at]));
            starts.max().unwrap_or(0)
        });
        lengths.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given out, whether it stopped, and what was given before the last piece.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut scan = StopTexts::new(&stops);
        let mut text: String = pieces.iter().map(|piece| scan.push(piece)).collect();
        let done = scan.is_done();
        text += &scan.finish();
        (text, done)
    }

    #[test]
    fn text_before_the_stop_is_given_and_nothing_after() {
        let cut = |text: &str| (text.to_owned(), true);
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), cut("a "));
        assert_eq!(run(&["END"], &["a ENDb"]), cut("a "));
        assert_eq!(run(&["\n\n"], &["a\n", "b\n", "\nc", "d"]), cut("a\nb"));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), cut("caf"));
        assert_eq!(run(&["abab"], &["a", "b", "a", "a", "b", "a", "b"]), cut("aba"));
        assert_eq!(run(&["END"], &["a EN", "E"]), ("a ENE".to_owned(), false));
        assert_eq!(run(&["END"], &["EN"]), ("EN".to_owned(), false));
        assert_eq!(run(&[], &["a", "b"]), ("ab".to_owned(), false));
    }

    #[test]
    fn cut_does_not_depend_on_the_pieces() {
        let (text, stops) = ("xabcdéabcd", ["bc", "abcd", "éa"]);
        for stops in [&stops[..], &stops[1..], &stops[2..]] {
            let whole = run(stops, &[text]);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(run(stops, &chars.iter().map(String::as_str).collect::<Vec<_>>()), whole);
            for (at, _) in text.char_indices() {
                assert_eq!(run(stops, &[&text[..at], &text[at..]]), whole);
            }
        }
        assert_eq!(run(&stops, &[text]).0, "xa");
    }

    #[test]
    fn only_what_may_become_a_stop_is_held_back() {
        let stops = ["END".to_owned()];
        let mut scan = StopTexts::new(&stops);
        assert_eq!(
            ["a", "bE", "N", "N", "E"].map(|piece| scan.push(piece)),
            ["a", "b", "", "ENN", ""]
        );
        assert_eq!(scan.finish(), "E");
    }
}
