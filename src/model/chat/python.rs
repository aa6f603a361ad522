//! Python's methods, operators and helpers that templates use and minijinja does not have, or has
//! otherwise.
//!
//! **Source:** Python 3's `str`, `list` and `dict`; jinja2's `default`, `sequence`, `cycler` and
//! `joiner`. What changes its object is left out: the sandbox of transformers refuses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Widest field that a method fills up to.
const MAX_WIDTH: usize = 1 << 16;

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// A method that a value of minijinja does not have.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.as_str(), value.kind()) {
        (Some(text), _) => text_method(state, text, name, args)?,
        (None, ValueKind::Seq) => list_method(state, value, name, args)?,
        (None, ValueKind::Map) if name == "copy" => {
            from_args(args).map(|()| Some(value.clone()))?
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, name, args),
    }
}

fn list_method(
    state: &State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    match name {
        "copy" => from_args(args).map(|()| Some(value.clone())),
        "index" => {
            let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
            let items: Vec<Value> = value.try_iter()?.collect();
            state.consume_fuel(items.len() as u64)?;
            let (start, end) = bounds(items.len(), start, end);
            let found = (start..end).find(|&k| items[k] == what);
            found
                .map(|k| Some(Value::from(k)))
                .ok_or_else(|| invalid(format!("{what} is not in the list")))
        }
        _ => Ok(None),
    }
}

/// Python's start and end of a slice, within a length.
fn bounds(len: usize, start: Option<i64>, end: Option<i64>) -> (usize, usize) {
    let clamp = |at: i64| {
        let at = if at < 0 { at.saturating_add_unsigned(len as u64).max(0) } else { at };
        usize::try_from(at).unwrap_or(usize::MAX).min(len)
    };
    let (start, end) = (start.map_or(0, clamp), end.map_or(len, clamp));
    (start, end.max(start))
}

/// A slice of a text by characters, and how many characters are before it.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> (&str, usize) {
    if start.is_none() && end.is_none() {
        return (text, 0);
    }
    let at: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let (start, end) = bounds(at.len() - 1, start, end);
    (&text[at[start]..at[end]], start)
}

fn text_method(
    state: &State,
    text: &str,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    state.consume_fuel(1 + text.len() as u64 / 64)?;
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    Ok(Some(match name {
        "find" | "rfind" | "index" | "rindex" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let (part, before) = slice(text, start, end);
            let found = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
            match found {
                Some(at) => Value::from(before + part[..at].chars().count()),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(invalid(format!("substring {what:?} not found"))),
            }
        }
        "count" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            Value::from(slice(text, start, end).0.matches(what).count())
        }
        "startswith" | "endswith" => {
            let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
            let part = slice(text, start, end).0;
            let what =
                if what.as_str().is_some() { vec![what] } else { what.try_iter()?.collect() };
            let mut fits = false;
            for what in &what {
                let what = what.as_str().ok_or_else(|| {
                    invalid(format!("{name} takes a text or several, not {}", what.kind()))
                })?;
                fits |= if name == "startswith" {
                    part.starts_with(what)
                } else {
                    part.ends_with(what)
                };
            }
            Value::from(fits)
        }
        "removeprefix" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(what).unwrap_or(text))
        }
        "removesuffix" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(what).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (by,): (&str,) = from_args(args)?;
            partition(text, by, name == "rpartition")?
        }
        "split" | "rsplit" => {
            let (by, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let by = by.or(kwargs.get("sep")?).filter(|by| !by.is_none());
            let most = most.or(kwargs.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
            kwargs.assert_all_used()?;
            let by = by
                .as_ref()
                .map(|by| by.as_str().ok_or_else(|| invalid(format!("{name} takes a text"))))
                .transpose()?;
            let parts = split(text, by, most, name == "rsplit", space)?;
            state.consume_fuel(parts.len() as u64)?;
            Value::from(parts)
        }
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            Value::from(lines(text, keep))
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<Value>,) = from_args(args)?;
            let chars = chars.filter(|chars| !chars.is_none()).map(|chars| chars.to_string());
            let cut = |c: char| chars.as_ref().map_or_else(|| space(c), |chars| chars.contains(c));
            let text = if name == "rstrip" { text } else { text.trim_start_matches(cut) };
            Value::from(if name == "lstrip" { text } else { text.trim_end_matches(cut) })
        }
        "center" | "ljust" | "rjust" | "zfill" => return padded(state, text, name, args).map(Some),
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(space))
        }
        _ => return Ok(None),
    }))
}

