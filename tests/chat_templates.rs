//! A template that is rendered a little otherwise than in training is a prompt that the model never
//! saw, and nobody notices: escaped `<`, `None` for nothing, a lost line end.
//! `fixtures/text/chat.json` is what transformers 5.23 renders (`make_chat.py` there makes it):
//! every template of it renders the same text, every error is one.

use std::path::Path;

use pleach::base::BaseModel;
use pleach::error::ChatDefect;
use pleach::model::chat::{ChatTemplate, Message};
use pleach::testing::{TinyModel, tiny_hf_model};
use serde_json::{Value, json};

fn golden() -> Value {
    serde_json::from_str(include_str!("fixtures/text/chat.json")).unwrap()
}

fn messages(golden: &Value) -> Vec<Message> {
    serde_json::from_value(golden["messages"].clone()).unwrap()
}

/// The templates of a made base with these files.
fn open(dir: &Path, files: &Value) -> pleach::Result<ChatTemplate> {
    for (name, value) in files.as_object().unwrap() {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            .unwrap();
    }
    ChatTemplate::for_base(&BaseModel::open(dir).unwrap())
}

fn made() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    std::fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    dir
}

#[test]
fn every_template_renders_as_in_transformers() {
    let (golden, dir) = (golden(), made());
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in golden["templates"].as_array().unwrap() {
        let mut config = golden["tokens"].clone();
        config["chat_template"] = case["template"].clone();
        let found = open(dir.path(), &json!({ "tokenizer_config.json": config }))
            .and_then(|template| template.render(&messages(&golden)));
        compared += 1;
        match (case["text"].as_str(), &found) {
            (Some(expected), Ok(found)) if expected == found => {}
            (None, Err(_)) => {}
            (expected, _) => wrong
                .push(format!("{}\n  expected {expected:?}\n  found    {found:?}", case["name"])),
        }
    }
    assert!(compared > 200, "{compared}");
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_place_of_a_template_is_found_and_the_named_one_is_taken() {
    let golden = golden();
    for folder in golden["folders"].as_array().unwrap() {
        let dir = made();
        let templates = open(dir.path(), &folder["files"]).unwrap();
        let text = templates.render_by(folder["name"].as_str(), &messages(&golden)).unwrap();
        assert_eq!(text, folder["text"].as_str().unwrap(), "{folder}");
    }
}

#[test]
fn template_that_is_not_there_is_refused_with_those_that_are() {
    let (golden, dir) = (golden(), made());
    let named = json!({"tokenizer_config.json": {"chat_template": {"rag": "r", "tool_use": "t"}}});
    let templates = open(dir.path(), &named).unwrap();
    let error = templates.render(&messages(&golden)).unwrap_err().to_string();
    assert!(error.contains("none is the default") && error.contains("rag, tool_use"), "{error}");
    let error = templates.render_by(Some("tools"), &messages(&golden)).unwrap_err().to_string();
    assert!(
        error.contains("no chat template `tools`") && error.contains("rag, tool_use"),
        "{error}"
    );
    assert_eq!(templates.render_by(Some("rag"), &messages(&golden)).unwrap(), "r");
    for nothing in [json!(null), json!([]), json!({})] {
        let error = open(dir.path(), &json!({"tokenizer_config.json": {"chat_template": nothing}}))
            .unwrap_err();
        assert!(
            matches!(error, pleach::Error::Chat { defect: ChatDefect::Missing, .. }),
            "{error}"
        );
    }
    let error =
        open(dir.path(), &json!({"tokenizer_config.json": {"chat_template": 5}})).unwrap_err();
    assert!(error.to_string().contains("`chat_template` is neither"), "{error}");
}

/// Little to write, much to do: each is stopped, and none takes the process with it.
#[test]
fn template_that_asks_for_too_much_is_refused() {
    let (golden, dir) = (golden(), made());
    for template in [
        "{{ 'a'.center(99999999999) }}",
        "{{ 'a'.zfill(99999999999) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ [1]|tojson(indent=99999999999) }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'x'.split('x') }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% for j in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{{ ns.x|tojson }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a' * 999999999999 }}",
        "{{ 'ab'.split('') }}",
        "{{ cycler() }}",
    ] {
        let found =
            open(dir.path(), &json!({"tokenizer_config.json": {"chat_template": template}}))
                .and_then(|templates| templates.render(&messages(&golden)));
        assert!(
            matches!(found, Err(pleach::Error::Chat { defect: ChatDefect::Template { .. }, .. })),
            "{template}"
        );
    }
}

/// Every tag was looked for to the end of the text, which took minutes, and the error held the
/// whole of it.
#[test]
fn a_long_line_of_tags_is_read_and_not_quoted() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    let (tags, deep) = (120_000, 20_000);
    let flat = "{% if 1 %}a{% endif %}".repeat(tags);
    let nested = format!("{}{}", "{% if 1 %}".repeat(deep), "{% endif %}".repeat(deep));
    std::fs::write(dir.path().join("chat_template.jinja"), flat).unwrap();
    let base = BaseModel::open(dir.path()).unwrap();
    assert_eq!(ChatTemplate::for_base(&base).unwrap().render(&[]).unwrap().len(), tags);
    std::fs::write(dir.path().join("chat_template.jinja"), nested).unwrap();
    let error = ChatTemplate::for_base(&base).unwrap_err().to_string();
    assert!(error.contains("recursion") && error.len() < 4000, "{} bytes", error.len());
}
