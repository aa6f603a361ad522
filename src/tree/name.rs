//! What a node may be called.
//!
//! A name is an identifier and never a path: no file is opened, written or linked by it. What the
//! rule keeps out is what would be *taken* for something else: for a path of another program, for a
//! device, or for another node's name.
//!
//! **Source:** Unicode Standard Annex 15 (NFC, NFKC) and Technical Standard 39 (the restriction
//! level "highly restrictive").

use std::borrow::Cow;
use std::collections::BTreeSet;

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::props::{
    DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup, Script,
};
use icu_properties::script::{ScriptWithExtensions, ScriptWithExtensionsBorrowed};
use icu_properties::{CodePointMapData, CodePointSetData};

use super::MAX_DEPTH;
use crate::error::TreeDefect;

/// Longest part of a name, in bytes of UTF-8.
const MAX_PART_BYTES: usize = 128;
/// Signs that a part may hold beside letters, marks and digits. Those of shells, patterns, quotes
/// and paths are not among them.
const SIGNS: &str = ". _-@:+=,()";
/// Most marks on one letter: beyond, they are drawn over the lines around.
const MAX_MARKS: usize = 4;
/// Letters that are drawn as a slash.
const SLASHES: [char; 3] = ['ノ', '丿', '〳'];
/// Letters whose compatibility form is no other way to write them: Thai and Lao keyboards make
/// these.
const OWN_FORMS: [char; 4] = ['\u{e33}', '\u{eb3}', '\u{edc}', '\u{edd}'];
/// Scripts that are written together, and are hard to take for each other.
const TOGETHER: [&[Script]; 3] = [
    &[Script::Latin, Script::Han, Script::Hiragana, Script::Katakana],
    &[Script::Latin, Script::Han, Script::Hangul],
    &[Script::Latin, Script::Han, Script::Bopomofo],
];

/// The name in the one spelling that nodes have, Unicode's NFC: macOS and some archives write `é`
/// as two characters.
pub fn normal(name: &str) -> Cow<'_, str> {
    if name.is_ascii() {
        Cow::Borrowed(name)
    } else {
        ComposingNormalizerBorrowed::new_nfc().normalize(name)
    }
}

/// Checks a node's name: at most [`MAX_DEPTH`] parts between slashes. A part
///
/// - has 1 to 128 bytes of UTF-8, in NFC, and no character that is only another form of one (`ａ`,
///   `ﬁ`);
/// - is made of letters, marks and decimal digits of any script, the signs `. _ - @ : + = , ( )`,
///   and single spaces;
/// - neither starts nor ends with a dot or a space, nor ends with a colon, nor starts as a drive
///   does (`C:`);
/// - is no device of Windows (`CON`, `nul.txt`), which has those in every folder and with any
///   extension;
/// - holds nothing invisible, no mark without a letter, and no more than four marks on one;
/// - has the letters of one script, or of those that are written together: Latin with Japanese,
///   Chinese or Korean. `аlice` with a Cyrillic `а` is not alice. Names of one script throughout
///   that look alike (`асе` and `ace`) stay two names.
///
/// Names are kept apart by case: `Alice` is not `alice`.
pub(crate) fn check_name(name: &str) -> Result<(), TreeDefect> {
    let depth = name.split('/').count();
    if depth > MAX_DEPTH {
        return Err(TreeDefect::TooDeep { name: shown(name), depth, limit: MAX_DEPTH });
    }
    match name.split('/').find_map(problem) {
        None => Ok(()),
        Some(problem) => Err(TreeDefect::InvalidName { name: shown(name), problem }),
    }
}

