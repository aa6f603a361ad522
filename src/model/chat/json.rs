//! `tojson`: values as Python's `json.dumps` writes them.
//!
//! **Source:** transformers' own filter: no HTML escapes, `ensure_ascii=False`, the order of keys
//! kept; `indent`, `separators` and `sort_keys` as in Python.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting; Python stops, too.
const MAX_DEPTH: usize = 256;
const MAX_INDENT: usize = 1024;

/// The filter.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ascii: Option<bool>,
    indent: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let ascii = ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false);
    let indent = indent.or(kwargs.get("indent")?).filter(|value| !value.is_none());
    let separators: Option<Value> = kwargs.get("separators")?;
    let sort = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let indent = indent.map(|value| indentation(&value)).transpose()?;
    let (item, key) = match separators.filter(|value| !value.is_none()) {
        Some(pair) => separator_pair(&pair)?,
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer { state, out: String::new(), paid: 0, ascii, indent, item, key, sort };
    writer.value(value, 0)?;
    // Not marked safe: a template that adds to it gets a plain text, as in Python.
    Ok(Value::from(writer.out))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn indentation(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.chars().take(MAX_INDENT).collect());
    }
    let width = value.as_i64().ok_or_else(|| invalid("tojson: indent is a number or a text"))?;
    match usize::try_from(width.max(0)) {
        Ok(width) if width <= MAX_INDENT => Ok(" ".repeat(width)),
        _ => Err(invalid(format!("tojson: indent is at most {MAX_INDENT}"))),
    }
}

fn separator_pair(value: &Value) -> Result<(String, String), Error> {
    let wrong = || invalid("tojson: separators are two texts");
    let texts: Vec<String> = value
        .try_iter()?
        .map(|text| text.as_str().map(str::to_owned))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    <[String; 2]>::try_from(texts).map(|[item, key]| (item, key)).map_err(|_| wrong())
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    out: String,
    /// Bytes that fuel was taken for.
    paid: usize,
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("tojson: more than {MAX_DEPTH} levels")));
        }
        let bytes = (self.out.len() - self.paid) as u64 / 64;
        self.state.consume_fuel(1 + bytes)?;
        self.paid = self.out.len();
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', &items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys = value
                    .try_iter()?
                    .map(|key| Ok((key_text(&key)?, key)))
                    .collect::<Result<Vec<_>, Error>>()?;
                if self.sort {
                    keys.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list('{', '}', &keys, depth, |writer, (text, key)| {
                    writer.text(text);
                    writer.out.push_str(&writer.key.clone());
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("tojson: {kind} is no JSON"))),
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        open: char,
        close: char,
        items: &[T],
        depth: usize,
        write: impl Fn(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (k, item) in items.iter().enumerate() {
            if k > 0 {
                self.out.push_str(&self.item);
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => self.out.extend(['\\', c]),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                // ASCII alone writes DEL out, too.
                c if c < ' ' || (self.ascii && c > '~') => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(key.is_true().to_string()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(invalid(format!("tojson: a key is {kind}"))),
    }
}

/// A number as Python's `repr` writes it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    match float {
        _ if float.is_nan() => "NaN".to_owned(),
        _ if float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ if float != 0.0 && !(1e-4..1e16).contains(&float.abs()) => {
            let text = format!("{float:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) =
                exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        _ => format!("{float:?}"),
    }
}
