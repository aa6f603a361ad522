//! Files that llama.cpp and transformers read were refused here, or read otherwise than there: a
//! model in parts, a name without a suffix, a list in a number's place, a scaling of positions
//! without its type. Each is read as they read it, and what is still refused is called by its name.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "made values are small"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use pleach::arch::RopeScaling;
use pleach::base::BaseModel;
use pleach::error::{ConfigDefect, GgufDefect};
use pleach::testing::{TinyModel, tiny_gguf, tiny_hf_model};
use pleach::{Error, WeightName};
use serde_json::json;

/// A GGUF file taken apart.
struct Parts {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, QTensor>,
}

impl Parts {
    fn of(model: &TinyModel, dtype: GgmlDType) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("whole.gguf");
        tiny_gguf(&path, model, dtype);
        let mut file = File::open(path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let mut tensors = BTreeMap::new();
        for name in content.tensor_infos.keys() {
            tensors.insert(name.clone(), content.tensor(&mut file, name, &Device::Cpu).unwrap());
        }
        Self { metadata: content.metadata.into_iter().collect(), tensors }
    }

    fn write(&self, path: &Path) {
        let metadata: Vec<_> =
            self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    /// Writes them with these metadata, too, and opens that.
    fn open_with(mut self, metadata: &[(&str, Value)]) -> pleach::Result<BaseModel> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.gguf");
        self.metadata
            .extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.write(&path);
        BaseModel::open(&path)
    }
}

fn all(base: &BaseModel) -> BTreeMap<String, Vec<f32>> {
    base.weights()
        .map(|(name, info)| {
            let mut values = vec![0.0; info.rows() * info.cols()];
            base.read_rows(name, 0..info.rows(), &mut values).unwrap();
            (name.to_string(), values)
        })
        .collect()
}

fn gguf_defect(result: pleach::Result<BaseModel>) -> GgufDefect {
    match result {
        Err(Error::Gguf { defect, .. }) => defect,
        other => panic!("{:?}", other.err()),
    }
}

fn config_defect(result: pleach::Result<BaseModel>) -> ConfigDefect {
    match result {
        Err(Error::Config { defect, .. }) => defect,
        other => panic!("{:?}", other.err()),
    }
}

/// Writes `parts` in `count` files and returns their paths.
fn split(parts: Parts, dir: &Path, count: usize) -> Vec<PathBuf> {
    let total = parts.tensors.len();
    let mut tensors = parts.tensors.into_iter();
    let names = (0..count).map(|no| dir.join(format!("base-{:05}-of-{count:05}.gguf", no + 1)));
    let write = |(no, path): (usize, PathBuf)| {
        let mut metadata = BTreeMap::from([
            ("split.no".to_owned(), Value::U16(no as u16)),
            ("split.count".to_owned(), Value::U16(count as u16)),
            ("split.tensors.count".to_owned(), Value::I32(total as i32)),
        ]);
        if no == 0 {
            metadata.extend(parts.metadata.clone());
        }
        // The first part has the metadata alone, as `gguf-split --no-tensor-first-split` writes it.
        let here = if no == 0 { 0 } else { total.div_ceil(count - 1) };
        Parts { metadata, tensors: tensors.by_ref().take(here).collect() }.write(&path);
        path
    };
    names.enumerate().map(write).collect()
}

