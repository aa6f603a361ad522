//! What a base is called where it is published, by its own files, and when two names mean one base.

use std::path::Path;

use super::BaseModel;
use crate::file::{from_json, read_limited};

/// What the names of quantised copies end in that lie beside the plain model, as those of
/// bitsandbytes do.
const BESIDE: [&str; 4] = ["-unsloth-bnb-4bit", "-bnb-4bit", "-bnb-8bit", "-4bit"];
/// The same of those whose makers seldom have the plain model, too.
const ELSEWHERE: [&str; 7] =
    ["-gptq-int4", "-gptq-int8", "-gptq", "-awq-int4", "-awq", "-fp8", "-8bit"];
/// What else is put behind a base's name when it is repacked.
const PACKED: [&str; 2] = ["-gguf", "-unsloth"];
/// The hub's cache keeps `ORG/NAME` in `models--ORG--NAME/snapshots/COMMIT`.
const CACHE_PREFIX: &str = "models--";

/// Keys of a GGUF that name where its model is published.
const GGUF_SOURCES: [&str; 4] = [
    "general.source.huggingface.repository",
    "general.source.repo_url",
    "general.repo_url",
    "general.base_model.0.repo_url",
];
/// Largest config.json that is looked at for a name.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl BaseModel {
    /// The names (`ORG/NAME`) under which its own files say that it, or what it was made from, is
    /// published; none where they do not say.
    pub fn published_names(&self) -> Vec<String> {
        let mut names: Vec<String> = match self.gguf() {
            Some(gguf) => {
                let texts = GGUF_SOURCES.iter().filter_map(|key| gguf.text(key).ok().flatten());
                texts
                    .map(|text| {
                        text.trim_start_matches("https://huggingface.co/")
                            .trim_end_matches('/')
                            .to_owned()
                    })
                    .collect()
            }
            None => config_name(self.path())
                .into_iter()
                .chain(cached_model(self.path()).map(|(_, name)| name))
                .collect(),
        };
        names.retain(|name| is_published(name));
        names.dedup();
        names
    }

    /// Whether a published name may mean this base: it is one of its own, or its file or title is
    /// called so. A file's name may go on with its quantisation.
    pub fn is_called(&self, name: &str) -> bool {
        let title = self.gguf().and_then(|gguf| gguf.text("general.name").ok().flatten());
        let file = self.path().file_name().map(|file| file.to_string_lossy().into_owned());
        let key = base_key(name);
        self.published_names().iter().any(|own| base_key(own) == key)
            || title.is_some_and(|title| base_key(title) == key)
            || file.is_some_and(|file| base_key(without_types(&file)) == key)
    }
}

/// The name in a folder's config.json.
fn config_name(folder: &Path) -> Option<String> {
    let config = read_limited(&folder.join("config.json"), MAX_CONFIG_BYTES).ok()?;
    let config: serde_json::Value = from_json(&config).ok()?;
    Some(config.get("_name_or_path")?.as_str()?.to_owned())
}

/// The folder of the hub's cache that `folder`, a snapshot in it, belongs to, and the name it
/// stands for.
pub(crate) fn cached_model(folder: &Path) -> Option<(&Path, String)> {
    let model = folder.ancestors().nth(2)?;
    let name = model.file_name()?.to_str()?.strip_prefix(CACHE_PREFIX)?;
    Some((model, name.replacen("--", "/", 1)))
}

