//! Types of tensors in GGUF files, and how their blocks become floats.
//!
//! **Source:** ggml's `ggml_type`, and `dequantize_row_iq4_nl` with its table `kvalues_iq4nl`; the
//! other blocks through candle.

use std::fmt;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use half::f16;

use crate::file::FloatType;

/// How a tensor of a GGUF file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgufType {
    /// Those that candle knows.
    Ggml(GgmlDType),
    /// Blocks of 32 with a table of sixteen values, which llama.cpp writes where `Q2_K` or `Q3_K`
    /// does not divide a row.
    Iq4Nl,
}

/// Elements of an `IQ4_NL` block.
const IQ4_NL_BLOCK: usize = 32;
/// Its bytes: the scale, then two elements a byte.
const IQ4_NL_BYTES: usize = 2 + IQ4_NL_BLOCK / 2;
const IQ4_NL_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl GgufType {
    /// The type that has this number in ggml, if it is read.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(Self::Ggml(match number {
            0 => GgmlDType::F32,
            1 => GgmlDType::F16,
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            10 => GgmlDType::Q2K,
            11 => GgmlDType::Q3K,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            20 => return Some(Self::Iq4Nl),
            30 => GgmlDType::BF16,
            _ => return None,
        }))
    }

    /// Elements and bytes of one block.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Ggml(dtype) => (dtype.block_size(), dtype.type_size()),
            Self::Iq4Nl => (IQ4_NL_BLOCK, IQ4_NL_BYTES),
        }
    }
}

/// As its files are named: `Q4_1`, `Q2K`, `IQ4_NL`.
impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ggml(dtype) => write!(f, "{dtype:?}"),
            Self::Iq4Nl => write!(f, "IQ4_NL"),
        }
    }
}

/// Dequantises whole rows of `cols` elements from `raw` into `out`.
pub(super) fn dequantise(
    dtype: GgufType,
    raw: &[u8],
    cols: usize,
    out: &mut [f32],
) -> Result<(), candle_core::Error> {
    let dtype = match dtype {
        GgufType::Ggml(dtype) => dtype,
        GgufType::Iq4Nl => {
            iq4_nl(raw, out);
            return Ok(());
        }
    };
    let float = match dtype {
        GgmlDType::F32 => FloatType::F32,
        GgmlDType::F16 => FloatType::F16,
        GgmlDType::BF16 => FloatType::BF16,
        _ => {
            // candle reads the blocks in place, and they start with an f16. A mapped file's are
            // aligned.
            let mut aligned: Vec<u64>;
            let raw = if raw.as_ptr().addr().is_multiple_of(2) {
                raw
            } else {
                aligned = vec![0; raw.len().div_ceil(8)];
                let copy = &mut bytemuck::cast_slice_mut(&mut aligned)[..raw.len()];
                copy.copy_from_slice(raw);
                copy
            };
            let tensor = qtensor_from_ggml(dtype, raw, vec![out.len() / cols, cols], &Device::Cpu)?;
            let values = tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            out.copy_from_slice(&values);
            return Ok(());
        }
    };
    float.decode(raw, out);
    Ok(())
}

/// A byte holds element `j` in its low half and element `j + 16` in its high one.
fn iq4_nl(raw: &[u8], out: &mut [f32]) {
    for (block, out) in raw.chunks_exact(IQ4_NL_BYTES).zip(out.chunks_exact_mut(IQ4_NL_BLOCK)) {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let value = |nibble: u8| scale * f32::from(IQ4_NL_VALUES[usize::from(nibble)]);
        let (low, high) = out.split_at_mut(IQ4_NL_BLOCK / 2);
        for ((byte, low), high) in block[2..].iter().zip(low).zip(high) {
            (*low, *high) = (value(byte & 15), value(byte >> 4));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn iq4_nl_is_what_the_gguf_package_gives() {
        let golden: Value =
            serde_json::from_str(include_str!("../../../tests/fixtures/gguf/iq4_nl.json")).unwrap();
        let list = |key: &str| golden[key].as_array().unwrap().clone();
        let raw: Vec<u8> = list("bytes")
            .iter()
            .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
            .collect();
        #[allow(clippy::cast_possible_truncation, reason = "they are f32s")]
        let expected: Vec<f32> =
            list("values").iter().map(|value| value.as_f64().unwrap() as f32).collect();
        assert_eq!(expected.len(), 3 * IQ4_NL_BLOCK);
        let mut out = vec![0.0; expected.len()];
        dequantise(GgufType::Iq4Nl, &raw, expected.len(), &mut out).unwrap();
        assert_eq!(out, expected);
    }

    #[test]
    fn blocks_at_an_odd_address_are_read() {
        const ROW: usize = 20;
        let raw: Vec<u8> = (0..=20u8).map(|byte| byte % 7).collect();
        let (mut even, mut odd) = ([0.0; 32], [1.0; 32]);
        let start = usize::from(raw.as_ptr().addr().is_multiple_of(2));
        let q4_1 = GgufType::Ggml(GgmlDType::Q4_1);
        dequantise(q4_1, &raw[start..start + ROW], 32, &mut odd).unwrap();
        let copy = raw[start..start + ROW].to_vec();
        dequantise(q4_1, &copy, 32, &mut even).unwrap();
        assert_eq!(even, odd);
    }
}
