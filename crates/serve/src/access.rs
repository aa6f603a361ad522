//! Who may see and change what: keys with subtrees and limits.
//!
//! **Invariant:** no token is kept, only its BLAKE3; all keys are compared, each in constant time.
//! **Invariant:** a subtree is a node and all whose names lie below it. What is outside is treated
//! as if it were not there, before anything is looked up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use pleach::tree::normal;
use serde::Deserialize;

use crate::error::ApiError;

/// Bytes of a new token.
const TOKEN_BYTES: usize = 32;
/// What tokens begin with, so that tools that look for secrets in texts find them.
const TOKEN_PREFIX: &str = "pleach-";

/// A file of keys, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    key: Vec<KeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    name: String,
    blake3: String,
    #[serde(rename = "use", default)]
    uses: Subtrees,
    #[serde(default)]
    change: Subtrees,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
}

/// One subtree or several.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Subtrees {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Subtrees {
    /// Names as nodes have them; the root is empty.
    fn names(self) -> Vec<String> {
        let names = match self {
            Self::None => Vec::new(),
            Self::One(name) => vec![name],
            Self::Many(names) => names,
        };
        names.iter().map(|name| normal(name.trim_matches('/')).into_owned()).collect()
    }
}

/// A token's holder.
#[derive(Debug)]
pub(crate) struct Key {
    name: String,
    hash: blake3::Hash,
    uses: Vec<String>,
    change: Vec<String>,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Key {
    /// Whether it is the same key with the same rights and limits.
    fn is_as(&self, other: &Self) -> bool {
        let limits = |key: &Self| {
            [&key.requests, &key.tokens]
                .map(|bucket| bucket.as_ref().map(|bucket| bucket.per_minute))
        };
        self.hash == other.hash
            && self.name == other.name
            && self.uses == other.uses
            && self.change == other.change
            && limits(self) == limits(other)
    }
}

/// So much a minute, and as much at once.
#[derive(Debug)]
struct Bucket {
    per_minute: f64,
    /// What is left, and when that was true.
    left: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(per_minute: u32) -> Self {
        let per_minute = f64::from(per_minute);
        Self { per_minute, left: Mutex::new((per_minute, Instant::now())) }
    }

    /// Takes `amount` if anything is left, and may owe some of it; otherwise the seconds to wait.
    fn take(&self, amount: f64, now: Instant) -> Result<(), f64> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let minutes = now.saturating_duration_since(left.1).as_secs_f64() / 60.0;
        let available = (left.0 + minutes * self.per_minute).min(self.per_minute);
        // A whole one is asked for before, so that what trickles in does not let one through early.
        let needed = amount.min(1.0);
        if available < needed {
            return Err((needed - available) / self.per_minute.max(f64::MIN_POSITIVE) * 60.0);
        }
        *left = (available - amount, now);
        Ok(())
    }

    /// Takes `amount` whatever is left.
    fn charge(&self, amount: f64) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).0 -= amount;
    }
}

/// Tokens and what they open. Clones are the same keys.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// None: nobody needs a token.
    keys: Option<Arc<KeyRing>>,
    admin: Option<blake3::Hash>,
}

/// The keys of a file.
#[derive(Debug)]
struct KeyRing {
    file: PathBuf,
    keys: RwLock<Vec<Arc<Key>>>,
}

