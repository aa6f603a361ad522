//! Models from the Hugging Face hub: `hf:ORG/NAME[@REVISION]` becomes a local folder.
//!
//! **Invariant:** nothing is downloaded unless a base is asked for by such a name, and never code
//! or pickles: only the configuration, the tokenizer and safetensors.
//!
//! **Source:** the hub client's cache layout; `HF_ENDPOINT` and `HF_HOME` say where from and where
//! to.

#[cfg(feature = "hub")]
use std::collections::{BTreeMap, BTreeSet};
#[cfg(feature = "hub")]
use std::path::Path;
use std::path::PathBuf;

#[cfg(feature = "hub")]
use hf_hub::api::sync::{ApiBuilder, ApiError};
#[cfg(feature = "hub")]
use hf_hub::{Repo, RepoType};

use crate::error::HubDefect;
#[cfg(feature = "hub")]
use crate::file::{from_json, read_limited};
use crate::{Error, Result};

/// Largest index that is read: a mixture of experts names some 100,000 tensors.
#[cfg(feature = "hub")]
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// `ORG/NAME`.
    pub repo: String,
    /// Branch, tag or commit; `main` where none is given.
    pub revision: String,
}

impl HubModel {
    /// Reads `ORG/NAME[@REVISION]`.
    ///
    /// ```
    /// use pleach::file::hub::HubModel;
    /// let model = HubModel::parse("org/tiny@v1.0").unwrap();
    /// assert_eq!((&model.repo[..], &model.revision[..]), ("org/tiny", "v1.0"));
    /// assert!(HubModel::parse("../etc").is_err());
    /// ```
    ///
    /// # Errors
    /// [`Error::Hub`] for any other text.
    pub fn parse(name: &str) -> Result<Self> {
        let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() != 2 || !parts.into_iter().chain([revision]).all(is_plain) {
            return Err(Error::Hub { name: name.to_owned(), defect: HubDefect::Name });
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    /// Downloads what a base needs, or finds it in the cache, and returns the folder.
    ///
    /// # Errors
    /// [`Error::Hub`] when a file cannot be fetched, or the program was built without the hub.
    #[cfg(feature = "hub")]
    pub fn fetch(&self) -> Result<PathBuf> {
        self.fetch_through(ApiBuilder::from_env())
    }

    #[cfg(feature = "hub")]
    fn fetch_through(&self, builder: ApiBuilder) -> Result<PathBuf> {
        let api = builder.build().map_err(|e| self.error("the hub", &e))?;
        let repo = api.repo(Repo::with_revision(
            self.repo.clone(),
            RepoType::Model,
            self.revision.clone(),
        ));
        let get = |file: &str| repo.get(file).map_err(|e| self.error(file, &e));
        let config = get("config.json")?;
        let folder = config.parent().unwrap_or(&config).to_owned();
        match repo.info() {
            Ok(info) => {
                let files: Vec<&str> =
                    info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
                files
                    .iter()
                    .filter(|file| is_needed(file))
                    .try_for_each(|file| get(file).map(drop))?;
                if files.contains(&INDEX) {
                    shards(&get(INDEX)?)?.iter().try_for_each(|file| get(file).map(drop))?;
                }
            }
            // Off line, a complete model may be in the cache; opening the folder names what it
            // lacks.
            Err(error) => {
                tracing::warn!("{}: the hub does not answer ({error}); using the cache", self.repo)
            }
        }
        Ok(folder)
    }

    /// Without the hub: says how to get it.
    ///
    /// # Errors
    /// Always [`Error::Hub`].
    #[cfg(not(feature = "hub"))]
    pub fn fetch(&self) -> Result<PathBuf> {
        let name = format!("{}@{}", self.repo, self.revision);
        Err(Error::Hub { name, defect: HubDefect::NotBuilt })
    }

    #[cfg(feature = "hub")]
    fn error(&self, file: &str, reason: &ApiError) -> Error {
        let defect = HubDefect::Fetch { file: file.to_owned(), reason: reason.to_string() };
        Error::Hub { name: format!("{}@{}", self.repo, self.revision), defect }
    }
}

/// One segment of a name, fit for a path and a URL.
fn is_plain(segment: &str) -> bool {
    (1..=96).contains(&segment.len())
        && !segment.starts_with(['.', '-'])
        && !segment.contains("..")
        && segment.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(feature = "hub")]
const INDEX: &str = "model.safetensors.index.json";

/// Whether a base needs this file, beside the parts of its weights: configuration, tokenizer, chat
/// templates.
#[cfg(feature = "hub")]
fn is_needed(file: &str) -> bool {
    const NAMES: [&str; 8] = [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors",
        INDEX,
    ];
    let template =
        file.strip_prefix("additional_chat_templates/").filter(|name| name.ends_with(".jinja"));
    NAMES.contains(&file) || template.is_some_and(is_plain)
}

/// The files that an index names, in the model's folder or below it. What is no name of such a file
/// is left to who opens the folder.
#[cfg(feature = "hub")]
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = read_limited(index, MAX_INDEX_BYTES)?;
    let Ok(Index { weight_map }) = from_json(&bytes) else { return Ok(BTreeSet::new()) };
    let is_shard = |file: &String| file.ends_with(".safetensors") && file.split('/').all(is_plain);
    Ok(weight_map.into_values().filter(is_shard).collect())
}

#[cfg(all(test, feature = "hub"))]
#[path = "hub_tests.rs"]
mod tests;
