//! Where `scripts/fetch-base` puts the base of the demo and the tests, SmolLM2-135M-Instruct.

use std::path::PathBuf;

use crate::file::{cache_folder, folder_variable};

/// The file that the variable `PLEACH_SMOLLM2` names, or else the one in the cache folder:
/// `PLEACH_CACHE`, or `pleach` in the user's cache. It need not be there. `None` where the
/// environment names no home.
pub fn fetched_smollm2() -> Option<PathBuf> {
    folder_variable("PLEACH_SMOLLM2")
        .or_else(|| Some(cache_folder()?.join("SmolLM2-135M-Instruct.Q4_1.gguf")))
}