fn partition(text: &str, by: &str, last: bool) -> Result<Value, Error> {
    if by.is_empty() {
        return Err(invalid("partition takes a text that is not empty"));
    }
    let at = if last { text.rfind(by) } else { text.find(by) };
    let parts = match at {
        Some(at) => [&text[..at], by, &text[at + by.len()..]],
        None if last => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// Parts of a text; without `by` those between white space.
fn split(
    text: &str,
    by: Option<&str>,
    most: Option<usize>,
    last: bool,
    space: impl Fn(char) -> bool,
) -> Result<Vec<String>, Error> {
    let most = most.unwrap_or(usize::MAX);
    let owned = |parts: Vec<&str>| parts.into_iter().map(str::to_owned).collect();
    if let Some(by) = by {
        if by.is_empty() {
            return Err(invalid("empty separator"));
        }
        let most = most.saturating_add(1);
        if !last {
            return Ok(owned(text.splitn(most, by).collect()));
        }
        let mut parts: Vec<&str> = text.rsplitn(most, by).collect();
        parts.reverse();
        return Ok(owned(parts));
    }
    let mut parts = Vec::new();
    let mut rest =
        if last { text.trim_end_matches(&space) } else { text.trim_start_matches(&space) };
    while !rest.is_empty() {
        let cut = match last {
            _ if parts.len() == most => None,
            true => rest
                .rfind(&space)
                .map(|at| at + rest[at..].chars().next().map_or(1, char::len_utf8)),
            false => rest.find(&space),
        };
        // What is left behind the last cut keeps its white space.
        let Some(cut) = cut else {
            parts.push(rest);
            break;
        };
        let (head, tail) = rest.split_at(cut);
        let (part, left) = if last {
            (tail, head.trim_end_matches(&space))
        } else {
            (head, tail.trim_start_matches(&space))
        };
        parts.push(part);
        rest = left;
    }
    if last {
        parts.reverse();
    }
    Ok(owned(parts))
}

/// Lines of a text by all that Python takes for a line's end.
fn lines(text: &str, keep: bool) -> Vec<String> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(ends).unwrap_or(rest.len());
        let length = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(rest[..if keep { end + length } else { end }].to_owned());
        rest = &rest[end + length..];
    }
    lines
}

fn padded(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = fill.unwrap_or(if name == "zfill" { "0" } else { " " });
    let mut one = fill.chars();
    let (Some(fill), None) = (one.next(), one.next()) else {
        return Err(invalid(format!("{name} fills with one character")));
    };
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    if width > MAX_WIDTH {
        return Err(invalid(format!("{name}: a width of {width} is more than {MAX_WIDTH}")));
    }
    state.consume_fuel(width as u64 / 64)?;
    let missing = width.saturating_sub(text.chars().count());
    let filled = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(Value::from(match name {
        "ljust" => text.to_owned() + &filled(missing),
        "rjust" => filled(missing) + text,
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", filled(missing))
        }
        _ => {
            let left = missing / 2 + (missing & width & 1);
            filled(left) + text + &filled(missing - left)
        }
    }))
}

/// Name of [`remainder`]: no template can say it.
pub(super) const REMAINDER: &str = "%";

/// `a % b`: a text formats what stands behind it.
pub(super) fn remainder(state: &State, a: &Value, b: &Value) -> Result<Value, Error> {
    let Some(text) = a.as_str() else { return number_remainder(a, b) };
    state.consume_fuel(1 + text.len() as u64 / 64)?;
    if text.split('%').skip(1).any(|field| field.chars().filter(char::is_ascii_digit).count() > 5) {
        return Err(invalid("a field of a format is too wide"));
    }
    let mut args: Vec<Value> = if b.is_tuple() { b.try_iter()?.collect() } else { vec![b.clone()] };
    let (text, fields) = with_representations(text, &mut args);
    if args.len() > fields && b.kind() != ValueKind::Map {
        return Err(invalid("not all arguments converted during string formatting"));
    }
    format(FormatStyle::Printf, &text, &args).map(Value::from)
}