/// What is wrong with a part of a name.
fn problem(part: &str) -> Option<String> {
    if !(1..=MAX_PART_BYTES).contains(&part.len()) {
        return Some(match part.len() {
            0 => "a part between slashes is empty".to_owned(),
            bytes => format!("a part has {bytes} bytes, the limit is {MAX_PART_BYTES}"),
        });
    }
    let ends = |c: char| part.starts_with(c) || part.ends_with(c);
    if ends('.') || ends(' ') {
        return Some("a part starts or ends with a dot or a space".to_owned());
    }
    if part.ends_with(':') || is_drive(part) {
        return Some("a part starts as a drive does, or ends with a colon".to_owned());
    }
    if is_device(part) {
        return Some("a part is a device of Windows (CON, NUL, COM1, …)".to_owned());
    }
    if part.contains("  ") {
        return Some("two spaces follow each other".to_owned());
    }
    if part.is_ascii() {
        return part.chars().find(|c| !is_plain(*c)).map(not_allowed);
    }
    characters(part).or_else(|| form(part)).or_else(|| scripts(part))
}

/// Whether `c` is an ASCII letter or digit, or one of the signs.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || SIGNS.contains(c)
}

fn not_allowed(c: char) -> String {
    format!("{} is neither a letter nor a digit nor one of {SIGNS}", described(c))
}

/// A character by its number, and itself where it can be seen.
fn described(c: char) -> String {
    let number = format!("U+{:04X}", u32::from(c));
    if c.escape_debug().count() == 1 { format!("{c:?} ({number})") } else { number }
}

/// Characters that no part holds.
fn characters(part: &str) -> Option<String> {
    let categories = CodePointMapData::<GeneralCategory>::new();
    let invisible = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    let is_mark = |c| GeneralCategoryGroup::Mark.contains(categories.get(c));
    let is_digit = |c| categories.get(c) == GeneralCategory::DecimalNumber;
    let mut marks = MAX_MARKS;
    for c in part.chars() {
        if invisible.contains(c) {
            return Some(format!("U+{:04X} cannot be seen", u32::from(c)));
        }
        if is_mark(c) {
            if marks == MAX_MARKS {
                return Some(format!("the mark {} has no letter to itself", described(c)));
            }
            marks += 1;
            continue;
        }
        let is_letter = GeneralCategoryGroup::Letter.contains(categories.get(c));
        if !(is_plain(c) || is_letter || is_digit(c)) {
            return Some(not_allowed(c));
        }
        // Only a letter or a digit takes marks: on a dot or a space they would make another sign of
        // it.
        marks = if is_letter || is_digit(c) { 0 } else { MAX_MARKS };
    }
    let mixed = part.chars().any(|c| c.is_ascii_digit())
        && part.chars().any(|c| !c.is_ascii() && is_digit(c));
    mixed.then(|| "digits of two scripts stand in one part".to_owned())
}

/// Another spelling of the same text.
fn form(part: &str) -> Option<String> {
    let composed = normal(part);
    if composed != part {
        return Some(format!(
            "its letters and marks are not in one piece (NFC); write it as {composed:?}"
        ));
    }
    let plain = ComposingNormalizerBorrowed::new_nfkc();
    let foreign = part
        .chars()
        .find(|c| !OWN_FORMS.contains(c) && !plain.is_normalized(c.encode_utf8(&mut [0; 4])))?;
    Some(format!(
        "{} is only another form of a character; write {:?}",
        described(foreign),
        plain.normalize(part)
    ))
}

