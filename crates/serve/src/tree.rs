//! The tree's nodes: what they are, and changes to them. In these routes a node is one segment of
//! the path, its slashes written `%2F`, or plain; a plain path that ends in `children`, `history`,
//! `move` or `rollback` is that question about the node before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jiff::Timestamp;
use pleach::store::{Changes, Version};
use pleach::{Store, StoreNode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::access::Caller;
use crate::adapters::{Origin, Publish};
use crate::app::App;
use crate::body::{self, Params};
use crate::error::ApiError;
use crate::models::page_limit;

const PREFIX: &str = "/v1/tree/nodes/";
/// Files of a PEFT adapter, which are what is uploaded.
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// Longest field of an upload that is no file, in bytes.
const MAX_FIELD_BYTES: usize = 64 << 10;

/// What is asked about a node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum About {
    Itself,
    Children,
    History,
    Move,
    Rollback,
}

/// Which node a path means, and what about it.
fn target(path: &str) -> Result<(String, About), ApiError> {
    let rest = path.strip_prefix(PREFIX).unwrap_or_default();
    let questions = [
        ("/children", About::Children),
        ("/history", About::History),
        ("/move", About::Move),
        ("/rollback", About::Rollback),
    ];
    let asked = questions.iter().find_map(|(end, about)| Some((rest.strip_suffix(end)?, *about)));
    let (node, about) = asked.unwrap_or((rest, About::Itself));
    Ok((body::decoded(node)?, about))
}

fn no_such_question(about: About) -> ApiError {
    let allow = match about {
        About::Itself => "GET,HEAD,PUT,DELETE",
        About::Children | About::History => "GET,HEAD",
        About::Move | About::Rollback => "POST",
    };
    let error = ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "This method is not for this path; GET /openapi.json lists all",
    );
    ApiError { allow: Some(allow), ..error }
}

