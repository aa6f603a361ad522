//! Bodies of requests: read whole, within a limit and a time.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Bounds;
use crate::error::ApiError;

/// Reads a body of at most `limit` bytes within `wait`.
async fn read(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    wait: Duration,
) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("The body has more than the {limit} bytes that are read");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.and_then(|text| text.parse::<u64>().ok()).is_some_and(|length| length > limit as u64)
    {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(wait, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, "The body broke off before its end"))
        }
        Err(_) => {
            let message = format!("The body took longer than {} s to come", wait.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// What follows the question mark of a path.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let found = Query::<T>::try_from_uri(&parts.uri);
        found
            .map(|Query(found)| Self(found))
            .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.body_text()))
    }
}

/// A part of a path, its `%` decoded.
pub(crate) fn decoded(part: &str) -> Result<String, ApiError> {
    let text = percent_decode_str(part).decode_utf8();
    text.map(Cow::into_owned).map_err(|_| {
        ApiError::new(StatusCode::BAD_REQUEST, "The path is not UTF-8 once its % are decoded")
    })
}

/// Reads a body of a request that is no upload: a JSON object.
pub(crate) async fn json(
    bounds: &Bounds,
    headers: &HeaderMap,
    body: Body,
) -> Result<Value, ApiError> {
    let bytes = read(headers, body, bounds.body_bytes, bounds.body_wait).await?;
    object(headers, &bytes)
}

/// The JSON object in a body.
fn object(headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "Unsupported Media Type: Only 'application/json' is allowed";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, format!("The body is not valid JSON: {error}"))
    })?;
    if !value.is_object() {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "The body is not a JSON object"));
    }
    Ok(value)
}

/// What a JSON object says.
pub(crate) fn fields<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, why) = (error.path().to_string(), error.inner().to_string());
        let error = ApiError::new(StatusCode::BAD_REQUEST, format!("{path}: {why}"));
        // Of a field that is missing the path is the whole.
        if path == "." {
            let missing =
                why.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
            ApiError { param: missing.map(Box::from), message: why, ..error }
        } else {
            error.param(path)
        }
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Asked {
        #[serde(default)]
        n: Option<u32>,
    }

    fn parsed(kind: &'static str, body: &str) -> Result<Asked, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        fields(object(&headers, body.as_bytes())?)
    }

    #[test]
    fn what_is_no_object_of_known_types_is_refused_with_its_place() {
        let json = "application/json; charset=utf-8";
        assert_eq!(parsed(json, "{\"n\":3,\"other\":[1]}").unwrap().n, Some(3));
        assert_eq!(parsed(json, "{\"n\":null}").unwrap().n, None);
        let deep = format!("{{\"n\":{}1{}}}", "[".repeat(4000), "]".repeat(4000));
        for bad in ["", "[]", "3", "{\"n\":NaN}", "{\"n\":1", "\"n\"", "{\"n\":1e999}", &deep] {
            assert_eq!(parsed(json, bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad:.40}");
        }
        let error = parsed(json, "{\"n\":-1}").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("n"), "{error:?}");
        assert!(parsed("text/plain", "{}").is_err());
    }

    #[tokio::test]
    async fn a_body_longer_than_the_limit_is_refused_whatever_its_header_says() {
        let wait = Duration::from_secs(5);
        let read_of = |headers: HeaderMap| async move {
            read(&headers, Body::from("0123456789"), 9, wait).await.unwrap_err().status
        };
        assert_eq!(read_of(HeaderMap::new()).await, StatusCode::PAYLOAD_TOO_LARGE);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("99999999999999999999"));
        assert_eq!(read_of(headers).await, StatusCode::PAYLOAD_TOO_LARGE);
        let whole = read(&HeaderMap::new(), Body::from("0123456789"), 10, wait).await.unwrap();
        assert_eq!(whole.len(), 10);
    }
}
