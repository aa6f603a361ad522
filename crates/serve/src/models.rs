//! The tree as a list of models.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use pleach::NodeVersion;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::app::App;
use crate::body::{self, Params};
use crate::error::ApiError;

/// Models of a page where the client does not say, and at most.
const PAGE: usize = 1000;

#[derive(Deserialize)]
pub(crate) struct Listing {
    parent: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/models`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Params(asked): Params<Listing>,
) -> Result<Json<Value>, ApiError> {
    let listed = app.blocking(move |app| {
        let limit = page_limit(asked.limit)?;
        let (mut names, has_more) = match &asked.parent {
            Some(parent) => app.children_seen(&caller, parent, asked.after.as_deref(), limit)?,
            None if asked.after.is_some() => {
                return Err(ApiError::bad(
                    "after",
                    "after needs parent: its children are in order of name",
                ));
            }
            None => app.top(&caller, limit)?,
        };
        let models: Vec<Value> =
            names.drain(..).filter_map(|name| app.model(&caller, &name)).collect();
        Ok(json!({"object": "list", "data": models, "has_more": has_more}))
    });
    Ok(Json(listed.await?))
}

/// `GET /v1/models/{id}`
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let id = request.uri().path().strip_prefix("/v1/models/").unwrap_or_default();
    let id = body::decoded(id)?;
    let found = app.blocking(move |app| {
        let version = app.version(&caller, &id)?;
        Ok(app.of_version(&caller, &version))
    });
    Ok(Json(found.await?))
}

/// How many entries of a list are wanted.
pub(crate) fn page_limit(asked: Option<usize>) -> Result<usize, ApiError> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=PAGE => Ok(limit),
        limit => Err(ApiError::bad("limit", format!("limit is {limit}; 1 to {PAGE} is expected"))),
    }
}

impl App {
    /// Children of a node that the caller sees, those after `after`, and whether there are more.
    pub(crate) fn children_seen(
        &self,
        caller: &Caller,
        parent: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<String>, bool), ApiError> {
        let node = self.node(caller, parent)?;
        let found = self.seen_among_children(caller, &node, after, limit + 1);
        let mut names = found.map_err(|error| self.of_lookup(caller, parent, error))?;
        let has_more = names.len() > limit;
        names.truncate(limit);
        Ok((names, has_more))
    }

    /// The first `most` of them. Others' children, which may be very many, are not walked through:
    /// the names below a node lie together.
    fn seen_among_children(
        &self,
        caller: &Caller,
        node: &str,
        after: Option<&str>,
        most: usize,
    ) -> pleach::Result<Vec<String>> {
        if caller.sees_all() {
            return self.engine.children(node, after, most);
        }
        let mut names = Vec::new();
        for top in caller.tops() {
            let below = format!("{top}/");
            let from = after.filter(|after| **after > *below).unwrap_or(&below);
            let found = self.engine.children(node, Some(from), most)?;
            names.extend(found.into_iter().take_while(|name| name.starts_with(&below)));
            if after.is_none_or(|after| *after < *top) && self.hangs_under(&top, node) {
                names.push(top);
            }
        }
        names.sort_unstable();
        names.truncate(most);
        Ok(names)
    }

    fn hangs_under(&self, name: &str, node: &str) -> bool {
        let version = self.engine.version(name);
        version.is_ok_and(|version| {
            version.parent().is_some_and(|parent| parent.name().trim_matches('/') == node)
        })
    }

    /// Whether a node has children that the caller sees.
    pub(crate) fn has_children(&self, caller: &Caller, node: &str) -> bool {
        self.seen_among_children(caller, node, None, 1).is_ok_and(|names| !names.is_empty())
    }

    /// The nodes from the top down that the caller sees, level by level, and whether there are more.
    fn top(&self, caller: &Caller, limit: usize) -> Result<(Vec<String>, bool), ApiError> {
        let mut queue: VecDeque<String> = caller.tops().into();
        let mut names = Vec::new();
        while let Some(name) = queue.pop_front() {
            if names.len() == limit {
                return Ok((names, true));
            }
            let left = limit + 1 - names.len();
            if queue.len() < left {
                match self.children_seen(caller, &name, None, left) {
                    Ok((children, _)) => queue.extend(children),
                    // A key may be for a subtree that nobody has published yet.
                    Err(error) if error.status == 404 => continue,
                    Err(error) => return Err(error),
                }
            }
            names.push(name);
        }
        Ok((names, false))
    }

    /// A node as a model; nothing if it is gone since it was listed.
    fn model(&self, caller: &Caller, name: &str) -> Option<Value> {
        let version = self.engine.version(name).ok()?;
        Some(self.of_version(caller, &version))
    }

    fn of_version(&self, caller: &Caller, version: &NodeVersion) -> Value {
        let name = version.name().trim_matches('/');
        let id = self.id(name);
        let parent = version.parent().map(NodeVersion::name).filter(|parent| {
            let parent = parent.trim_matches('/');
            caller.sees(parent)
        });
        let published = self.engine.store().and_then(|store| store.get(name).ok());
        let created = published.map_or(self.created, |node| node.version.created_ms / 1000);
        let permission = json!([{"id": format!("modelperm-{id}"), "object": "model_permission",
            "created": created, "allow_create_engine": false, "allow_sampling": true,
            "allow_logprobs": true, "allow_search_indices": false, "allow_view": true,
            "allow_fine_tuning": false, "organization": "*", "group": null, "is_blocking": false}]);
        json!({"id": id, "object": "model", "created": created, "owned_by": "pleach",
            "root": self.base_name, "parent": parent.map(|parent| self.id(parent)),
            "max_model_len": self.context(), "permission": permission,
            "children": self.has_children(caller, name)})
    }
}
