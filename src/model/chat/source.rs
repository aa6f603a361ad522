//! A template's source as Jinja reads it, spelt so that minijinja reads the same: line ends,
//! escapes in texts, and transformers' `{% generation %}`.
//!
//! **Source:** jinja2's lexer (line ends become `\n`; a text's escapes are Python's
//! `unicode-escape`), and transformers' `AssistantTracker`, whose block has a scope of its own and
//! no other effect on what is written.

use std::iter::Peekable;
use std::str::Chars;

/// Rewrites `source`, or says what is wrong with a text in it.
pub(super) fn prepared(source: &str) -> Result<String, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = tag_start(rest) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes()[1] {
            b'#' => comment(rest),
            b'{' => tag(rest, "}}", &mut out)?,
            _ => match keyword(rest) {
                "raw" => raw(rest),
                "generation" => renamed(rest, "generation", "with", &mut out),
                "endgeneration" => renamed(rest, "endgeneration", "endwith", &mut out),
                _ => tag(rest, "%}", &mut out)?,
            },
        };
        if rest.as_bytes()[1] == b'#' || (rest.starts_with("{%") && keyword(rest) == "raw") {
            out.push_str(&rest[..length]);
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the next tag begins. One search, not one for each kind: of a kind that is not there each
/// would go to the end.
fn tag_start(rest: &str) -> Option<usize> {
    let opens = |at: &usize| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
    rest.match_indices('{').map(|(at, _)| at).find(opens)
}

/// The first word of a block tag.
fn keyword(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
    &inner[..end]
}

/// Length of a comment.
fn comment(rest: &str) -> usize {
    rest[2..].find("#}").map_or(rest.len(), |at| at + 4)
}

/// Length of everything up to the tag that ends a raw block.
fn raw(rest: &str) -> usize {
    let mut at = 2;
    while let Some(next) = rest[at..].find("{%") {
        at += next;
        if keyword(&rest[at..]) == "endraw" {
            return at;
        }
        at += 2;
    }
    rest.len()
}

/// Writes a block tag with another first word; returns its length.
fn renamed(rest: &str, from: &str, to: &str, out: &mut String) -> usize {
    let length = rest.find("%}").map_or(rest.len(), |at| at + 2);
    out.push_str(&rest[..length].replacen(from, to, 1));
    length
}

/// Writes a tag with the escapes of its texts respelt; returns its length.
fn tag(rest: &str, close: &str, out: &mut String) -> Result<usize, String> {
    let mut at = 2;
    let mut depth = 0usize;
    out.push_str(&rest[..2]);
    while let Some(c) = rest[at..].chars().next() {
        if depth == 0 && rest[at..].starts_with(close) {
            out.push_str(close);
            return Ok(at + 2);
        }
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '\'' | '"' => {
                let Some(end) = text_end(&rest[at + 1..], c) else { break };
                let body = &rest[at + 1..at + 1 + end];
                match body.contains('\\') {
                    true => out.push_str(&quoted(&unescaped(body)?)),
                    false => out.push_str(&rest[at..end + at + 2]),
                }
                at += end + 2;
                continue;
            }
            _ => {}
        }
        out.push(c);
        at += c.len_utf8();
    }
    // Not closed: the engine says so.
    out.push_str(&rest[at..]);
    Ok(rest.len())
}

/// Where a text ends: at the first quote that is not escaped.
fn text_end(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// A text as minijinja writes it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// What Python makes of a text's escapes.
fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            // A line's end is left out.
            None | Some('\n') => {}
            Some(c @ ('\\' | '\'' | '"')) => out.push(c),
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\u{b}'),
            Some('x') => out.push(character(number(&mut chars, 2)?)?),
            Some('u') => out.push(from_units(&mut chars)?),
            Some('U') => out.push(character(number(&mut chars, 8)?)?),
            Some('N') => {
                return Err(
                    "a text has a character by its name (\\N{…}), which is not read; write it out"
                        .to_owned(),
                );
            }
            Some(digit @ '0'..='7') => {
                let mut value = digit.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(next) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    value = 8 * value + next;
                    chars.next();
                }
                out.push(character(value)?);
            }
            Some(other) => out.extend(['\\', other]),
        }
    }
    Ok(out)
}

fn number(chars: &mut Peekable<Chars<'_>>, digits: usize) -> Result<u32, String> {
    let text: String = chars.by_ref().take(digits).collect();
    let whole = text.chars().count() == digits && text.chars().all(|c| c.is_ascii_hexdigit());
    let value = u32::from_str_radix(&text, 16).ok().filter(|_| whole);
    value.ok_or_else(|| format!("a text has an escape of {digits} digits that is `{text}`"))
}

/// A character given by one or two UTF-16 units.
fn from_units(chars: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    let first = number(chars, 4)?;
    if !(0xd800..0xdc00).contains(&first) {
        return character(first);
    }
    let pair = (chars.next(), chars.next());
    let second = if pair == (Some('\\'), Some('u')) { number(chars, 4)? } else { 0 };
    if !(0xdc00..0xe000).contains(&second) {
        return character(first);
    }
    character(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
}

fn character(value: u32) -> Result<char, String> {
    char::from_u32(value)
        .ok_or_else(|| format!("a text has an escape for U+{value:04X}, which is no character"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_spelt_anew_and_all_else_is_left() {
        for (source, expected) in [
            ("a\r\nb\rc{{ x }}", "a\nb\nc{{ x }}"),
            (r#"{{ 'a\/b' ~ "\d" ~ 'it\'s' ~ "q" }}"#, r#"{{ "a\\/b" ~ "\\d" ~ "it's" ~ "q" }}"#),
            ("{{ 'a\\\nb' }}", "{{ \"ab\" }}"),
            (r"{{ '\x41\101\u00e9\U0001f600\ud83d\ude00\0' }}", "{{ \"AAé😀😀\u{0}\" }}"),
            (
                r"{# '\d' #}{% raw %}{{ '\d' }}{% endraw %}\d",
                r"{# '\d' #}{% raw %}{{ '\d' }}{% endraw %}\d",
            ),
            (r"{{ {'a': {'b': '\d'}} }}{{ '%}\'' }}", r#"{{ {'a': {'b': "\\d"}} }}{{ "%}'" }}"#),
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{{ 'generation' }}{% if generation %}", "{{ 'generation' }}{% if generation %}"),
            ("{{ 'open", "{{ 'open"),
        ] {
            assert_eq!(prepared(source).unwrap(), expected, "{source}");
        }
        for source in [
            r"{{ '\xZZ' }}",
            r"{{ '\u12' }}",
            r"{{ '\ud83d' }}",
            r"{{ '\N{DASH}' }}",
            r"{{ '\x+1' }}",
        ] {
            prepared(source).unwrap_err();
        }
    }
}
