//! Names of models: a node's path; the base's name is the root.
//!
//! **Invariant:** a name means one node or none: what begins with the base's name is what follows
//! it, whatever nodes there are. No unknown name is ever served by the base.

use axum::http::StatusCode;
use pleach::error::{StoreDefect, TreeDefect};
use pleach::tree::normal;
use pleach::{Error, NodeVersion};

use crate::access::Caller;
use crate::app::App;
use crate::error::ApiError;

/// Longest name that is looked up, in bytes.
const MAX_NAME_BYTES: usize = 4096;

impl App {
    /// The node that `model` means for this caller, as nodes are called, the root empty; whether it
    /// is there is not looked at. What the caller may not see is refused as if it were not there.
    pub(crate) fn node(&self, caller: &Caller, model: &str) -> Result<String, ApiError> {
        if model.len() > MAX_NAME_BYTES {
            let message = format!("a name of {} bytes; no model's has more than 4096", model.len());
            return Err(ApiError::bad("model", message));
        }
        let path = model.strip_prefix(&self.base_name).map_or(Some(model), |rest| {
            let after = ["::", ":", "/"].into_iter().find_map(|mark| rest.strip_prefix(mark));
            if rest.is_empty() { Some("") } else { after.or(Some(model)) }
        });
        let node = normal(path.unwrap_or(model).trim_matches('/')).into_owned();
        if caller.sees(&node) { Ok(node) } else { Err(ApiError::no_model(model, &[])) }
    }

    /// What a client calls a node.
    pub(crate) fn id(&self, node: &str) -> String {
        match node.trim_matches('/') {
            "" => self.base_name.clone(),
            name => name.to_owned(),
        }
    }

    /// The version that a node has now, if the caller may see it.
    pub(crate) fn version(&self, caller: &Caller, model: &str) -> Result<NodeVersion, ApiError> {
        let node = self.node(caller, model)?;
        let found = self.engine.version(&node);
        found.map_err(|error| self.of_lookup(caller, model, error))
    }

    /// What is said of a name that was looked up and not found, or of what else went wrong: of names
    /// like it those that the caller sees.
    pub(crate) fn of_lookup(&self, caller: &Caller, model: &str, error: Error) -> ApiError {
        let defect = match &error {
            Error::Tree(defect) => defect,
            Error::Store { defect, .. } if names_unseen(caller, defect) => {
                let message = format!(
                    "The model `{model}` was trained on another version of what lies above it; ask whoever runs the server"
                );
                return ApiError::new(StatusCode::CONFLICT, message).param("model");
            }
            _ => return ApiError::of_text(error),
        };
        match &**defect {
            TreeDefect::UnknownNode { nearest, .. } => {
                let seen: Vec<String> =
                    nearest.iter().filter(|name| caller.sees(name)).cloned().collect();
                ApiError::no_model(model, &seen)
            }
            TreeDefect::Refused { .. } | TreeDefect::PassedOver { .. } => {
                let refusal = ApiError::no_model(model, &[]);
                ApiError { cause: Some(error.to_string().into()), ..refusal }
            }
            _ => ApiError::of_text(error),
        }
    }
}

/// Whether a node is stale, and saying so names one that the caller does not see.
fn names_unseen(caller: &Caller, defect: &StoreDefect) -> bool {
    let StoreDefect::Stale { name, parent, trained_under, .. } = defect else { return false };
    let mut names = [name, parent].into_iter().chain(trained_under);
    names.any(|name| !caller.sees(name.trim_matches('/')))
}
