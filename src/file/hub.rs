//! Models from the Hugging Face hub: `hf:ORG/NAME[@REVISION]` becomes a local folder.
//!
//! **Invariant:** nothing is downloaded unless a base is asked for by such a name, and never code or pickles: only the
//! configuration, the tokenizer and safetensors.
//!
//! **Source:** the hub client's cache layout; `HF_ENDPOINT` and `HF_HOME` say where from and where to.

use std::path::PathBuf;

#[cfg(feature = "hub")]
use hf_hub::api::sync::{ApiBuilder, ApiError};
#[cfg(feature = "hub")]
use hf_hub::{Repo, RepoType};

use crate::error::HubDefect;
use crate::{Error, Result};

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

    /// Downloads what a base needs, or finds it in the cache, and gives the folder.
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
        let repo = api.repo(Repo::with_revision(self.repo.clone(), RepoType::Model, self.revision.clone()));
        let get = |file: &str| repo.get(file).map_err(|e| self.error(file, &e));
        let config = get("config.json")?;
        let folder = config.parent().unwrap_or(&config).to_owned();
        match repo.info() {
            Ok(info) => {
                let files = info.siblings.iter().map(|file| file.rfilename.as_str());
                files.filter(|file| is_needed(file)).try_for_each(|file| get(file).map(drop))?;
            }
            // Off line, a complete model may be in the cache; opening the folder names what it lacks.
            Err(error) => tracing::warn!("{}: the hub does not answer ({error}); using the cache", self.repo),
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

/// Whether a base needs this file: configuration, tokenizer and safetensors in the model's own folder.
#[cfg(feature = "hub")]
fn is_needed(file: &str) -> bool {
    const NAMES: [&str; 6] = [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "model.safetensors.index.json",
    ];
    NAMES.contains(&file) || (is_plain(file) && file.starts_with("model-") && file.ends_with(".safetensors"))
}

#[cfg(all(test, feature = "hub"))]
#[path = "hub_tests.rs"]
mod tests;