#[test]
fn model_in_parts_is_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = TinyModel { tied: false, ..TinyModel::default() };
    let whole = dir.path().join("whole.gguf");
    tiny_gguf(&whole, &model, GgmlDType::Q8_0);
    let whole = BaseModel::open(&whole).unwrap();
    let paths = split(Parts::of(&model, GgmlDType::Q8_0), dir.path(), 3);
    let base = BaseModel::open(&paths[0]).unwrap();
    assert_eq!(all(&base), all(&whole));
    assert_eq!(base.config(), whole.config());
    // As of several safetensors: one line a file.
    let line = |path: &PathBuf| {
        let hash = blake3::hash(&std::fs::read(path).unwrap()).to_hex();
        format!("{} {hash}\n", path.file_name().unwrap().to_str().unwrap())
    };
    let lines: String = paths.iter().map(line).collect();
    assert_eq!(base.content_hash(), blake3::hash(lines.as_bytes()).to_hex().as_str());
    let bytes: u64 = paths.iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
    assert_eq!(base.file_bytes(), bytes);

    match gguf_defect(BaseModel::open(&paths[1])) {
        GgufDefect::NotFirstPart { part: 2, count: 3, first } => assert_eq!(first, paths[0]),
        other => panic!("{other}"),
    }
    let renamed = dir.path().join("renamed.gguf");
    std::fs::copy(&paths[0], &renamed).unwrap();
    assert!(matches!(
        gguf_defect(BaseModel::open(&renamed)),
        GgufDefect::PartName { part: 1, count: 3 }
    ));
    let third = std::fs::read(&paths[2]).unwrap();
    std::fs::copy(&paths[1], &paths[2]).unwrap();
    match gguf_defect(BaseModel::open(&paths[0])) {
        GgufDefect::PartNumber { part: 3, count: 3, found: 2, found_count: 3 } => {}
        other => panic!("{other}"),
    }
    std::fs::remove_file(&paths[2]).unwrap();
    match gguf_defect(BaseModel::open(&paths[0])) {
        GgufDefect::MissingPart { part: 3, count: 3, file } => assert_eq!(file, paths[2]),
        other => panic!("{other}"),
    }
    std::fs::write(&paths[2], &third[..third.len() / 2]).unwrap();
    assert!(
        matches!(BaseModel::open(&paths[0]), Err(Error::Gguf { path, .. }) if path == paths[2])
    );
}

#[test]
fn parts_of_another_model_are_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = TinyModel::default();
    let paths = split(Parts::of(&model, GgmlDType::Q8_0), dir.path(), 2);
    let larger = TinyModel { layers: 3, ..model };
    let others = split(Parts::of(&larger, GgmlDType::Q8_0), other.path(), 2);
    std::fs::copy(&others[1], &paths[1]).unwrap();
    match gguf_defect(BaseModel::open(&paths[0])) {
        GgufDefect::PartTensors { expected, found } => assert_eq!(found, expected + 9),
        other => panic!("{other}"),
    }
}

#[test]
fn gguf_is_known_by_its_first_bytes_not_its_name() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["base", "sha256-0123abcd", "base.bin"] {
        let path = dir.path().join(name);
        tiny_gguf(&path, &TinyModel::default(), GgmlDType::Q8_0);
        BaseModel::open(&path).unwrap();
    }
}

/// llama.cpp writes it where a row is no multiple of 256, which the others of those files need.
#[test]
fn iq4_nl_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    // The same bytes by two types: both have a scale and 32 nibbles a block.
    tiny_gguf(&path, &TinyModel::default(), GgmlDType::Q4_0);
    let plain = all(&BaseModel::open(&path).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    let content = Content::read(&mut File::open(&path).unwrap()).unwrap();
    for (name, _) in
        content.tensor_infos.iter().filter(|(_, info)| info.ggml_dtype == GgmlDType::Q4_0)
    {
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap()
            + name.len();
        // Number of dimensions, two of them, then the type.
        assert_eq!(bytes[at + 20..at + 24], 2u32.to_le_bytes());
        bytes[at + 20] = 20;
    }
    let path = dir.path().join("iq4_nl.gguf");
    std::fs::write(&path, bytes).unwrap();
    let base = BaseModel::open(&path).unwrap();
    let table = [
        -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0,
        69.0, 89.0, 113.0,
    ];
    for (name, values) in all(&base) {
        let info = base.weight(&WeightName::new(&name)).unwrap();
        if info.shape.len() == 1 {
            continue;
        }
        assert_eq!(info.dtype, "IQ4_NL");
        for (found, linear) in values.chunks(32).zip(plain[&name].chunks(32)) {
            // Q4_0's largest value is −8 scales.
            let scale =
                linear.iter().fold(0.0f32, |max, v| if v.abs() > max.abs() { *v } else { max })
                    / -8.0;
            assert_ne!(scale, 0.0);
            let expected =
                linear.iter().map(|value| scale * table[(value / scale + 8.0).round() as usize]);
            assert!(expected.eq(found.iter().copied()), "{name}");
        }
    }
}

