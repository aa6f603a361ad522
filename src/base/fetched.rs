//! Where `scripts/fetch-base` puts the base of the demo and the tests, SmolLM2-135M-Instruct.

use std::path::PathBuf;

/// The file that the variable `PLEACH_SMOLLM2` names, or else the one in the cache folder: `PLEACH_CACHE`, or `pleach`
/// in the user's cache. It need not be there. `None` where the environment names no home.
pub fn fetched_smollm2() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let folder = || variable("PLEACH_CACHE").or_else(|| Some(cache()?.join("pleach")));
    variable("PLEACH_SMOLLM2").or_else(|| Some(folder()?.join("SmolLM2-135M-Instruct.Q4_1.gguf")))
}
