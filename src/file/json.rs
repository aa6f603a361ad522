//! JSON as people and Python write it: what is no JSON is called by its name.

use std::fmt::Display;

use serde::de::{DeserializeOwned, Error as _};

use super::sniff::sniff;
use crate::error::FileKind;

/// Reads JSON in UTF-8; a byte order mark before it means nothing and is passed over.
///
/// # Errors
/// What the parser says; or that the file is something else, or has a number that JSON has not
/// (Python writes `NaN` and `Infinity`), with the place.
pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(text).map_err(|error| explain(text).unwrap_or(error))
}

/// A better reason than the parser's, where there is one.
fn explain(bytes: &[u8]) -> Option<serde_json::Error> {
    let say = |reason: &dyn Display| Some(serde_json::Error::custom(reason));
    match (sniff(bytes), bytes) {
        (Some(FileKind::Json) | None, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) => {
            say(&"the file is UTF-16; save it as UTF-8")
        }
        (Some(FileKind::Json) | None, _) => {
            let (word, line, column) = number_of_python(bytes)?;
            say(&format!(
                "{word} at line {line} column {column}: JSON has no such number; write one, or null"
            ))
        }
        (Some(kind), _) => say(&format!("the file is {kind}")),
    }
}

/// The first `NaN`, `Infinity` or `-Infinity` outside a string, with line and column.
fn number_of_python(bytes: &[u8]) -> Option<(&'static str, usize, usize)> {
    let (mut quoted, mut escaped, mut line, mut start) = (false, false, 1, 0);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'\n' => (line, start) = (line + 1, at + 1),
            _ if quoted => {}
            _ => {
                let word = ["NaN", "Infinity", "-Infinity"]
                    .into_iter()
                    .find(|w| bytes[at..].starts_with(w.as_bytes()));
                if let Some(word) = word {
                    return Some((word, line, at - start + 1));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn byte_order_mark_is_passed_over_and_pythons_numbers_are_named() {
        assert_eq!(from_json::<Value>(b"\xef\xbb\xbf{\"a\": 1}").unwrap(), json!({"a": 1}));
        for (text, expected) in [
            (&b"{\"NaN\": 1,\n \"a\\\"\": NaN}"[..], "NaN at line 2 column 9"),
            (b"[Infinity]", "Infinity at line 1 column 2"),
            (b"[1, -Infinity]", "-Infinity at line 1 column 5"),
            (b"\xff\xfe{\0}\0", "UTF-16"),
            (b"<html>", "a web page"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
            (b"", "empty"),
            (b"{\"a\" 1}", "expected `:` at line 1"),
        ] {
            let error = from_json::<Value>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
