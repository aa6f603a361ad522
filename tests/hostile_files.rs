//! A base comes from strangers. Readers of both formats were crashed elsewhere by one wrong length
//! in a header (CVE-2025-53630, CVE-2026-27940, CVE-2024-21802): a sum that wrapped, a copy past
//! the end. Here every cut of a small file and every flipped byte of its header is opened and read
//! to the end: it works or it is an error.

use std::path::Path;

use candle_core::quantized::GgmlDType;
use pleach::base::BaseModel;
use pleach::file::gguf::GgufFile;
use pleach::file::safetensors::SafeTensorsFile;
use pleach::model::chat::ChatTemplate;
use pleach::model::tokenizer::Tokenizer;
use pleach::testing::{
    TinyModel, read_gguf_bytes, read_safetensors_bytes, tiny_gguf, tiny_hf_model,
};

/// Patterns that flip one bit, the sign, or all of a byte.
const FLIPS: [u8; 3] = [0x01, 0x80, 0xff];

fn tiny() -> TinyModel {
    TinyModel {
        hidden: 32,
        intermediate: 32,
        heads: 2,
        kv_heads: 1,
        layers: 1,
        vocab: 264,
        ..TinyModel::default()
    }
}

fn gguf_bytes(dir: &Path, dtype: GgmlDType) -> Vec<u8> {
    let path = dir.join("tiny.gguf");
    tiny_gguf(&path, &tiny(), dtype);
    std::fs::read(path).unwrap()
}

fn safetensors_bytes(dir: &Path) -> Vec<u8> {
    tiny_hf_model(dir, &tiny());
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

#[test]
fn every_cut_of_a_safetensors_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = safetensors_bytes(dir.path());
    for length in 0..bytes.len() {
        assert!(SafeTensorsFile::from_bytes(bytes[..length].to_vec(), "cut").is_err(), "{length}");
    }
    assert!(SafeTensorsFile::from_bytes([&bytes[..], &[0]].concat(), "longer").is_err());
}

#[test]
fn every_flipped_byte_of_a_safetensors_header_works_or_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = safetensors_bytes(dir.path());
    let header = 8 + usize::from(bytes[0]) + 256 * usize::from(bytes[1]);
    let mut refused = 0;
    for at in 0..header {
        for flip in FLIPS {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            refused += usize::from(read_safetensors_bytes(damaged).is_err());
        }
    }
    assert!(refused > header, "{refused} of {}", FLIPS.len() * header);
}

#[test]
fn every_cut_of_a_gguf_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = gguf_bytes(dir.path(), GgmlDType::Q4_1);
    assert!(read_gguf_bytes(bytes.clone()).is_ok());
    // The writer pads the last tensor.
    let padding = 31;
    for length in (0..bytes.len() - padding).step_by(3) {
        assert!(GgufFile::from_bytes(bytes[..length].to_vec(), "cut").is_err(), "{length}");
    }
}

#[test]
fn every_flipped_byte_of_a_gguf_header_works_or_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = gguf_bytes(dir.path(), GgmlDType::Q4_0);
    let header = bytes.windows(9).position(|name| name == b"blk.0.ffn").unwrap() + 2048;
    let mut refused = 0;
    for at in (0..header).rev() {
        let mut damaged = bytes.clone();
        damaged[at] ^= FLIPS[at % FLIPS.len()];
        refused += usize::from(read_gguf_bytes(damaged).is_err());
    }
    assert!(refused > 500, "{refused} of {header}");
}

#[test]
fn flipped_weights_change_the_content_hash() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = gguf_bytes(dir.path(), GgmlDType::Q8_0);
    let hash = |bytes: Vec<u8>| {
        let base = BaseModel::from_gguf(GgufFile::from_bytes(bytes, "test").unwrap()).unwrap();
        base.content_hash().to_owned()
    };
    let mut damaged = bytes.clone();
    let middle = bytes.len() - 5000;
    damaged[middle] ^= 1;
    assert_ne!(hash(bytes), hash(damaged));
}

#[test]
fn damaged_metadata_never_reaches_past_the_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny_gguf(&path, &tiny(), GgmlDType::Q8_0);
    let bytes = std::fs::read(&path).unwrap();
    let key = b"tokenizer.ggml.bos_token_id";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    let mut damaged = bytes;
    damaged[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let key = b"tokenizer.ggml.add_bos_token";
    let at = damaged.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    damaged[at] = 1;
    let base = BaseModel::from_gguf(GgufFile::from_bytes(damaged, "test").unwrap()).unwrap();
    assert!(Tokenizer::for_base(&base, None).is_err());
    assert!(ChatTemplate::for_base(&base).is_ok());
}