impl KeyRing {
    fn keys(&self) -> Vec<Arc<Key>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Access {
    /// Everybody may use everything, nobody change anything.
    pub fn open() -> Self {
        Self::default()
    }

    /// Reads a file of keys: TOML, a table `[[key]]` each with `name`, `blake3` (of the token, in
    /// hexadecimal), `use` and `change` (a node or a list of nodes, with all below them; `/` is
    /// everything), `requests_per_minute`, `tokens_per_minute`.
    ///
    /// # Errors
    /// In words, with the place: what cannot be read, an entry that is unknown, missing or wrong.
    pub fn with_keys(mut self, file: &Path) -> Result<Self, String> {
        let keys = RwLock::new(read_file(file)?);
        self.keys = Some(Arc::new(KeyRing { file: file.to_owned(), keys }));
        Ok(self)
    }

    /// Reads the file of keys again, for all clones. What is left of a key's limits is kept where
    /// they are as before. Returns how many keys there are; without a file none.
    ///
    /// # Errors
    /// As [`Self::with_keys`]; the keys are then as they were.
    pub fn reload(&self) -> Result<usize, String> {
        let Some(ring) = &self.keys else { return Ok(0) };
        let mut keys = read_file(&ring.file)?;
        let mut held = ring.keys.write().unwrap_or_else(PoisonError::into_inner);
        for key in &mut keys {
            if let Some(same) = held.iter().find(|other| other.is_as(key)) {
                *key = same.clone();
            }
        }
        let count = keys.len();
        *held = keys;
        Ok(count)
    }

    /// Whoever has this token may use and change everything.
    pub fn with_admin(mut self, token: &str) -> Self {
        self.admin = Some(blake3::hash(token.as_bytes()));
        self
    }

    /// Whether a token is needed to use anything.
    pub fn needs_key(&self) -> bool {
        self.keys.is_some()
    }

    /// Whether there is anybody who may change something.
    pub(crate) fn can_be_changed(&self) -> bool {
        let changes = |ring: &Arc<KeyRing>| ring.keys().iter().any(|key| !key.change.is_empty());
        self.admin.is_some() || self.keys.as_ref().is_some_and(changes)
    }

    /// Who sends a request with these headers.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let refused = |message: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, message));
        let token = headers.get(header::AUTHORIZATION).map(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let token = match token {
            None => None,
            Some(None) if self.keys.is_some() => {
                return refused("The Authorization header is not of the form `Bearer TOKEN`");
            }
            // Meant for something before this server, which asks for nothing.
            Some(None) => None,
            Some(token) => token,
        };
        let hash = token.map(|token| blake3::hash(token.as_bytes()));
        let is_admin = matches!((self.admin, hash), (Some(admin), Some(hash)) if admin == hash);
        if is_admin {
            return Ok(Caller { key: None, sees_all: true, changes_all: true });
        }
        let Some(ring) = &self.keys else {
            // Clients send a token of some kind even where none is asked for.
            return Ok(Caller { key: None, sees_all: true, changes_all: false });
        };
        let Some(hash) = hash else {
            return refused("This server needs a key: send it as `Authorization: Bearer TOKEN`");
        };
        let mut found = None;
        for key in ring.keys() {
            // All of them, so that the time does not say which it was.
            if key.hash == hash {
                found = Some(key);
            }
        }
        match found {
            Some(key) => Ok(Caller { key: Some(key), sees_all: false, changes_all: false }),
            None => refused("Nobody has this key; ask whoever runs the server for one"),
        }
    }
}

fn read_file(file: &Path) -> Result<Vec<Arc<Key>>, String> {
    let told = |problem: String| format!("{}: {problem}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| told(error.to_string()))?;
    read_keys(&text).map_err(told)
}

fn read_keys(text: &str) -> Result<Vec<Arc<Key>>, String> {
    let file: KeyFile = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut keys: Vec<Arc<Key>> = Vec::new();
    for entry in file.key {
        let told = |problem: &str| format!("key {:?}: {problem}", entry.name);
        let hash = blake3::Hash::from_hex(&entry.blake3)
            .map_err(|_| told("blake3 is not 64 hexadecimal digits; `pleach key` makes one"))?;
        if keys.iter().any(|key| key.name == entry.name) {
            return Err(told("there are two of that name; give each its own"));
        }
        if keys.iter().any(|key| key.hash == hash) {
            return Err(told("another key has the same token; make a new one"));
        }
        let limit = |what: &str, limit: Option<u32>| match limit {
            Some(0) => Err(told(&format!("{what} is 0; leave it out for no limit"))),
            limit => Ok(limit.map(Bucket::new)),
        };
        let requests = limit("requests_per_minute", entry.requests_per_minute)?;
        let tokens = limit("tokens_per_minute", entry.tokens_per_minute)?;
        let (uses, change) = (entry.uses.names(), entry.change.names());
        if uses.is_empty() && change.is_empty() {
            return Err(format!(
                "key {:?}: it opens nothing; give `use`, such as \"acme\", or \"/\" for everything",
                entry.name
            ));
        }
        keys.push(Arc::new(Key { name: entry.name, hash, uses, change, requests, tokens }));
    }
    Ok(keys)
}

/// A new token and its BLAKE3 in hexadecimal.
pub fn new_token() -> (String, String) {
    let bytes: [u8; TOKEN_BYTES] = rand::random();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let token = format!("{TOKEN_PREFIX}{hex}");
    let hash = blake3::hash(token.as_bytes()).to_hex().to_string();
    (token, hash)
}

/// Whether a node is `subtree` or lies below it.
fn lies_in(node: &str, subtree: &str) -> bool {
    subtree.is_empty()
        || node.strip_prefix(subtree).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Who sends a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    key: Option<Arc<Key>>,
    sees_all: bool,
    changes_all: bool,
}

impl Caller {
    /// Who sends a request to a route that is not public.
    pub(crate) fn of(parts: &Parts) -> Self {
        parts.extensions.get::<Self>().cloned().expect("it is no public route")
    }

    /// The key's name, for the log; none without keys, and of the administrator.
    pub(crate) fn name(&self) -> Option<&str> {
        self.key.as_deref().map(|key| &key.name[..])
    }

    /// Keeps what was computed for one key apart from that of others: whether something was in the
    /// cache can be told by the clock.
    pub(crate) fn salt(&self) -> &[u8] {
        self.key.as_deref().map_or(&[], |key| key.hash.as_bytes())
    }

    /// Whether it sees every node.
    pub(crate) fn sees_all(&self) -> bool {
        self.sees("")
    }

    /// Whether it may use a node, by its name without slashes around it; the root is empty.
    pub(crate) fn sees(&self, node: &str) -> bool {
        let key = self.key.as_deref();
        self.sees_all
            || key.is_some_and(|key| {
                key.uses.iter().chain(&key.change).any(|subtree| lies_in(node, subtree))
            })
    }

    /// Whether it may change a node.
    pub(crate) fn may_change(&self, node: &str) -> bool {
        let key = self.key.as_deref();
        self.changes_all
            || key.is_some_and(|key| key.change.iter().any(|subtree| lies_in(node, subtree)))
    }

    /// Whether it may change anything.
    pub(crate) fn may_change_something(&self) -> bool {
        self.changes_all || self.key.as_deref().is_some_and(|key| !key.change.is_empty())
    }

    /// The tops of what it sees, without those that lie below others.
    pub(crate) fn tops(&self) -> Vec<String> {
        let Some(key) = self.key.as_deref() else { return vec![String::new()] };
        let all: Vec<&String> = key.uses.iter().chain(&key.change).collect();
        let mut tops: Vec<String> = all
            .iter()
            .filter(|name| !all.iter().any(|other| other != *name && lies_in(name, other)))
            .map(|name| (*name).clone())
            .collect();
        tops.sort();
        tops.dedup();
        tops
    }

    /// Takes a request from the key's limits.
    pub(crate) fn take_request(&self) -> Result<(), ApiError> {
        let Some(key) = self.key.as_deref() else { return Ok(()) };
        let now = Instant::now();
        let refused = |what: &str, seconds: f64| {
            // At most a minute, so it fits.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds")]
            let wait = seconds.ceil().clamp(1.0, 60.0) as u32;
            let message = format!(
                "This key's {what} a minute are used up; ask again in {wait} s, or ask whoever runs the server for more"
            );
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
                .code("rate_limit_exceeded")
                .retry_after(wait)
        };
        if let Some(tokens) = &key.tokens {
            // What it will take is known at the end: then it is charged.
            tokens.take(0.0, now).map_err(|seconds| refused("tokens", seconds))?;
        }
        if let Some(requests) = &key.requests {
            requests.take(1.0, now).map_err(|seconds| refused("requests", seconds))?;
        }
        Ok(())
    }

    /// Charges tokens that were run for it.
    pub(crate) fn charge_tokens(&self, tokens: usize) {
        if let Some(bucket) = self.key.as_deref().and_then(|key| key.tokens.as_ref()) {
            #[allow(clippy::cast_precision_loss, reason = "tokens of one request")]
            bucket.charge(tokens as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    fn key_text(rest: &str) -> String {
        let hash = blake3::hash(b"secret").to_hex();
        format!("[[key]]\nname = \"acme\"\nblake3 = \"{hash}\"\n{rest}")
    }

    /// What a file of this text opens.
    fn with(text: &str) -> Access {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Access::open().with_keys(file.path()).unwrap()
    }

    fn caller(access: &Access, authorization: Option<&str>) -> Result<Caller, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        access.caller(&headers)
    }

    #[test]
    fn a_key_sees_its_subtrees_and_nothing_beside_them() {
        let text = key_text("use = [\"acme/\", \"shared/fr\"]\nchange = \"acme/users\"\n");
        let access = with(&text);
        let caller = caller(&access, Some("Bearer secret")).unwrap();
        for seen in ["acme", "acme/users/bob", "shared/fr", "shared/fr/x"] {
            assert!(caller.sees(seen), "{seen}");
        }
        for unseen in ["", "acm", "acmeo", "globex", "shared", "shared/french"] {
            assert!(!caller.sees(unseen), "{unseen}");
        }
        assert!(caller.may_change("acme/users") && caller.may_change("acme/users/bob"));
        assert!(!caller.may_change("acme") && !caller.may_change("shared/fr"));
        assert_eq!(caller.tops(), ["acme", "shared/fr"]);
        assert!(!caller.sees_all() && caller.name() == Some("acme"));
    }

    #[test]
    fn tokens_open_what_they_open_and_nothing_else_does() {
        let text = key_text("use = \"/\"\n");
        let access = with(&text).with_admin("root");
        for wrong in
            [None, Some("Bearer"), Some("Basic secret"), Some("Bearer other"), Some("secret")]
        {
            let refusal = caller(&access, wrong).unwrap_err();
            assert_eq!(refusal.status, StatusCode::UNAUTHORIZED, "{wrong:?}");
        }
        let user = caller(&access, Some("bearer  secret")).unwrap();
        assert!(user.sees_all() && !user.may_change_something());
        let admin = caller(&access, Some("Bearer root")).unwrap();
        assert!(admin.sees_all() && admin.may_change("anything"));
        // Without keys any token does, and changes nothing.
        let anybody = caller(&Access::open().with_admin("root"), Some("Bearer x")).unwrap();
        assert!(anybody.sees_all() && !anybody.may_change_something());
        let anybody = caller(&Access::open(), Some("Basic YTpi")).unwrap();
        assert!(anybody.sees_all() && !anybody.may_change_something());
    }

    #[test]
    fn files_of_keys_that_are_wrong_are_refused_with_the_place() {
        let twice = key_text("use = \"a\"\n") + &key_text("use = \"b\"\n");
        let cases = [
            (key_text(""), "opens nothing"),
            (key_text("use = \"/\"\nuser = 1\n"), "user"),
            (key_text("use = \"/\"\nrequests_per_minute = 0\n"), "requests_per_minute is 0"),
            (twice.replace("acme", "x"), "two of that name"),
            (twice.replacen("acme", "x", 1), "same token"),
            ("[[key]]\nname = \"x\"\nblake3 = \"12\"\nuse = \"/\"\n".to_owned(), "64 hexadecimal"),
            ("[[key]]\nname = \"x\"\n".to_owned(), "blake3"),
            ("key = 3".to_owned(), "key"),
        ];
        for (text, expected) in cases {
            let error = read_keys(&text).unwrap_err();
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }

    #[test]
    fn keys_are_read_again_and_what_is_left_of_them_stays() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        write(&key_text("use = \"a\"\nrequests_per_minute = 1\n"));
        let access = Access::open().with_keys(file.path()).unwrap();
        let clone = access.clone();
        caller(&access, Some("Bearer secret")).unwrap().take_request().unwrap();
        let other = blake3::hash(b"other").to_hex();
        let more = format!("[[key]]\nname = \"b\"\nblake3 = \"{other}\"\nuse = \"b\"\n");
        write(&(key_text("use = \"a\"\nrequests_per_minute = 1\n") + &more));
        assert!(caller(&clone, Some("Bearer other")).is_err());
        assert_eq!(access.reload(), Ok(2));
        assert!(caller(&clone, Some("Bearer other")).unwrap().sees("b"));
        let used_up = caller(&clone, Some("Bearer secret")).unwrap().take_request();
        assert_eq!(used_up.unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        // What cannot be read changes nothing; a key that is gone opens nothing.
        write("[[key]]");
        assert!(access.reload().is_err() && caller(&clone, Some("Bearer other")).is_ok());
        write(&more);
        assert_eq!(access.reload(), Ok(1));
        assert!(caller(&clone, Some("Bearer secret")).is_err());
    }

    #[test]
    fn a_minute_holds_what_it_may_and_refills() {
        let bucket = Bucket::new(60);
        let start = Instant::now();
        for _ in 0..60 {
            assert!(bucket.take(1.0, start).is_ok());
        }
        let wait = bucket.take(1.0, start).unwrap_err();
        assert!((wait - 1.0).abs() < 0.1, "{wait}");
        assert!(bucket.take(1.0, start + Duration::from_millis(1100)).is_ok());
        assert!(bucket.take(1.0, start + Duration::from_millis(1200)).is_err());
        // What was charged beyond is owed.
        bucket.charge(60.0);
        assert!(bucket.take(0.0, start + Duration::from_secs(30)).is_err());
        assert!(bucket.take(0.0, start + Duration::from_secs(70)).is_ok());
    }

    #[test]
    fn a_new_token_is_the_one_that_its_hash_is_of() {
        let (token, hash) = new_token();
        assert_eq!(blake3::hash(token.as_bytes()).to_hex().to_string(), hash);
        assert_ne!(new_token().0, token);
    }
}
