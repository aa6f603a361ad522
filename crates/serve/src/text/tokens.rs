//! What tokens a text is, and what text tokens are, as vLLM has these routes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use pleach::Prompt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::params::messages;
use crate::access::Caller;
use crate::app::App;
use crate::body;
use crate::error::ApiError;

#[derive(Deserialize)]
struct Tokenize {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Value>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Deserialize)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// Reads a body and sees to it that its model is there.
async fn read<T: serde::de::DeserializeOwned>(
    app: &Arc<App>,
    request: Request,
    model: impl Fn(&T) -> Option<&str>,
) -> Result<T, ApiError> {
    let (parts, body) = request.into_parts();
    let caller = Caller::of(&parts);
    let value = body::json(&app.bounds, &parts.headers, body).await?;
    let asked: T = body::fields(value)?;
    let name = model(&asked).unwrap_or(&app.base_name).to_owned();
    app.blocking(move |app| app.version(&caller, &name).map(drop)).await?;
    Ok(asked)
}

/// `POST /tokenize`
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let asked: Tokenize = read(&app, request, |asked: &Tokenize| asked.model.as_deref()).await?;
    let answer = app.blocking(move |app| {
        let tokenizer = app.engine.tokenizer().map_err(ApiError::of_text)?;
        let ids = match (asked.prompt, &asked.messages) {
            (Some(text), None) => match asked.add_special_tokens.unwrap_or(true) {
                true => tokenizer.encode(&text),
                false => tokenizer.encode_rendered(&text),
            },
            (None, Some(_)) if asked.add_generation_prompt == Some(false) => {
                let message = "messages without the beginning of an answer are not done";
                return Err(ApiError::bad("add_generation_prompt", message));
            }
            (None, Some(turns)) => app.engine.encode(&Prompt::Chat(messages(Some(turns))?)),
            _ => return Err(ApiError::bad("prompt", "one of prompt and messages is expected")),
        };
        let ids = ids.map_err(ApiError::of_text)?;
        let text = |id: &u32| String::from_utf8_lossy(&tokenizer.token_bytes(*id)).into_owned();
        let texts = asked.return_token_strs.unwrap_or(false);
        let texts: Option<Vec<String>> = texts.then(|| ids.iter().map(text).collect());
        Ok(json!({"count": ids.len(), "max_model_len": app.context(), "tokens": ids, "token_strs": texts}))
    });
    Ok(Json(answer.await?))
}

/// `POST /detokenize`
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let asked: Detokenize =
        read(&app, request, |asked: &Detokenize| asked.model.as_deref()).await?;
    let answer = app.blocking(move |app| {
        let vocab_size = app.engine.base().config().vocab_size;
        if let Some(id) = asked.tokens.iter().find(|id| **id as usize >= vocab_size) {
            let message = format!("token {id} is outside the vocabulary of {vocab_size}");
            return Err(ApiError::bad("tokens", message));
        }
        let tokenizer = app.engine.tokenizer().map_err(ApiError::of_text)?;
        let text = tokenizer.decode(&asked.tokens).map_err(ApiError::of_text)?;
        Ok(json!({ "prompt": text }))
    });
    Ok(Json(answer.await?))
}