/// The format with `%r` as `%s`, its argument written out as Python's `repr`; and how many fields
/// it has.
fn with_representations(text: &str, args: &mut [Value]) -> (String, usize) {
    let (mut out, mut fields) = (String::with_capacity(text.len()), 0);
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let length = rest[at + 1..]
            .find(|c: char| c.is_alphabetic() || c == '%' || c == '(')
            .map_or(rest.len(), |k| at + k + 2);
        let field = &rest[..length];
        match field.strip_suffix('r') {
            Some(before) => {
                out.extend([before, "s"]);
                if let Some(arg) = args.get_mut(fields) {
                    *arg = Value::from(format!("{arg:?}"));
                }
            }
            None => out.push_str(field),
        }
        fields += usize::from(!field.ends_with('%'));
        rest = &rest[length..];
    }
    (out + rest, fields)
}

/// Python's remainder: it has the sign of the divisor.
fn number_remainder(a: &Value, b: &Value) -> Result<Value, Error> {
    let wrong = || {
        invalid(format!(
            "tried to use % operator on unsupported types {} and {}",
            a.kind(),
            b.kind()
        ))
    };
    let number = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number => Some(value.clone()),
        _ => None,
    };
    let (a, b) = (number(a).ok_or_else(wrong)?, number(b).ok_or_else(wrong)?);
    if a.is_integer() && b.is_integer() {
        let (a, b) = (i128::try_from(a)?, i128::try_from(b)?);
        let rest = a.checked_rem(b).ok_or_else(|| invalid("modulo by zero"))?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let (a, b) = (f64::try_from(a)?, f64::try_from(b)?);
    if b == 0.0 {
        return Err(invalid("modulo by zero"));
    }
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }))
}

/// `default(value, default_value='', boolean=false)`.
pub(super) fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(kwargs.get("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean: Option<Value> = boolean.or(kwargs.get("boolean")?);
    kwargs.assert_all_used()?;
    let falsy = boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true();
    Ok(if value.is_undefined() || falsy { other } else { value.clone() })
}

/// `int(value, default=0, base=10)`: the default for what is no number.
pub(super) fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0));
    let base = base.or(kwargs.get("base")?);
    kwargs.assert_all_used()?;
    minijinja::filters::int(state, value, Some(default), base, no_kwargs())
}

/// `float(value, default=0.0)`: the default for what is no number.
pub(super) fn float(
    state: &State,
    value: &Value,
    default: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0.0));
    kwargs.assert_all_used()?;
    minijinja::filters::float(state, value, Some(default), no_kwargs())
}

fn no_kwargs() -> Kwargs {
    std::iter::empty::<(String, Value)>().collect()
}

/// `is sequence`: whatever has a length and items, texts and mappings, too.
pub(super) fn is_sequence(value: &Value) -> bool {
    value.is_undefined()
        || matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Bytes
        )
}

/// `cycler(…)`: returns its items in turn.
pub(super) fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    if items.is_empty() {
        return Err(invalid("at least one item has to be provided"));
    }
    Ok(Value::from_object(Cycler { items: items.0, at: AtomicUsize::new(0) }))
}

#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        self.items[self.at.load(Ordering::Relaxed) % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let () = from_args(args)?;
        match method {
            "next" => {
                let item = self.current();
                self.at.store(
                    (self.at.load(Ordering::Relaxed) + 1) % self.items.len(),
                    Ordering::Relaxed,
                );
                Ok(item)
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// `joiner(sep=', ')`: returns nothing the first time and `sep` from then on.
pub(super) fn joiner(sep: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let sep = sep.or(kwargs.get("sep")?).unwrap_or_else(|| Value::from(", "));
    kwargs.assert_all_used()?;
    Ok(Value::from_object(Joiner { sep, used: AtomicBool::new(false) }))
}

#[derive(Debug)]
struct Joiner {
    sep: Value,
    used: AtomicBool,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let () = from_args(args)?;
        Ok(if self.used.swap(true, Ordering::Relaxed) { self.sep.clone() } else { Value::from("") })
    }
}
