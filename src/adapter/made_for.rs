//! Which base an adapter's config names.

use std::path::Path;

use super::{CONFIG_FILE, Limits};
use crate::base::is_published;
use crate::file::{from_json, read_limited};

/// The `base_model_name_or_path` of the config in `folder`, if it is a name that is published:
/// `ORG/NAME`. Whether the config is right is for others to say.
pub(crate) fn published_base(folder: &Path, limits: &Limits) -> Option<String> {
    let config = read_limited(&folder.join(CONFIG_FILE), limits.config_bytes).ok()?;
    let config: serde_json::Value = from_json(&config).ok()?;
    let name = config.get("base_model_name_or_path")?.as_str()?;
    is_published(name).then(|| name.to_owned())
}