#[derive(Deserialize)]
pub(crate) struct Paging {
    after: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/tree/nodes/{path}`, `…/children`, `…/history`
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Params(paging): Params<Paging>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (node, about) = target(request.uri().path())?;
    let answer = app.blocking(move |app| match about {
        About::Itself => {
            let version = app.version(&caller, &node)?;
            Ok(app.described(&caller, version.name()))
        }
        About::Children => children(app, &caller, &node, &paging),
        About::History => history(app, &caller, &node),
        About::Move | About::Rollback => Err(no_such_question(about)),
    });
    Ok(Json(answer.await?))
}

/// `GET /v1/tree/children`: those of the root, or the tops of what a key sees.
pub(crate) async fn root_children(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Params(paging): Params<Paging>,
) -> Result<Json<Value>, ApiError> {
    let answer = app.blocking(move |app| {
        if caller.sees_all() {
            return children(app, &caller, "/", &paging);
        }
        let tops = caller.tops();
        let there = tops.iter().filter(|name| app.engine.version(name).is_ok());
        let nodes: Vec<Value> = there.map(|name| app.described(&caller, name)).collect();
        Ok(json!({"node": "/", "children": nodes, "has_more": false}))
    });
    Ok(Json(answer.await?))
}

fn children(app: &App, caller: &Caller, node: &str, paging: &Paging) -> Result<Value, ApiError> {
    let limit = page_limit(paging.limit)?;
    let (names, has_more) = app.children_seen(caller, node, paging.after.as_deref(), limit)?;
    let nodes: Vec<Value> = names.iter().map(|name| app.described(caller, name)).collect();
    let name = app.node(caller, node)?;
    let name = if name.is_empty() { "/" } else { &name };
    Ok(json!({"node": name, "children": nodes, "has_more": has_more}))
}

fn history(app: &App, caller: &Caller, node: &str) -> Result<Value, ApiError> {
    let (store, name) = (app.store()?, app.node(caller, node)?);
    let past = store.history(&name).map_err(|error| app.of_lookup(caller, node, error))?;
    let versions = past.into_iter().map(|past| {
        let mut version = of_store(&past.version);
        version["node"] = json!(name);
        let parent = name_of(&past.version.parent);
        version["parent"] = json!(seen_parent(caller, Some(parent)));
        version["ending"] = json!(past.ending);
        version["ended"] = json!(past.ended);
        version
    });
    Ok(json!({"node": name, "versions": versions.collect::<Vec<_>>()}))
}

/// What a store says of a node.
fn of_store(version: &Version) -> Value {
    let created = i64::try_from(version.created_ms / 1000).ok();
    let created = created.and_then(|seconds| Timestamp::from_second(seconds).ok());
    json!({"generation": version.generation, "content_generation": version.content_generation,
        "trained_on": version.trained_on, "kind": version.kind, "ranks": version.ranks,
        "matrices": version.matrices, "bytes": version.location.length,
        "created": created.map(|date| date.to_string()), "labels": version.labels})
}

impl App {
    /// The store, which alone can be changed.
    pub(crate) fn store(&self) -> Result<&Store, ApiError> {
        self.engine.store().ok_or_else(|| {
            let message = "This server serves a folder, which is not changed while it is served; make a store of it with `pleach store import`";
            ApiError::new(StatusCode::CONFLICT, message).code("not_a_store")
        })
    }

    /// A node that the caller sees, with what is live of it.
    fn described(&self, caller: &Caller, name: &str) -> Value {
        let name = name.trim_matches('/');
        let version = self.engine.version(name).ok();
        let stored: Option<StoreNode> = self.engine.store().and_then(|store| store.get(name).ok());
        let mut node = match &stored {
            Some(stored) => of_store(&stored.version),
            None => json!({"generation": null, "content_generation": null, "trained_on": null,
                "kind": null, "ranks": [], "matrices": null, "bytes": null, "created": null, "labels": {}}),
        };
        let parent =
            version.as_ref().and_then(|version| version.parent()).map(|parent| parent.name());
        let at = self.flights.by_node().get(name_of(name)).copied().unwrap_or_default();
        let has_children = self.has_children(caller, name);
        node["node"] = json!(name_of(name));
        node["parent"] = json!(seen_parent(caller, parent));
        node["state"] = json!({
            "loaded": version.is_some_and(|version| self.engine.is_loaded(&version)),
            "weights_here": self.engine.status().node == name_of(name),
            "running": at.running, "waiting": at.waiting,
        });
        node["has_children"] = json!(has_children);
        node
    }

    /// Refuses a caller who may not change a node.
    pub(crate) fn check_may_change(&self, caller: &Caller, node: &str) -> Result<(), ApiError> {
        if caller.may_change(node) {
            return Ok(());
        }
        let message = match self.access.can_be_changed() {
            false => "Nothing may be changed here: start the server with PLEACH_ADMIN_TOKEN or --admin-token-file set, or with a key that has `change`".to_owned(),
            true => format!(
                "This key may not change {node}: that needs the token of PLEACH_ADMIN_TOKEN or --admin-token-file, or a key with `change`; ask whoever runs the server"
            ),
        };
        Err(ApiError::new(StatusCode::FORBIDDEN, message))
    }
}

/// What a node hangs under, if the caller may know it.
fn seen_parent<'a>(caller: &Caller, parent: Option<&'a str>) -> Option<&'a str> {
    parent.filter(|parent| caller.sees(parent.trim_matches('/')))
}

/// The root is `/`.
fn name_of(name: &str) -> &str {
    if name.is_empty() { "/" } else { name }
}

/// What the body of a publication says beside its files.
#[derive(Default, Deserialize)]
struct Publication {
    path: Option<String>,
    parent: Option<String>,
    trained_on: Option<u64>,
    expected_generation: Option<u64>,
    labels: Option<BTreeMap<String, String>>,
}

/// `PUT /v1/tree/nodes/{path}`
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let caller = Caller::of(&parts);
    let (node, about) = target(parts.uri.path())?;
    if about != About::Itself {
        return Err(no_such_question(about));
    }
    let node = app.node_to_change(&caller, &node)?;
    app.store()?;
    let permit = app.take_publishing()?;
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let (said, origin) = if kind.is_some_and(|kind| kind.starts_with("multipart/form-data")) {
        let upload = upload(&app, Request::from_parts(parts.clone(), body));
        let wait = app.bounds.upload_wait;
        let uploaded = tokio::time::timeout(wait, upload).await.map_err(|_| {
            let message = format!("The upload took longer than {} s", wait.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        uploaded?
    } else {
        let value = body::json(&app.bounds, &parts.headers, body).await?;
        let said: Publication = body::fields(value)?;
        let Some(path) = said.path.clone() else {
            return Err(ApiError::bad(
                "path",
                "path: a folder below the allowed root is expected, or the files as multipart/form-data",
            ));
        };
        (said, Origin::Path(path))
    };
    let Publication { parent, trained_on, expected_generation, labels, .. } = said;
    let expected = expected(&parts, expected_generation)?;
    let publish = Publish { node, origin, parent, trained_on, labels, expected };
    let published = app.blocking(move |app| {
        let published = app.publish(&caller, &publish);
        drop(permit);
        published
    });
    let published = published.await?;
    let status = if published.is_new { StatusCode::CREATED } else { StatusCode::OK };
    let body = json!({"node": published.node, "generation": published.generation,
        "bytes": published.bytes, "kept": published.kept, "remarks": published.remarks});
    Ok((status, Json(body)).into_response())
}

/// Takes the files of an upload into a folder of their own.
async fn upload(app: &App, request: Request) -> Result<(Publication, Origin), ApiError> {
    let broken = |error: axum::extract::multipart::MultipartError| {
        ApiError::new(StatusCode::BAD_REQUEST, format!("The upload: {}", error.body_text()))
    };
    let mut fields = Multipart::from_request(request, &()).await.map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, format!("The upload: {}", error.body_text()))
    })?;
    let folder = tempfile::tempdir()
        .map_err(|error| ApiError::failed(format!("an upload's folder: {error}")))?;
    let mut said = Publication::default();
    let mut left = app.bounds.upload_bytes;
    while let Some(mut field) = fields.next_field().await.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_owned();
        if FILES.contains(&&name[..]) {
            let unwritten = |error: std::io::Error| ApiError::failed(format!("an upload: {error}"));
            let path = folder.path().join(&name);
            let mut file =
                tokio::fs::File::create_new(&path).await.map_err(|error| match error.kind() {
                    std::io::ErrorKind::AlreadyExists => {
                        ApiError::bad(&name, format!("{name} is there twice"))
                    }
                    _ => unwritten(error),
                })?;
            while let Some(bytes) = field.chunk().await.map_err(broken)? {
                left = left.checked_sub(bytes.len() as u64).ok_or_else(|| too_large(app))?;
                file.write_all(&bytes).await.map_err(unwritten)?;
            }
            file.flush().await.map_err(unwritten)?;
            continue;
        }
        let mut text = Vec::new();
        while let Some(bytes) = field.chunk().await.map_err(broken)? {
            if text.len() + bytes.len() > MAX_FIELD_BYTES {
                return Err(too_large(app));
            }
            text.extend_from_slice(&bytes);
        }
        let text = String::from_utf8(text)
            .map_err(|_| ApiError::bad(&name, format!("{name} is not UTF-8")))?;
        let number = || {
            text.trim().parse().map_err(|_| {
                ApiError::bad(&name, format!("{name} is {text:?}; a number is expected"))
            })
        };
        match &name[..] {
            "parent" => said.parent = Some(text),
            "trained_on" => said.trained_on = Some(number()?),
            "expected_generation" => said.expected_generation = Some(number()?),
            "labels" => {
                let labels = serde_json::from_str(&text);
                said.labels = Some(
                    labels.map_err(|error| ApiError::bad("labels", format!("labels: {error}")))?,
                );
            }
            _ => {
                let expected = "adapter_config.json, adapter_model.safetensors, parent, trained_on, expected_generation or labels is expected";
                return Err(ApiError::bad(&name, format!("{name:?}: {expected}")));
            }
        }
    }
    if let Some(missing) = FILES.iter().find(|name| !folder.path().join(name).exists()) {
        return Err(ApiError::bad(
            missing,
            format!("{missing} is missing; an adapter is its two files"),
        ));
    }
    Ok((said, Origin::Uploaded(folder)))
}

fn too_large(app: &App) -> ApiError {
    let message =
        format!("The upload has more than the {} bytes that are taken", app.bounds.upload_bytes);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// In which generation a node has to be to be changed: 0 if it must not be there.
fn expected(parts: &Parts, said: Option<u64>) -> Result<Option<u64>, ApiError> {
    let header = |name| {
        let value = parts.headers.get(name).map(|value| value.to_str().unwrap_or_default());
        value.map(|value| value.trim().trim_matches('"').to_owned())
    };
    if let Some(value) = header(header::IF_NONE_MATCH) {
        return match &value[..] {
            "*" => Ok(Some(0)),
            _ => Err(ApiError::bad("If-None-Match", "If-None-Match: only * is done")),
        };
    }
    let matched = header(header::IF_MATCH).map(|value| {
        value.parse().map_err(|_| {
            ApiError::bad("If-Match", format!("If-Match is {value:?}; a generation is expected"))
        })
    });
    match (matched.transpose()?, said) {
        (Some(header), Some(said)) if header != said => Err(ApiError::bad(
            "expected_generation",
            "expected_generation and If-Match say two things",
        )),
        (header, said) => Ok(header.or(said)),
    }
}

#[derive(Deserialize)]
pub(crate) struct Removal {
    recursive: Option<bool>,
    expected_generation: Option<u64>,
}

/// `DELETE /v1/tree/nodes/{path}`
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Params(asked): Params<Removal>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (parts, _) = request.into_parts();
    let (node, about) = target(parts.uri.path())?;
    if about != About::Itself {
        return Err(no_such_question(about));
    }
    let node = app.node_to_change(&caller, &node)?;
    let expected = expected(&parts, asked.expected_generation)?;
    let recursive = asked.recursive.unwrap_or(false);
    let answer = app.blocking(move |app| {
        let generation = app.remove(&caller, &node, recursive, expected)?;
        Ok(json!({"node": node, "generation": generation}))
    });
    Ok(Json(answer.await?))
}

#[derive(Deserialize)]
struct Moving {
    target: String,
    expected_generation: Option<u64>,
}

#[derive(Deserialize)]
struct Rolling {
    generation: u64,
    expected_generation: Option<u64>,
}

/// `POST /v1/tree/nodes/{path}/move`, `…/rollback`
pub(crate) async fn post(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (parts, body) = request.into_parts();
    let caller = Caller::of(&parts);
    let (node, about) = target(parts.uri.path())?;
    if !matches!(about, About::Move | About::Rollback) {
        return Err(no_such_question(about));
    }
    let node = app.node_to_change(&caller, &node)?;
    let value = body::json(&app.bounds, &parts.headers, body).await?;
    let mut changes = Changes::new();
    let name = if about == About::Move {
        let Moving { target, expected_generation } = body::fields(value)?;
        let target = app.node_to_change(&caller, &target).map_err(|error| error.param("target"))?;
        changes.move_to(&node, &target, expected(&parts, expected_generation)?);
        target
    } else {
        let Rolling { generation, expected_generation } = body::fields(value)?;
        changes.rollback(&node, generation, expected(&parts, expected_generation)?);
        node
    };
    let permit = app.take_publishing()?;
    let answer = app.blocking(move |app| {
        let made = app.change(&caller, &name, &changes);
        drop(permit);
        Ok(json!({"node": name, "generation": made?}))
    });
    Ok(Json(answer.await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_means_a_node_and_what_is_asked_about_it() {
        let of = |rest: &str| target(&format!("{PREFIX}{rest}")).unwrap();
        let cases = [
            ("fr/x", "fr/x", About::Itself),
            ("fr%2Fx", "fr/x", About::Itself),
            ("fr/x/history", "fr/x", About::History),
            ("fr%2Fhistory", "fr/history", About::Itself),
            ("fr%2Fmove/move", "fr/move", About::Move),
            ("a%20b/children", "a b", About::Children),
            ("x/rollback", "x", About::Rollback),
            ("history", "history", About::Itself),
        ];
        for (rest, node, about) in cases {
            assert_eq!(of(rest), (node.to_owned(), about), "{rest}");
        }
        assert_eq!(target(&format!("{PREFIX}%ff")).unwrap_err().status, 400);
    }

    #[test]
    fn what_is_expected_is_said_once() {
        let parts = |name: header::HeaderName, value: &'static str| {
            let request = Request::builder().header(name, value).body(axum::body::Body::empty());
            request.unwrap().into_parts().0
        };
        assert_eq!(expected(&parts(header::IF_MATCH, "\"7\""), None).unwrap(), Some(7));
        assert_eq!(expected(&parts(header::IF_MATCH, "7"), Some(7)).unwrap(), Some(7));
        assert!(expected(&parts(header::IF_MATCH, "7"), Some(8)).is_err());
        assert!(expected(&parts(header::IF_MATCH, "x"), None).is_err());
        assert_eq!(expected(&parts(header::IF_NONE_MATCH, "*"), None).unwrap(), Some(0));
        assert_eq!(expected(&parts(header::HOST, "x"), Some(3)).unwrap(), Some(3));
    }
}
