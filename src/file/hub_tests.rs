//! The client against a small stand-in for the hub on this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use hf_hub::Cache;

use super::*;
use crate::base::BaseModel;
use crate::testing::{TinyModel, tiny_hf_model};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the files of `dir` as `org/tiny`, and forgets about it.
fn serve(dir: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        listener.incoming().for_each(|stream| answer(stream.unwrap(), &dir))
    });
    format!("http://{address}")
}

/// Files of a folder and of those below it.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .flat_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            match entry.path().is_dir() {
                true => names(&entry.path())
                    .into_iter()
                    .map(|below| format!("{name}/{below}"))
                    .collect(),
                false => vec![name],
            }
        })
        .collect()
}

fn answer(mut stream: TcpStream, dir: &Path) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(std::io::Result::ok);
    let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let path = request[0].split(' ').nth(1).unwrap();
    let range = request
        .iter()
        .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let (status, headers, body) = if path.starts_with("/api/models/org/tiny/revision/") {
        let mut siblings: Vec<_> =
            names(dir).iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
        siblings.push(serde_json::json!({ "rfilename": "../../outside.safetensors" }));
        (
            "200 OK",
            String::new(),
            serde_json::to_vec(&serde_json::json!({ "siblings": siblings, "sha": COMMIT }))
                .unwrap(),
        )
    } else {
        match path.strip_prefix("/org/tiny/resolve/main/").map(|file| std::fs::read(dir.join(file)))
        {
            Some(Ok(bytes)) => {
                let range = range.unwrap();
                let (start, end) = range.split_once('-').unwrap();
                let (start, last) =
                    (start.parse().unwrap(), end.parse().unwrap_or(bytes.len() - 1));
                let headers = format!(
                    "Content-Range: bytes {start}-{last}/{}\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
                    bytes.len(),
                    blake3::hash(&bytes)
                );
                ("206 Partial Content", headers, bytes[start..=last].to_vec())
            }
            _ => ("404 Not Found", String::new(), Vec::new()),
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).unwrap();
}

fn fetch(name: &str, cache: &Path, endpoint: String) -> Result<PathBuf> {
    let builder = ApiBuilder::from_cache(Cache::new(cache.to_owned()))
        .with_endpoint(endpoint)
        .with_progress(false);
    HubModel::parse(name)?.fetch_through(builder)
}

#[test]
fn model_is_fetched_opened_and_found_in_the_cache_when_the_hub_is_gone() {
    for shards in [1, 2] {
        let (origin, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        tiny_hf_model(origin.path(), &TinyModel { shards, ..TinyModel::default() });
        std::fs::write(origin.path().join("pytorch_model.bin"), "never fetched").unwrap();
        let folder = fetch("org/tiny", cache.path(), serve(origin.path())).unwrap();
        let expected = BaseModel::open(origin.path()).unwrap();
        assert_eq!(BaseModel::open(&folder).unwrap().content_hash(), expected.content_hash());
        assert!(folder.join("tokenizer.json").exists());
        assert!(!folder.join("pytorch_model.bin").exists());
        let gone = "http://127.0.0.1:9".to_owned();
        assert_eq!(fetch("org/tiny", cache.path(), gone).unwrap(), folder);
    }
}

/// An index may name parts in folders below; it leads nowhere else.
#[test]
fn parts_are_fetched_where_the_index_says_they_lie() {
    let (origin, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tiny_hf_model(origin.path(), &TinyModel { shards: 2, ..TinyModel::default() });
    let index = origin.path().join(INDEX);
    let mut map: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    std::fs::create_dir_all(origin.path().join("weights/part")).unwrap();
    std::fs::create_dir(origin.path().join("additional_chat_templates")).unwrap();
    for name in ["added_tokens.json", "additional_chat_templates/tools.jinja"] {
        std::fs::write(origin.path().join(name), "{}").unwrap();
    }
    for file in map["weight_map"].as_object_mut().unwrap().values_mut() {
        let (from, to) =
            (file.as_str().unwrap().to_owned(), format!("weights/part/{}", file.as_str().unwrap()));
        if origin.path().join(&from).exists() {
            std::fs::rename(origin.path().join(&from), origin.path().join(&to)).unwrap();
        }
        *file = to.into();
    }
    std::fs::write(&index, map.to_string()).unwrap();
    let expected = BaseModel::open(origin.path()).unwrap().content_hash().to_owned();
    let folder = fetch("org/tiny", cache.path(), serve(origin.path())).unwrap();
    assert_eq!(BaseModel::open(&folder).unwrap().content_hash(), expected);
    assert!(
        folder.join("added_tokens.json").exists()
            && folder.join("additional_chat_templates/tools.jinja").exists()
    );
    let bad = tempfile::tempdir().unwrap();
    let file = bad.path().join(INDEX);
    let files =
        ["../a.safetensors", "/a.safetensors", "a.bin", "b/../a.safetensors", "a.safetensors", ""];
    let map: BTreeMap<&str, &str> = files.iter().map(|file| (*file, *file)).collect();
    std::fs::write(&file, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    assert_eq!(shards(&file).unwrap(), BTreeSet::from(["a.safetensors".to_owned()]));
}

#[test]
fn model_that_the_hub_lacks_is_an_error_that_names_the_file() {
    let (origin, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let error = fetch("org/tiny", cache.path(), serve(origin.path())).unwrap_err();
    assert!(
        matches!(&error, Error::Hub { defect: HubDefect::Fetch { file, .. }, .. } if file == "config.json"),
        "{error}"
    );
}

#[test]
fn names_that_are_no_model_are_refused() {
    for name in [
        "", "a", "a/b/c", "../b", "a/..", "a/b@", "a/b@../c", "a/b@x/y", "/b", "a/", "-a/b",
        ".a/b", "a b/c", "a/b?c", "a/b#c", "a/b%2e", "ü/b",
    ] {
        let error = HubModel::parse(name).unwrap_err();
        assert!(matches!(error, Error::Hub { defect: HubDefect::Name, .. }), "{name}: {error}");
    }
    assert_eq!(HubModel::parse("HuggingFaceTB/SmolLM2-135M").unwrap().revision, "main");
}
