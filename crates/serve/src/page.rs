//! The page at `/`, the files that it loads, and the description of all routes, as they lie in the
//! program.

use axum::http::{HeaderName, HeaderValue, Uri, header};

use crate::app::no_such_route;
use crate::error::ApiError;

/// Where the page's files are, but the page itself.
pub(crate) const FOLDER: &str = "/page/";
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

/// `GET /page/{file}`
pub(crate) async fn file(address: Uri) -> Result<File, ApiError> {
    let (kind, text) = match address.path().strip_prefix(FOLDER).unwrap_or_default() {
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
        _ => return Err(no_such_route(address.path())),
    };
    Ok(sent(kind, text))
}

/// `GET /openapi.json`
pub(crate) async fn openapi() -> File {
    sent("application/json", include_str!("openapi.json"))
}
