//! The page at `/`, the files that it loads, and the description of all routes, as they lie in the
//! program.

use axum::http::{HeaderName, HeaderValue, Uri, header};

use crate::app::no_such_route;
use crate::error::ApiError;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

type File = ([(HeaderName, HeaderValue); 1], &'static str);

fn sent(kind: &'static str, text: &'static str) -> File {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text)
}

/// `GET /`
pub(crate) async fn html() -> File {
    sent(HTML, include_str!("page/page.html"))
}

/// A file that the page loads, by its path.
fn found(path: &str) -> Option<File> {
    let (kind, text) = match path.strip_prefix("/page/")? {
        "page.css" => (STYLE, include_str!("page/page.css")),
        "main.js" => (SCRIPT, include_str!("page/main.js")),
        "call.js" => (SCRIPT, include_str!("page/call.js")),
        "dom.js" => (SCRIPT, include_str!("page/dom.js")),
        "known.js" => (SCRIPT, include_str!("page/known.js")),
        "load.js" => (SCRIPT, include_str!("page/load.js")),
        "node.js" => (SCRIPT, include_str!("page/node.js")),
        "path.js" => (SCRIPT, include_str!("page/path.js")),
        "tree.js" => (SCRIPT, include_str!("page/tree.js")),
        "try.js" => (SCRIPT, include_str!("page/try.js")),
        _ => return None,
    };
    Some(sent(kind, text))
}

/// Whether there is such a file.
pub(crate) fn is_file(path: &str) -> bool {
    found(path).is_some()
}

/// `GET /page/{file}`
pub(crate) async fn file(address: Uri) -> Result<File, ApiError> {
    found(address.path()).ok_or_else(|| no_such_route(address.path()))
}

/// `GET /openapi.json`
pub(crate) async fn openapi() -> File {
    sent("application/json", include_str!("openapi.json"))
}
