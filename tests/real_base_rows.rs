//! A GGUF file stores the q and k rows of a Llama interleaved. Read in the file's order the model
//! still half works, so nobody notices until an adapter lands on the wrong rows. The golden corners
//! of the real base, in Hugging Face order, cover a whole head of q.

use std::path::Path;

use pleach::WeightName;
use pleach::arch::RopeScaling;
use pleach::base::BaseModel;
use pleach::file::safetensors::SafeTensorsFile;
use pleach::testing::smollm2_base;

const GOLDEN_BYTES: u64 = 16 << 20;

#[test]
fn real_base_gives_the_golden_corners_and_norms() {
    let Some(path) = smollm2_base() else { return };
    let base = BaseModel::open(&path).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2");
    let golden =
        SafeTensorsFile::read_owned(&fixtures.join("golden.safetensors"), GOLDEN_BYTES).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixtures.join("golden.json")).unwrap()).unwrap();
    for (weight, facts) in json["nodes"]["base"]["tensors"].as_object().unwrap() {
        let name = WeightName::new(weight);
        let info = base.weight(&name).unwrap();
        let mut values = vec![0.0; info.rows() * info.cols()];
        base.read_rows(&name, 0..info.rows(), &mut values).unwrap();
        let corner = golden.tensor_bytes(&format!("base|corner|{weight}")).unwrap();
        for (at, bytes) in corner.as_chunks::<8>().0.iter().enumerate() {
            let found = f64::from(values[at / 64 * info.cols() + at % 64]);
            assert_eq!(
                found,
                f64::from_le_bytes(*bytes),
                "{weight} row {} column {}",
                at / 64,
                at % 64
            );
        }
        let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let expected = facts["fro_base"].as_f64().unwrap();
        assert!((norm - expected).abs() <= 1e-6 * expected, "{weight}: {norm}, golden {expected}");
    }
}

#[test]
fn real_base_has_the_published_configuration() {
    let Some(path) = smollm2_base() else { return };
    let base = BaseModel::open(&path).unwrap();
    let config = base.config();
    assert_eq!((config.num_hidden_layers, config.hidden_size, config.head_dim), (30, 576, 64));
    assert_eq!((config.num_attention_heads, config.num_key_value_heads), (9, 3));
    assert_eq!((config.rope_theta, &config.rope_scaling), (100_000.0, &RopeScaling::None));
    assert!(config.tie_word_embeddings);
    assert_eq!(base.parameters(), 134_515_008);
}
