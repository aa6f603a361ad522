//! Where files are kept that can be fetched or made again.

use std::path::PathBuf;

/// What a variable of the environment names, if it is set and not empty.
pub(crate) fn folder_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The cache folder: `PLEACH_CACHE`, or `pleach` in the user's cache. `None` where the environment
/// names no home.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let cache = || {
        folder_variable("XDG_CACHE_HOME").or_else(|| Some(folder_variable("HOME")?.join(".cache")))
    };
    folder_variable("PLEACH_CACHE").or_else(|| Some(cache()?.join("pleach")))
}