/// The name of a file without what a GGUF's says of its types: `.Q4_K_M.gguf`, `-IQ4_XS.gguf`,
/// `_F16.gguf`.
fn without_types(file: &str) -> &str {
    let Some(stem) = file.strip_suffix(".gguf") else { return file };
    let is_type = |end: &str| {
        let end = end.to_ascii_uppercase();
        let digit = |start: &str| {
            end.strip_prefix(start)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        matches!(&end[..], "F16" | "F32" | "F64" | "BF16")
            || ["Q", "IQ", "TQ"].into_iter().any(digit)
    };
    let cut = stem.match_indices(['.', '-', '_']).find(|(at, _)| is_type(&stem[at + 1..]));
    cut.map_or(stem, |(at, _)| &stem[..at])
}

/// The name of the model that a quantised one of this name was made of.
pub(crate) fn plain_twin(name: &str) -> Option<String> {
    let beside = cut(name, &BESIDE).map(str::to_owned);
    beside.or_else(|| {
        cut(name, &ELSEWHERE).map(|plain| plain.rsplit('/').next().unwrap_or(plain).to_owned())
    })
}

/// The name without the first of these ends that it has, whatever its case.
fn cut<'a>(name: &'a str, ends: &[&str]) -> Option<&'a str> {
    let at = |end: &&str| name.len().checked_sub(end.len()).filter(|at| *at > 0);
    ends.iter().find_map(|end| {
        let (plain, found) = name.split_at_checked(at(end)?)?;
        found.eq_ignore_ascii_case(end).then_some(plain)
    })
}

/// Whether a name is one of the hub's, by its form: a path of this machine is none.
pub(crate) fn is_published(name: &str) -> bool {
    let is_part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty()
            && part.len() <= 96
            && part.chars().all(plain)
            && !part.starts_with(['.', '-'])
    };
    name.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// What two names of one base have in common: the last part in lower case, without what says its
/// quantisation. An organisation that repacks a base names itself.
pub(crate) fn base_key(name: &str) -> String {
    let mut plain = name.rsplit('/').next().unwrap_or(name);
    while let Some(shorter) =
        [&BESIDE[..], &ELSEWHERE, &PACKED].into_iter().find_map(|ends| cut(plain, ends))
    {
        plain = shorter;
    }
    plain.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_base_are_told_from_those_of_another() {
        let one = [
            "meta-llama/Llama-3.2-1B-Instruct",
            "unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit",
            "x/llama-3.2-1b-instruct-GGUF",
        ];
        assert!(
            one.iter().all(|name| base_key(name) == "llama321binstruct"),
            "{:?}",
            one.map(base_key)
        );
        assert_ne!(base_key("meta-llama/Llama-3.2-1B"), base_key(one[0]));
        assert_eq!(
            base_key("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"),
            base_key("Qwen/Qwen2.5-7B-Instruct")
        );
        assert!(one.iter().all(|name| is_published(name)));
        for local in [
            "/data/llama",
            "./llama",
            "../a",
            "~/x",
            "a/b/c",
            "C:\\x",
            "llama",
            "",
            "a/",
            "/a",
            "a/b c",
            "../../x/y",
        ] {
            assert!(!is_published(local), "{local}");
        }
    }

    #[test]
    fn quantised_copies_name_their_plain_twin() {
        for (name, plain) in [
            ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", Some("unsloth/Llama-3.2-1B-Instruct")),
            ("unsloth/Qwen2.5-7B-unsloth-bnb-4bit", Some("unsloth/Qwen2.5-7B")),
            ("TheBloke/Mistral-7B-v0.1-GPTQ", Some("Mistral-7B-v0.1")),
            ("Qwen/Qwen2.5-7B-Instruct-AWQ", Some("Qwen2.5-7B-Instruct")),
            ("org/plain", None),
            ("-gptq", None),
            ("é-é", None),
        ] {
            assert_eq!(plain_twin(name).as_deref(), plain, "{name}");
        }
    }

    #[test]
    fn the_name_of_a_file_may_end_in_its_types() {
        for (file, name) in [
            ("Llama-3.2-1B-Instruct.Q4_K_M.gguf", "Llama-3.2-1B-Instruct"),
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
            ("qwen2.5-0.5b-instruct-iq4_xs-00001-of-00002.gguf", "qwen2.5-0.5b-instruct"),
            ("tiny_BF16.gguf", "tiny"),
            ("Qwen-Q.gguf", "Qwen-Q"),
            ("Qwen2.5-0.5B-Q4_K_M", "Qwen2.5-0.5B-Q4_K_M"),
        ] {
            assert_eq!(without_types(file), name);
        }
    }
}
