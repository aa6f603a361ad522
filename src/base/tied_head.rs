//! What a file says of head and embedding beside `tie_word_embeddings: true`. Merging an adapter of
//! the head leaves a head of its own under that flag, so the tensors decide.
//!
//! **Source:** transformers' `tie_weights`: both there and different, they are not tied; one there,
//! it is both.

use std::collections::BTreeMap;

use super::Weight;
use crate::file::safetensors::SafeTensorsFile;
use crate::name::{EMBEDDING, HEAD};
use crate::{Result, WeightName};

/// Elements compared at a time.
const PART: usize = 1 << 20;

/// Leaves one matrix for both where the file has one or two equal ones; returns whether it does.
pub(super) fn settle(
    found: &mut BTreeMap<WeightName, Weight>,
    files: &[SafeTensorsFile],
) -> Result<bool> {
    let [embedding, head] = [EMBEDDING, HEAD].map(WeightName::new);
    match (found.get(&embedding), found.get(&head)) {
        (_, None) => return Ok(true),
        (Some(one), Some(other)) => {
            if !equal(one, other, files)? {
                return Ok(false);
            }
            found.remove(&head);
        }
        (None, Some(_)) => {
            if let Some(weight) = found.remove(&head) {
                found.insert(embedding, weight);
            }
        }
    }
    Ok(true)
}

fn equal(one: &Weight, other: &Weight, files: &[SafeTensorsFile]) -> Result<bool> {
    if one.info.shape != other.info.shape {
        return Ok(false);
    }
    let elements = one.info.shape.iter().product::<usize>();
    let (mut left, mut right) = (vec![0.0; PART.min(elements)], vec![0.0; PART.min(elements)]);
    for start in (0..elements).step_by(PART) {
        let range = start..elements.min(start + PART);
        let (left, right) = (&mut left[..range.len()], &mut right[..range.len()]);
        files[one.file].read_f32(&one.tensor, range.clone(), left)?;
        files[other.file].read_f32(&other.tensor, range, right)?;
        if left != right {
            return Ok(false);
        }
    }
    Ok(true)
}
