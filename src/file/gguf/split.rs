//! Models that are split over several GGUF files.
//!
//! **Source:** llama.cpp's `gguf-split`: `NAME-00001-of-00003.gguf`, each with `split.no` (from 0),
//! `split.count` and `split.tensors.count` (of all); the metadata of the first part are the
//! model's.

use std::path::Path;

use super::Part;
use crate::error::GgufDefect;
use crate::{Error, Result};

/// Maps the parts after the first, if its metadata say that there are any.
pub(super) fn open_others(first: &Part) -> Result<Vec<Part>> {
    let error = |path: &Path, defect| Error::Gguf { path: path.to_owned(), defect };
    let (no, count) = first.number()?;
    if count < 2 {
        return Ok(Vec::new());
    }
    let Some(stem) = stem(&first.path, no, count) else {
        return Err(error(&first.path, GgufDefect::PartName { part: no.saturating_add(1), count }));
    };
    let path =
        |no: u64| first.path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", no + 1));
    if no != 0 {
        return Err(error(
            &first.path,
            GgufDefect::NotFirstPart { part: no + 1, count, first: path(0) },
        ));
    }
    let mut parts = Vec::new();
    for no in 1..count {
        let file = path(no);
        if !file.exists() {
            return Err(error(&first.path, GgufDefect::MissingPart { part: no + 1, count, file }));
        }
        let part = Part::map(&file)?;
        let (found, found_count) = part.number()?;
        if (found, found_count) != (no, count) {
            let found = found.saturating_add(1);
            return Err(error(
                &file,
                GgufDefect::PartNumber { part: no + 1, count, found, found_count },
            ));
        }
        parts.push(part);
    }
    let found = parts.iter().chain([first]).map(|part| part.tensors.len() as u64).sum();
    match first.integer("split.tensors.count")? {
        Some(expected) if expected != found => {
            Err(error(&first.path, GgufDefect::PartTensors { expected, found }))
        }
        _ => Ok(parts),
    }
}

/// The name before `-00001-of-00003.gguf`, of a part whose name is as it should be.
fn stem(path: &Path, no: u64, count: u64) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let end = format!("-{:05}-of-{count:05}.gguf", no.checked_add(1)?);
    name.strip_suffix(&end).filter(|stem| !stem.is_empty()).map(str::to_owned)
}

impl Part {
    /// `split.no` and `split.count`; of a file that is no part, 0 and 1.
    pub(super) fn number(&self) -> Result<(u64, u64)> {
        Ok((self.integer("split.no")?.unwrap_or(0), self.integer("split.count")?.unwrap_or(1)))
    }
}
