//! Text of files on its way to a terminal: what would steer it, or cannot be seen, is written out.
//!
//! **Invariant:** JSON stays the same JSON: `\u001b` is how it writes the character, too, and
//! outside its strings there is none.

use std::borrow::Cow;

/// Writes control characters (but line feeds and tabs), marks of direction and invisible characters
/// as `\u001b`.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    written_out(text, |c| is_control(c) || is_invisible(c))
}

/// Writes out control characters (but line feeds and tabs) alone: joiners and marks of direction
/// belong to many scripts, and to what a model says in them.
pub(super) fn spoken(text: &str) -> Cow<'_, str> {
    written_out(text, is_control)
}

/// The lines after the first are moved in, so that none looks as if it had been said by itself.
pub(super) fn moved_in(text: &str) -> String {
    let mut lines = text.trim_end_matches('\n').split('\n');
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |text, line| match line.starts_with(' ') || line.is_empty() {
        true => format!("{text}\n{line}"),
        false => format!("{text}\n  {line}"),
    })
}

fn written_out(text: &str, hide: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&hide) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut units = [0; 2];
    for c in text.chars() {
        match hide(c) {
            true => {
                out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")))
            }
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn is_control(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

/// Marks of direction, ends of lines that are none, and what has no width.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_written_out_and_the_rest_is_left() {
        let hostile =
            "a\u{1b}[2J\r\u{7}\u{9b}31m\u{7f}\u{202e}b\u{2028}\u{feff}\u{200d}\u{e0041}\tc\n";
        assert_eq!(
            escaped(hostile),
            "a\\u001b[2J\\u000d\\u0007\\u009b31m\\u007f\\u202eb\\u2028\\ufeff\\u200d\\udb40\\udc41\tc\n"
        );
        for plain in ["", "DÉFINIR — “x” \\ 你好\n", "👍🏽 e\u{301}"] {
            assert!(matches!(escaped(plain), Cow::Borrowed(text) if text == plain), "{plain}");
        }
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let value = serde_json::json!({ "\u{9b}\u{7f}": "\u{1b}\u{2028}\u{e0041}\n\\u001b" });
        let text = value.to_string();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped(&text)).unwrap(), value);
        assert!(!escaped(&text).chars().any(|c| is_control(c) || is_invisible(c)));
    }

    #[test]
    fn what_a_model_says_keeps_its_joiners_and_loses_its_commands() {
        let family = "👨\u{200d}👩\u{200d}👧 \u{200f}می\u{200c}خواهم\n\tx";
        assert!(matches!(spoken(family), Cow::Borrowed(text) if text == family));
        assert_eq!(
            spoken("\u{1b}]0;owned\u{7}\r\u{9b}2J"),
            "\\u001b]0;owned\\u0007\\u000d\\u009b2J"
        );
    }

    #[test]
    fn later_lines_are_moved_in() {
        assert_eq!(moved_in("a\nerror: b\n  c\n"), "a\n  error: b\n  c");
        assert_eq!(moved_in("a"), "a");
    }
}
