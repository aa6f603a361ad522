//! What a base is called where it is published, by its own files, and when two names mean one base.

use std::path::Path;

use super::BaseModel;
use crate::file::read_limited;

/// What is put behind a base's name when it is quantised or packed anew.
const SUFFIXES: [&str; 8] = ["-bnb-4bit", "-unsloth", "-bnb-8bit", "-gguf", "-awq", "-gptq", "-fp8", "-4bit"];

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
    /// The names (`ORG/NAME`) under which its own files say that it, or what it was made from, is published; none where they
    /// do not say.
    pub fn published_names(&self) -> Vec<String> {
        let mut names: Vec<String> = match self.gguf() {
            Some(gguf) => {
                let texts = GGUF_SOURCES.iter().filter_map(|key| gguf.text(key).ok().flatten());
                texts
                    .map(|text| text.trim_start_matches("https://huggingface.co/").trim_end_matches('/').to_owned())
                    .collect()
            }
            None => config_name(self.path()).into_iter().chain(cache_name(self.path())).collect(),
        };
        names.retain(|name| is_published(name));
        names.dedup();
        names
    }

    /// Whether a published name may mean this base: it is one of its own, or its file or title is called so.
    pub fn is_called(&self, name: &str) -> bool {
        let title = self.gguf().and_then(|gguf| gguf.text("general.name").ok().flatten());
        let file = self.path().file_name().map(|file| file.to_string_lossy().into_owned());
        let key = base_key(name);
        self.published_names().iter().any(|own| base_key(own) == key)
            || title.is_some_and(|title| base_key(title) == key)
            || file.is_some_and(|file| base_key(&file).starts_with(&key))
    }
}

/// The name in a folder's config.json.
fn config_name(folder: &Path) -> Option<String> {
    let config = read_limited(&folder.join("config.json"), MAX_CONFIG_BYTES).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&config).ok()?;
    Some(config.get("_name_or_path")?.as_str()?.to_owned())
}

/// The name that a folder of the hub's cache stands for: `models--ORG--NAME/snapshots/REVISION`.
fn cache_name(folder: &Path) -> Option<String> {
    let model = folder.ancestors().nth(2)?.file_name()?.to_str()?;
    Some(model.strip_prefix("models--")?.replacen("--", "/", 1))
}

/// Whether a name is one of the hub's, by its form: a path of this machine is none.
pub(crate) fn is_published(name: &str) -> bool {
    let is_part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.len() <= 96 && part.chars().all(plain) && !part.starts_with(['.', '-'])
    };
    name.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// What two names of one base have in common: the last part in lower case, without what tells of quantisation. An
/// organisation that packs a base anew names itself.
pub(crate) fn base_key(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let mut plain = name.as_str();
    while let Some(shorter) = SUFFIXES.iter().find_map(|suffix| plain.strip_suffix(suffix)) {
        plain = shorter;
    }
    plain.chars().filter(char::is_ascii_alphanumeric).collect()
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
        assert!(one.iter().all(|name| base_key(name) == "llama321binstruct"), "{:?}", one.map(base_key));
        assert_ne!(base_key("meta-llama/Llama-3.2-1B"), base_key(one[0]));
        assert!(one.iter().all(|name| is_published(name)));
        for local in
            ["/data/llama", "./llama", "../a", "~/x", "a/b/c", "C:\\x", "llama", "", "a/", "/a", "a/b c", "../../x/y"]
        {
            assert!(!is_published(local), "{local}");
        }
    }
}
