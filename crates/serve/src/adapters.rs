//! Changes to a store that is served, and vLLM's two routes for them. What a change returns from is
//! on disk.

use std::collections::BTreeMap;
use std::fs::DirEntry;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use pleach::Store;
use pleach::lattice::Kept;
use pleach::store::{Changes, Details};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::sync::OwnedSemaphorePermit;

use crate::access::Caller;
use crate::app::App;
use crate::body;
use crate::error::ApiError;

/// Children looked at in one go.
const PAGE: usize = 1000;

/// Where an adapter's files are.
pub(crate) enum Origin {
    /// As a client has sent them.
    Uploaded(TempDir),
    /// On the server, as the client calls the place.
    Path(String),
}

/// An adapter to be published.
pub(crate) struct Publish {
    pub(crate) node: String,
    pub(crate) origin: Origin,
    pub(crate) parent: Option<String>,
    pub(crate) trained_on: Option<u64>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// The generation its node has to be in; 0 if it must not be there.
    pub(crate) expected: Option<u64>,
}

/// An adapter that was published.
pub(crate) struct Published {
    pub(crate) node: String,
    pub(crate) generation: u64,
    pub(crate) is_new: bool,
    pub(crate) bytes: u64,
    pub(crate) kept: Option<f64>,
    pub(crate) remarks: Vec<String>,
}

impl App {
    /// The node that a name means, which the caller may change.
    pub(crate) fn node_to_change(&self, caller: &Caller, name: &str) -> Result<String, ApiError> {
        // Whoever may not change it need not hear whether it is there.
        let node = self.node(caller, name).or_else(|error| {
            self.check_may_change(caller, name.trim_matches('/')).and(Err(error))
        })?;
        self.check_may_change(caller, &node)?;
        Ok(node)
    }

    /// Leave to compile: few at once, since each takes memory and a thread.
    pub(crate) fn take_publishing(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.publishing.clone().try_acquire_owned().map_err(|_| {
            let message = "Other adapters are being published; try again";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
                .code("lora_load_busy")
                .retry_after(1)
        })
    }

    /// Compiles an adapter, checks that it and all below it fit, and publishes it.
    pub(crate) fn publish(
        &self,
        caller: &Caller,
        publish: &Publish,
    ) -> Result<Published, ApiError> {
        let store = self.store()?;
        let Publish { node, origin, parent, trained_on, labels, expected } = publish;
        self.check_is_no_base(node)?;
        let parent = parent.as_deref().map(|parent| self.node(caller, parent));
        let parent = parent.transpose().map_err(|error| {
            ApiError::bad("parent", error.message.replacen("The model", "The parent", 1))
        })?;
        let folder = match origin {
            Origin::Uploaded(folder) => folder.path().to_owned(),
            Origin::Path(path) => self.allowed(path)?,
        };
        let compiled =
            store.compile_adapter(&folder, Some(self.engine.base()), &self.limits, false);
        let content = compiled.map_err(|error| without_folder(caller, error, &folder))?;
        let (bytes, kept) = (content.bytes(), content.kept().and_then(Kept::share));
        let remarks = content.remarks().to_vec();
        let details = Details {
            parent: parent.map(|parent| if parent.is_empty() { "/".to_owned() } else { parent }),
            trained_on: *trained_on,
            labels: labels.clone(),
        };
        let is_there = store.get(node).is_ok();
        let is_new = match expected {
            Some(generation) => *generation == 0,
            None => !is_there,
        };
        let mut changes = Changes::new();
        if is_new {
            changes.publish(node, content, details);
        } else {
            changes.replace(node, content, details, *expected);
        }
        let generation = self.change(caller, node, &changes)?;
        Ok(Published { node: node.clone(), generation, is_new, bytes, kept, remarks })
    }

    /// Makes changes of `node` after looking whether all that hangs below it can still be reached.
    pub(crate) fn change(
        &self,
        caller: &Caller,
        node: &str,
        changes: &Changes,
    ) -> Result<u64, ApiError> {
        let told = |error| ApiError::of_change(caller, error);
        let store = self.store()?;
        let report = store.check_fits(changes, Some(self.engine.base()), true, |_, _| ());
        let report = report.map_err(told)?;
        if let Some(refusal) = store.unreachable(node, &report) {
            return Err(told(refusal));
        }
        let generations = store.apply(changes).map_err(told)?;
        Ok(generations[0])
    }

    /// Removes a node, with `recursive` also what hangs below it, all of which the caller may change.
    pub(crate) fn remove(
        &self,
        caller: &Caller,
        node: &str,
        recursive: bool,
        expected: Option<u64>,
    ) -> Result<u64, ApiError> {
        let store = self.store()?;
        if recursive {
            self.check_all_below(store, caller, node)?;
        }
        let removed = store.remove(node, recursive, expected);
        removed.map_err(|error| ApiError::of_change(caller, error))
    }

    /// What hangs below a node may be called otherwise, and be another's.
    fn check_all_below(&self, store: &Store, caller: &Caller, node: &str) -> Result<(), ApiError> {
        let mut left = vec![node.to_owned()];
        while let Some(name) = left.pop() {
            if !caller.may_change(&name) {
                // Whose that is, and what it is called, is not said.
                let message = format!(
                    "Below {node} hang nodes that this key may not change; ask whoever runs the server"
                );
                return Err(ApiError::new(StatusCode::FORBIDDEN, message));
            }
            let mut after: Option<String> = None;
            loop {
                let page = store.children(&name, after.as_deref(), PAGE);
                let page = page.map_err(|error| ApiError::of_change(caller, error))?;
                let Some(last) = page.last().cloned() else { break };
                after = Some(last);
                left.extend(page);
            }
        }
        Ok(())
    }