/// Letters that could be taken for those of another script, or for a slash.
fn scripts(part: &str) -> Option<String> {
    let data = ScriptWithExtensions::new();
    let is = |c: char, scripts: &[Script]| scripts.iter().any(|script| data.has_script(c, *script));
    let letters: Vec<char> =
        part.chars().filter(|c| !is(*c, &[Script::Common, Script::Inherited])).collect();
    let alone = letters.first().map(|first| scripts_of(data, *first)).unwrap_or_default();
    let sets = alone.iter().map(std::slice::from_ref).chain(TOGETHER);
    // Where it goes furthest shows what does not belong.
    let ends = sets.map(|set| letters.iter().position(|c| !is(*c, set)).unwrap_or(letters.len()));
    if let Some(stranger) = letters.get(ends.max().unwrap_or(letters.len())) {
        return Some(format!(
            "the letter {} is of another script than those before it",
            described(*stranger)
        ));
    }
    let all: Vec<char> = part.chars().collect();
    let east = |at: Option<usize>| {
        let beside = at.and_then(|at| all.get(at));
        beside.is_some_and(|c| {
            is(*c, &[Script::Han, Script::Hiragana, Script::Katakana]) && !SLASHES.contains(c)
        })
    };
    let is_slash =
        |at: usize| SLASHES.contains(&all[at]) && !east(at.checked_sub(1)) && !east(Some(at + 1));
    let slash = (0..all.len()).find(|at| is_slash(*at))?;
    Some(format!("{} looks like a slash here", described(all[slash])))
}

fn scripts_of(data: ScriptWithExtensionsBorrowed<'static>, c: char) -> Vec<Script> {
    let scripts: BTreeSet<Script> = data.get_script_extensions_val(c).iter().collect();
    scripts.into_iter().collect()
}

/// Whether the part starts as a drive of Windows does: one letter and a colon.
fn is_drive(part: &str) -> bool {
    matches!(part.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic())
}

fn is_device(part: &str) -> bool {
    let stem = part.split(['.', ':']).next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let numbered = |kind| {
        stem.strip_prefix(kind).is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit())
    };
    matches!(&stem[..], "CON" | "PRN" | "AUX" | "NUL") || numbered("COM") || numbered("LPT")
}

/// A name that may be long, for a message of one line: what cannot be seen becomes U+FFFD.
pub(crate) fn shown(name: &str) -> String {
    let invisible = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    let hidden = |c: char| c.is_control() || invisible.contains(c);
    name.chars().take(200).map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str) -> String {
        check_name(name).expect_err(name).to_string()
    }

    #[test]
    fn names_that_platforms_give_are_taken() {
        for name in [
            "alice smith",
            "alice@example.org",
            "user:42",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "a+b=c,d (2)",
            "lost+found",
            "fr/médecine/Zoë",
            "москва",
            "東京dev/チームA",
            "ユーザー・データ".split('・').next().unwrap(),
            "서울",
            "ภาษาไทยกำลัง",
            "हिन्दी",
            "שלום",
            "علي٢",
            "-dash",
        ] {
            check_name(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn each_refusal_names_what_is_wrong() {
        for (name, words) in [
            ("a//b", "is empty"),
            (" a", "a dot or a space"),
            ("a  b", "two spaces"),
            ("c:x", "as a drive"),
            ("COM1:x", "a device of Windows"),
            ("con .txt", "a device of Windows"),
            ("a/b%2f", "'%' (U+0025) is neither"),
            ("a\u{200b}b", "U+200B cannot be seen"),
            ("a\u{3164}b", "U+3164 cannot be seen"),
            ("\u{301}a", "U+0301 has no letter"),
            ("a.\u{301}", "U+0301 has no letter"),
            ("x\u{301}\u{301}\u{301}\u{301}\u{301}", "U+0301 has no letter"),
            ("e\u{301}", "write it as \"é\""),
            ("ａlice", "write \"alice\""),
            ("ﬁn", "write \"fin\""),
            ("аlice", "'l' (U+006C) is of another script"),
            ("alicе", "'е' (U+0435) is of another script"),
            ("1٠", "digits of two scripts"),
            ("aノb", "looks like a slash"),
            ("a丿b", "looks like a slash"),
            ("fr∕etc", "'∕' (U+2215) is neither"),
            ("🙂", "is neither a letter"),
        ] {
            assert!(refusal(name).contains(words), "{name:?}: {}", refusal(name));
        }
    }

    #[test]
    fn other_spellings_of_a_name_meet_in_one() {
        assert_eq!(normal("me\u{301}decine"), "médecine");
        assert_eq!(normal("fr/alice"), "fr/alice");
    }
}