#[test]
fn lists_of_one_value_for_all_layers_are_that_value() {
    let parts = || Parts::of(&TinyModel::default(), GgmlDType::Q8_0);
    let list =
        |values: &[u32]| Value::Array(values.iter().map(|value| Value::U32(*value)).collect());
    let plain = parts().open_with(&[]).unwrap();
    let base = parts()
        .open_with(&[
            ("llama.attention.head_count", list(&[4, 4])),
            ("llama.attention.head_count_kv", list(&[2, 2])),
            ("llama.feed_forward_length", list(&[96, 96])),
        ])
        .unwrap();
    assert_eq!(base.config(), plain.config());
    match config_defect(parts().open_with(&[("llama.attention.head_count_kv", list(&[2, 4]))])) {
        ConfigDefect::Unsupported { key, .. } => assert_eq!(key, "llama.attention.head_count_kv"),
        other => panic!("{other}"),
    }
    match config_defect(parts().open_with(&[("llama.feed_forward_length", list(&[96]))])) {
        ConfigDefect::Value { key, .. } => assert_eq!(key, "llama.feed_forward_length"),
        other => panic!("{other}"),
    }
}

/// llama.cpp: no type is linear, zero is none, `none` scales nothing, and both the factor and the
/// divisors count.
#[test]
fn rope_factor_counts_without_a_type_and_beside_divisors() {
    let parts = |divisors: Option<Vec<f32>>| {
        let mut parts = Parts::of(&TinyModel::default(), GgmlDType::Q8_0);
        if let Some(divisors) = divisors {
            let tensor = Tensor::from_vec(divisors, 8, &Device::Cpu).unwrap();
            let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
            parts.tensors.insert("rope_freqs.weight".to_owned(), tensor);
        }
        parts
    };
    let factor = |value: f32| ("llama.rope.scaling.factor", Value::F32(value));
    let kind = |name: &str| ("llama.rope.scaling.type", Value::String(name.to_owned()));
    let old = ("llama.rope.scale_linear", Value::F32(2.0));
    let linear = RopeScaling::Linear { factor: 4.0 };
    for (metadata, expected) in [
        (vec![], RopeScaling::None),
        (vec![factor(4.0)], linear.clone()),
        (vec![factor(4.0), old.clone()], linear.clone()),
        (vec![factor(4.0), kind("linear")], linear),
        (vec![kind("linear")], RopeScaling::None),
        (vec![factor(0.0)], RopeScaling::None),
        (vec![factor(4.0), kind("none")], RopeScaling::None),
        (vec![old.clone()], RopeScaling::Linear { factor: 2.0 }),
        (vec![old, kind("linear")], RopeScaling::Linear { factor: 2.0 }),
    ] {
        assert_eq!(
            parts(None).open_with(&metadata).unwrap().config().rope_scaling,
            expected,
            "{metadata:?}"
        );
    }
    let divisors: Vec<f32> = (1..=8).map(|i| i as f32).collect();
    let scaled =
        |by: f32| RopeScaling::Factors(divisors.iter().map(|divisor| divisor * by).collect());
    for (metadata, expected) in [
        (vec![], scaled(1.0)),
        (vec![factor(4.0)], scaled(4.0)),
        (vec![factor(4.0), kind("linear")], scaled(4.0)),
        (vec![factor(4.0), kind("none")], scaled(1.0)),
    ] {
        let base = parts(Some(divisors.clone())).open_with(&metadata).unwrap();
        assert_eq!(base.config().rope_scaling, expected, "{metadata:?}");
    }
    for (metadata, key) in [
        (vec![factor(4.0), kind("yarn")], "llama.rope.scaling.type"),
        (
            vec![("llama.rope.scaling.attn_factor", Value::F32(1.2))],
            "llama.rope.scaling.attn_factor",
        ),
    ] {
        for divisors in [None, Some(divisors.clone())] {
            match config_defect(parts(divisors).open_with(&metadata)) {
                ConfigDefect::Unsupported { key: found, .. } => assert_eq!(found, key),
                other => panic!("{other}"),
            }
        }
    }
}

