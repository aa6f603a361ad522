//! What a file is by its first bytes, whatever its name says.
//!
//! Why: what comes in a model's place (a pointer of Git LFS, a page that asks to log in, a pickle
//! with another suffix) used to be called damaged.
//!
//! **Source:** Git LFS's pointer format; `PK` of zip, which torch's own files are; pickle's `PROTO`
//! opcode.

use std::io::Read;
use std::path::Path;

use super::open_regular;
use crate::error::FileKind;

/// First bytes that are enough.
const HEAD: usize = 512;

/// What the bytes at a file's start say it is, where they say anything.
pub(crate) fn sniff(bytes: &[u8]) -> Option<FileKind> {
    let head = &bytes[..bytes.len().min(HEAD)];
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let starts = |prefix: &str| {
        text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    // A safetensors header may start with any length: only what follows it decides.
    let safetensors = head.get(8) == Some(&b'{') && head.get(6..8) == Some(&[0, 0]);
    Some(match head {
        [] => FileKind::Empty,
        _ if starts("version https://git-lfs") => FileKind::LfsPointer,
        _ if ["<!doctype", "<html", "<head", "<?xml"].into_iter().any(starts) => FileKind::Page,
        [b'G', b'G', b'U', b'F', ..] => FileKind::Gguf,
        [b'P', b'K', 3 | 5, 4 | 6, ..] => FileKind::Zip,
        [0x1f, 0x8b, ..] => FileKind::Gzip,
        _ if safetensors => FileKind::SafeTensors,
        [0x80, 2..=5, ..] => FileKind::Pickle,
        [b'{' | b'[', ..] => FileKind::Json,
        _ => return None,
    })
}

/// The same of the file at `path`; none where it cannot be read.
pub(crate) fn sniff_file(path: &Path) -> Option<FileKind> {
    let mut head = Vec::with_capacity(HEAD);
    open_regular(path).ok()?.0.take(HEAD as u64).read_to_end(&mut head).ok()?;
    sniff(&head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_what_a_file_is() {
        for (bytes, kind) in [
            (&b""[..], Some(FileKind::Empty)),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:",
                Some(FileKind::LfsPointer),
            ),
            (b"\n <!DOCTYPE HTML>", Some(FileKind::Page)),
            (b"\xef\xbb\xbf<html lang", Some(FileKind::Page)),
            (b"<?xml version=\"1.0\"?><Error>", Some(FileKind::Page)),
            (b"PK\x03\x04\0\0", Some(FileKind::Zip)),
            (b"\x1f\x8b\x08", Some(FileKind::Gzip)),
            (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9", Some(FileKind::Pickle)),
            (b"\x80\x02\0\0\0\0\0\0{\"a\"", Some(FileKind::SafeTensors)),
            (b"GGUF\x03\0\0\0", Some(FileKind::Gguf)),
            (b"{\"a\": 1}", Some(FileKind::Json)),
            (b"hello", None),
        ] {
            assert_eq!(sniff(bytes), kind, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(sniff_file(Path::new("no such file")), None);
    }
}
