//! Made headers, each with one defect. `tests/hostile_files.rs` has the cuts and flips of whole
//! files.

#![allow(clippy::cast_possible_truncation, reason = "made values are small")]

use super::*;
use crate::error::FileKind;

const U8: u32 = 0;
const U32: u32 = 4;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Writes a GGUF file piece by piece.
struct Made(Vec<u8>);

impl Made {
    fn header(tensors: u64, entries: u64) -> Self {
        Self(b"GGUF\x03\0\0\0".to_vec()).u64(tensors).u64(entries)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(self, text: &[u8]) -> Self {
        let mut made = self.u64(text.len() as u64);
        made.0.extend(text);
        made
    }

    fn tensor(self, name: &str, dims: &[u64], dtype: u32, offset: u64) -> Self {
        let made = self.text(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(made, |made, dim| made.u64(*dim)).u32(dtype).u64(offset)
    }

    /// Pads to 32 bytes and appends `bytes` zeros.
    fn data(mut self, bytes: usize) -> Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self
    }

    fn open(self) -> Result<GgufFile> {
        GgufFile::from_bytes(self.0, "test.gguf")
    }

    fn defect(self) -> GgufDefect {
        match self.open().err().expect("must be refused") {
            Error::Gguf { defect, .. } => defect,
            other => panic!("{other}"),
        }
    }
}

#[test]
fn sound_file_opens_and_its_metadata_have_types() {
    let file = Made::header(1, 2)
        .text(b"a")
        .u32(U32)
        .u32(7)
        .text(b"b")
        .u32(LIST)
        .u32(TEXT)
        .u64(2)
        .text(b"x")
        .text(b"y")
        .tensor("t", &[2, 3], 0, 0)
        .data(24)
        .open()
        .unwrap();
    assert_eq!(file.integer("a").unwrap(), Some(7));
    assert_eq!(file.texts("b").unwrap(), Some(vec!["x", "y"]));
    assert_eq!(file.integer("none").unwrap(), None);
    assert!(matches!(file.text("a"), Err(Error::Gguf { defect: GgufDefect::Metadata { .. }, .. })));
    assert_eq!(file.info("t").unwrap().shape, [3, 2]);
    let mut out = [1.0; 4];
    file.read_rows("t", 1..3, &mut out).unwrap();
    assert_eq!(out, [0.0; 4]);
    for rows in [0..1, 2..4, 3..5] {
        assert!(file.read_rows("t", rows, &mut out).is_err());
    }
}

#[test]
fn alignment_of_zero_or_of_no_power_of_two_is_refused() {
    for value in [0, 1, 4, 24, 1 << 20] {
        let made = Made::header(0, 1).text(b"general.alignment").u32(U32).u32(value);
        assert!(matches!(made.defect(), GgufDefect::Alignment), "{value}");
    }
    let made = Made::header(0, 1).text(b"general.alignment").u32(U8).u32(0);
    assert!(matches!(made.defect(), GgufDefect::Alignment));
}

#[test]
fn gguf_with_huge_string_is_refused() {
    let long = Made::header(0, 1).text(b"a").u32(TEXT).u64(1 << 62);
    assert!(matches!(long.defect(), GgufDefect::TooLarge { .. }));
    let beyond = Made::header(0, 1).text(b"a").u32(TEXT).u64(1 << 20);
    assert!(matches!(beyond.defect(), GgufDefect::BeyondFile { needed: 1_048_576, left: 0, .. }));
    let name = Made::header(0, 1).u64(u64::MAX);
    assert!(matches!(name.defect(), GgufDefect::TooLarge { .. }));
}

#[test]
fn counts_that_no_file_has_are_refused() {
    assert!(matches!(Made::header(u64::MAX, 0).defect(), GgufDefect::TooLarge { .. }));
    assert!(matches!(Made::header(0, u64::MAX).defect(), GgufDefect::TooLarge { .. }));
    assert!(matches!(Made::header(1, 0).text(b"t").u32(5).defect(), GgufDefect::TooLarge { .. }));
    let list = |length| Made::header(0, 1).text(b"a").u32(LIST).u32(U8).u64(length);
    assert!(matches!(list(u64::MAX).defect(), GgufDefect::Memory { .. }));
    assert!(matches!(list(1000).defect(), GgufDefect::BeyondFile { .. }));
}

#[test]
fn list_that_grows_in_memory_is_refused() {
    // A byte of the file becomes 32 in memory.
    let made = Made::header(0, 1).text(b"a").u32(LIST).u32(U8).u64(4 << 20).data(4 << 20);
    assert!(matches!(made.defect(), GgufDefect::Memory { .. }));
}

#[test]
fn lists_within_lists_within_lists_are_refused() {
    let made =
        (0..40).fold(Made::header(0, 1).text(b"a").u32(LIST), |made, _| made.u32(LIST).u64(1));
    assert!(matches!(made.data(64).defect(), GgufDefect::TooLarge { .. }));
}

#[test]
fn two_keys_or_two_tensors_of_one_name_are_refused() {
    let keys = Made::header(0, 2).text(b"a").u32(U32).u32(1).text(b"a").u32(U32).u32(2);
    assert!(matches!(keys.defect(), GgufDefect::Duplicate { name } if name == "a"));
    let tensors = Made::header(2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32).data(64);
    assert!(matches!(tensors.defect(), GgufDefect::Duplicate { name } if name == "t"));
    // The parser would cut the zero byte off and find two equal names.
    let cut = Made::header(0, 2).text(b"a").u32(U32).u32(1).text(b"a\0").u32(U32).u32(2);
    assert!(matches!(cut.defect(), GgufDefect::Name { .. }));
}

#[test]
fn shapes_that_wrap_are_empty_or_split_a_block_are_refused() {
    const Q4_1: u32 = 3;
    for (dims, dtype) in [
        (&[1u64 << 33, 1 << 33][..], 0),
        (&[u64::MAX][..], 0),
        (&[0][..], 0),
        (&[][..], 0),
        (&[32, 0][..], Q4_1),
        (&[31][..], Q4_1),
        (&[16, 2][..], Q4_1),
    ] {
        let made = Made::header(1, 0).tensor("t", dims, dtype, 0).data(4096);
        assert!(matches!(made.defect(), GgufDefect::Shape { .. }), "{dims:?}");
    }
}

#[test]
fn tensors_beyond_the_file_unaligned_or_on_each_other_are_refused() {
    let at = |offset| Made::header(1, 0).tensor("t", &[8], 0, offset).data(64);
    assert!(at(32).open().is_ok());
    assert!(matches!(at(64).defect(), GgufDefect::TensorBeyondFile { .. }));
    assert!(matches!(at(u64::MAX - 31).defect(), GgufDefect::TensorBeyondFile { .. }));
    assert!(matches!(at(4).defect(), GgufDefect::Offset { .. }));
    let overlap = Made::header(2, 0).tensor("t", &[9], 0, 0).tensor("u", &[1], 0, 32).data(64);
    assert!(matches!(overlap.defect(), GgufDefect::Offset { .. }));
}

#[test]
fn types_and_versions_that_are_not_read_are_refused_by_name() {
    let made = Made::header(1, 0).tensor("t", &[256], 16, 0).data(4096);
    assert!(matches!(made.defect(), GgufDefect::TensorType { tensor, found: 16 } if tensor == "t"));
    for version in [0, 1, 4, 0x0300_0300] {
        let made = Made(b"GGUF".to_vec()).u32(version).u64(0).u64(0);
        assert!(matches!(made.defect(), GgufDefect::Version { found } if found == version));
    }
    for version in [0x0200_0000, 0x0300_0000] {
        let made = Made(b"GGUF".to_vec()).u32(version).u64(0).u64(0);
        assert!(matches!(made.defect(), GgufDefect::BigEndian), "{version:#x}");
    }
    assert!(matches!(Made(b"GGML".to_vec()).data(64).defect(), GgufDefect::Magic));
    assert!(matches!(Made(b"GGUF".to_vec()).defect(), GgufDefect::BeyondFile { .. }));
    for (bytes, kind) in [
        (&b""[..], FileKind::Empty),
        (b"version https://git-lfs.github.com/spec/v1\n", FileKind::LfsPointer),
        (b"<!doctype html>", FileKind::Page),
        (b"PK\x03\x04", FileKind::Zip),
    ] {
        assert!(
            matches!(Made(bytes.to_vec()).defect(), GgufDefect::OtherFile { found } if found == kind),
            "{kind:?}"
        );
    }
}