/// llama.cpp reads a window for other architectures only.
#[test]
fn window_of_a_llama_file_is_not_used() {
    let parts = Parts::of(&TinyModel::default(), GgmlDType::Q8_0);
    let base = parts.open_with(&[("llama.attention.sliding_window", Value::U32(64))]).unwrap();
    assert_eq!(base.config().sliding_window, None);
}

#[test]
fn index_may_name_more_than_there_is_and_files_in_folders_below() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel { shards: 2, ..TinyModel::default() });
    let plain = all(&BaseModel::open(dir.path()).unwrap());
    let index = dir.path().join("model.safetensors.index.json");
    let [first, second] = [1, 2].map(|no| format!("model-0000{no}-of-00002.safetensors"));
    std::fs::create_dir(dir.path().join("part")).unwrap();
    std::fs::rename(dir.path().join(&second), dir.path().join("part").join(&second)).unwrap();
    let below = format!("part/{second}");
    let write = |file: &str| {
        let map = json!({"weight_map": {"model.norm.weight": file, "no.such.tensor": first}});
        std::fs::write(&index, map.to_string()).unwrap();
    };
    write(&below);
    let base = BaseModel::open(dir.path()).unwrap();
    assert_eq!(all(&base), plain);
    let line = |name: &str| {
        format!(
            "{name} {}\n",
            blake3::hash(&std::fs::read(dir.path().join(name)).unwrap()).to_hex()
        )
    };
    assert_eq!(
        base.content_hash(),
        blake3::hash((line(&first) + &line(&below)).as_bytes()).to_hex().as_str()
    );

    write(&second);
    match config_defect(BaseModel::open(dir.path())) {
        ConfigDefect::MissingShard { tensor, file } => {
            assert_eq!((tensor.as_str(), file), ("model.norm.weight", dir.path().join(&second)));
        }
        other => panic!("{other}"),
    }
    for name in [
        "../part/x.safetensors",
        "/x.safetensors",
        "part/../x.safetensors",
        "./x.safetensors",
        "part/x.bin",
    ] {
        write(name);
        assert!(
            matches!(config_defect(BaseModel::open(dir.path())), ConfigDefect::ShardName { file } if file == name)
        );
    }
    #[cfg(unix)]
    {
        let outside = tempfile::tempdir().unwrap();
        std::fs::copy(dir.path().join(&below), outside.path().join(&second)).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        write(&format!("link/{second}"));
        assert!(matches!(
            config_defect(BaseModel::open(dir.path())),
            ConfigDefect::ShardName { .. }
        ));
    }
}

#[test]
fn f64_weights_are_read_as_the_nearest_f32() {
    let dir = tempfile::tempdir().unwrap();
    let model = TinyModel::default();
    tiny_hf_model(dir.path(), &model);
    let weights = model.weights();
    // A hair beside each value, so that rounding has something to do.
    let wide = |value: &f32| f64::from(*value) * (1.0 + 1e-12);
    let bytes: Vec<(_, _, Vec<u8>)> = weights
        .iter()
        .map(|(name, (shape, values))| {
            (name, shape, values.iter().flat_map(|v| wide(v).to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (
            name,
            safetensors::tensor::TensorView::new(safetensors::Dtype::F64, (*shape).clone(), bytes)
                .unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    let base = BaseModel::open(dir.path()).unwrap();
    let expected: BTreeMap<_, _> =
        weights.into_iter().map(|(name, (_, values))| (name, values)).collect();
    assert_eq!(all(&base), expected);
    assert!(base.weights().all(|(_, info)| info.dtype == "F64"));
}
