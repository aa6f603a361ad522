//! `strftime_now`: the local time as Python writes it in the C locale.
//!
//! **Source:** Python's `datetime.now().strftime` over glibc's: a time without a zone, so `%z` and
//! `%Z` are empty; what is no directive is left as it stands.

use jiff::Zoned;
use jiff::civil::DateTime;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Now, where this runs.
pub(super) fn now() -> DateTime {
    Zoned::now().datetime()
}

/// Writes `at` by a format.
pub(super) fn strftime(at: DateTime, format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        out.push_str(&rest[..start]);
        let inner = &rest[start + 1..];
        let flags =
            inner.find(|c| !matches!(c, '-' | '_' | '0' | '^' | '#')).unwrap_or(inner.len());
        let Some(directive) = inner[flags..].chars().next() else {
            rest = &rest[start..];
            break;
        };
        let end = start + 1 + flags + directive.len_utf8();
        match field(at, directive) {
            Some(field) => out.push_str(&flagged(field, &inner[..flags])),
            None => out.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// What a directive writes.
enum Field {
    /// A number, with its width and what fills it up.
    Number(i64, usize, char),
    Text(String),
}

fn field(at: DateTime, directive: char) -> Option<Field> {
    let two = |value: i64| Some(Field::Number(value, 2, '0'));
    let text = |text: &str| Some(Field::Text(text.to_owned()));
    let whole = |format: &str| Some(Field::Text(strftime(at, format)));
    let date = at.date();
    let (year, month, hour) = (i64::from(at.year()), i64::from(at.month()), i64::from(at.hour()));
    let (day_of_year, weekday) =
        (i64::from(date.day_of_year()), i64::from(at.weekday().to_monday_zero_offset()));
    let twelve = (hour + 11) % 12 + 1;
    let week = date.iso_week_date();
    match directive {
        'a' => text(&DAYS[usize::try_from(weekday).ok()?][..3]),
        'A' => text(DAYS[usize::try_from(weekday).ok()?]),
        'b' | 'h' => text(&MONTHS[usize::try_from(month - 1).ok()?][..3]),
        'B' => text(MONTHS[usize::try_from(month - 1).ok()?]),
        'c' => whole("%a %b %e %H:%M:%S %Y"),
        'C' => two(year / 100),
        'd' => two(i64::from(at.day())),
        'D' | 'x' => whole("%m/%d/%y"),
        'e' => Some(Field::Number(i64::from(at.day()), 2, ' ')),
        'f' => Some(Field::Number(i64::from(at.subsec_nanosecond() / 1000), 6, '0')),
        'F' => whole("%Y-%m-%d"),
        'g' => two(i64::from(week.year()) % 100),
        'G' => Some(Field::Number(i64::from(week.year()), 4, '0')),
        'H' => two(hour),
        'I' => two(twelve),
        'j' => Some(Field::Number(day_of_year, 3, '0')),
        'k' => Some(Field::Number(hour, 2, ' ')),
        'l' => Some(Field::Number(twelve, 2, ' ')),
        'm' => two(month),
        'M' => two(i64::from(at.minute())),
        'n' => text("\n"),
        'p' => text(if hour < 12 { "AM" } else { "PM" }),
        'P' => text(if hour < 12 { "am" } else { "pm" }),
        'r' => whole("%I:%M:%S %p"),
        'R' => whole("%H:%M"),
        'S' => two(i64::from(at.second())),
        't' => text("\t"),
        'T' | 'X' => whole("%H:%M:%S"),
        'u' => Some(Field::Number(weekday + 1, 1, '0')),
        'U' => two((day_of_year + 6 - (weekday + 1) % 7) / 7),
        'V' => two(i64::from(week.week())),
        'w' => Some(Field::Number((weekday + 1) % 7, 1, '0')),
        'W' => two((day_of_year + 6 - weekday) / 7),
        'y' => two(year % 100),
        'Y' => Some(Field::Number(year, 4, '0')),
        'z' | 'Z' => text(""),
        '%' => text("%"),
        _ => None,
    }
}

fn flagged(field: Field, flags: &str) -> String {
    let mut text = match field {
        Field::Text(text) => text,
        Field::Number(value, width, fill) => {
            let fill = flags.chars().rfind(|flag| matches!(flag, '-' | '_' | '0')).map_or(
                Some(fill),
                |flag| match flag {
                    '-' => None,
                    '_' => Some(' '),
                    _ => Some('0'),
                },
            );
            match fill {
                None => value.to_string(),
                Some('0') => format!("{value:0width$}"),
                Some(_) => format!("{value:width$}"),
            }
        }
    };
    if flags.contains('^') {
        text = text.to_uppercase();
    }
    text
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn directives_are_those_of_python() {
        let at = date(2024, 2, 29).at(13, 5, 9, 42_000_000);
        for (format, expected) in [
            ("%d %b %Y", "29 Feb 2024"),
            ("%A, %B %-d, %Y", "Thursday, February 29, 2024"),
            ("%Y-%m-%d %H:%M:%S.%f", "2024-02-29 13:05:09.042000"),
            ("%I:%M %p|%-I|%l|%k|%e", "01:05 PM|1| 1|13|29"),
            ("%j %U %W %V %G %u %w", "060 08 09 09 2024 4 4"),
            (
                "%c|%x|%X|%D|%F|%T|%R|%r",
                "Thu Feb 29 13:05:09 2024|02/29/24|13:05:09|02/29/24|2024-02-29|13:05:09|13:05|01:05:09 PM",
            ),
            ("100%% %Q %^a %z%Z%", "100% %Q THU %"),
        ] {
            assert_eq!(strftime(at, format), expected, "{format}");
        }
        assert_eq!(
            strftime(date(2027, 1, 1).at(0, 0, 0, 0), "%e|%_d|%-d|%I|%U|%W|%V|%G"),
            " 1| 1|1|12|00|00|53|2026"
        );
    }

    #[test]
    fn now_is_this_year() {
        assert!((2024..2200).contains(&now().year()));
    }
}
