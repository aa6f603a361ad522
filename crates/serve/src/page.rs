//! The page at `/` and the description of all routes, as they lie in the program.

use axum::http::{HeaderName, HeaderValue, header};

type File = ([(HeaderName, HeaderValue); 1], &'static str);

fn file(kind: &'static str, text: &'static str) -> File {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text)
}

/// `GET /`
pub(crate) async fn html() -> File {
    file("text/html; charset=utf-8", include_str!("page/page.html"))
}

/// `GET /page.js`
pub(crate) async fn script() -> File {
    file("text/javascript; charset=utf-8", include_str!("page/page.js"))
}

/// `GET /page.css`
pub(crate) async fn style() -> File {
    file("text/css; charset=utf-8", include_str!("page/page.css"))
}

/// `GET /openapi.json`
pub(crate) async fn openapi() -> File {
    file("application/json", include_str!("openapi.json"))
}