    /// The base's own name, and what follows it, mean the base and nodes without it.
    fn check_is_no_base(&self, node: &str) -> Result<(), ApiError> {
        let rest = node.strip_prefix(&self.base_name);
        if node.is_empty()
            || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':']))
        {
            let name = if node.is_empty() { "/" } else { node };
            let message = format!("The lora adapter '{name}' conflicts with a served base model.");
            return Err(invalid(message));
        }
        Ok(())
    }

    /// The folder that `path` means, if it lies below the allowed root.
    fn allowed(&self, path: &str) -> Result<PathBuf, ApiError> {
        let forbidden = |message: &str| {
            Err(ApiError::new(StatusCode::FORBIDDEN, message)
                .param("path")
                .code("adapter_path_forbidden"))
        };
        let Some(root) = &self.adapter_root else {
            return forbidden(
                "No paths of the server are read: start it with --adapter-root FOLDER, or upload the files",
            );
        };
        let outside = "The path lies outside the folder that --adapter-root allows";
        let asked = Path::new(path);
        if asked.components().any(|part| part == Component::ParentDir)
            || (asked.is_absolute() && !asked.starts_with(root))
        {
            return forbidden(outside);
        }
        let Ok(found) = root.join(asked).canonicalize() else {
            let message = format!("No adapter found for {path}");
            return Err(ApiError::new(StatusCode::NOT_FOUND, message).param("path"));
        };
        // A link may lead out of it, and so may one in the folder.
        if !found.starts_with(root) {
            return forbidden(outside);
        }
        let is_inside = |entry: std::io::Result<DirEntry>| {
            let place = entry.and_then(|entry| entry.path().canonicalize());
            place.is_ok_and(|place| place.starts_with(root))
        };
        let are_inside =
            std::fs::read_dir(&found).map_or(true, |mut entries| entries.all(is_inside));
        if are_inside { Ok(found) } else { forbidden(outside) }
    }
}

/// What vLLM calls so.
fn invalid(message: impl Into<String>) -> ApiError {
    let error = ApiError::new(StatusCode::BAD_REQUEST, message);
    ApiError { kind: Some("InvalidUserInput"), ..error }
}

/// What is wrong with an adapter, without where it lies here.
fn without_folder(caller: &Caller, error: pleach::Error, folder: &Path) -> ApiError {
    let mut error = ApiError::of_change(caller, error);
    let shown = folder.display().to_string();
    error.message = error.message.replace(&format!("{shown}/"), "").replace(&shown, "");
    error
}

#[derive(Deserialize)]
struct Load {
    lora_name: String,
    lora_path: String,
    load_inplace: Option<bool>,
    expected_generation: Option<u64>,
}

#[derive(Deserialize)]
struct Unload {
    lora_name: String,
    expected_generation: Option<u64>,
}

/// Reads the body of one who may change something.
async fn read<T: serde::de::DeserializeOwned>(
    app: &App,
    request: Request,
) -> Result<(Caller, T), ApiError> {
    let (parts, body) = request.into_parts();
    let caller = Caller::of(&parts);
    if !caller.may_change_something() {
        app.check_may_change(&caller, "anything")?;
    }
    let value = body::json(&app.bounds, &parts.headers, body).await?;
    Ok((caller, body::fields(value)?))
}

/// `POST /v1/load_lora_adapter`
pub(crate) async fn load(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<String, ApiError> {
    let (caller, asked): (_, Load) = read(&app, request).await?;
    let Load { lora_name, lora_path, load_inplace, expected_generation } = asked;
    if lora_name.is_empty() || lora_path.is_empty() {
        return Err(invalid("Both 'lora_name' and 'lora_path' must be provided."));
    }
    app.check_is_no_base(lora_name.trim_matches('/'))?;
    let node = app.node_to_change(&caller, &lora_name)?;
    let permit = app.take_publishing()?;
    let in_place = load_inplace.unwrap_or(false);
    let said = lora_name.clone();
    let published = app.blocking(move |app| {
        let _permit = permit;
        if !in_place && app.store()?.get(&node).is_ok() {
            return Err(invalid(format!(
                "The lora adapter '{lora_name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
            )));
        }
        let expected = if in_place { expected_generation } else { Some(0) };
        let (parent, trained_on, labels) = (None, None, None);
        let origin = Origin::Path(lora_path);
        app.publish(&caller, &Publish { node, origin, parent, trained_on, labels, expected })
    });
    published.await.map_err(|error| {
        let is_path = error.param.as_deref() == Some("path");
        if is_path { error.param("lora_path") } else { error }
    })?;
    Ok(format!("Success: LoRA adapter '{said}' added successfully."))
}

/// `POST /v1/unload_lora_adapter`
pub(crate) async fn unload(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<String, ApiError> {
    let (caller, asked): (_, Unload) = read(&app, request).await?;
    let Unload { lora_name, expected_generation } = asked;
    let node = app.node_to_change(&caller, &lora_name)?;
    let said = lora_name.clone();
    let removed = app.blocking(move |app| {
        let removed = app.remove(&caller, &node, false, expected_generation);
        removed.map_err(|error| match error.status {
            StatusCode::NOT_FOUND => {
                let message = format!("The lora adapter '{lora_name}' cannot be found.");
                ApiError::new(StatusCode::NOT_FOUND, message)
            }
            _ => error,
        })
    });
    removed.await?;
    Ok(format!("Success: LoRA adapter '{said}' removed successfully."))
}
