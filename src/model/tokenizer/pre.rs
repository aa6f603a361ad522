//! How a byte-level BPE of a GGUF file cuts a text before it merges.
//!
//! **Source:** llama.cpp's names of pre-tokenizers, and the patterns of those models' own
//! `tokenizer.json`, which its `llama-vocab.cpp` quotes. Where its own pattern is only near to the
//! model's (no classes of upper and lower case), the model's counts. Qwen's normalise to NFC, which
//! llama.cpp leaves out.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const BAILINGMOE: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const DEEPSEEK_CJK: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";
/// Letters of the scripts with upper and lower case, as DeepSeek LLM's `tokenizer.json` lists them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    "\u{41}-\u{5a}\u{61}-\u{7a}\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}",
    "\u{1c4}-\u{293}\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}",
    "\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}",
    "\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}",
    "\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}",
    "\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}",
    "\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}",
    "\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}",
    "\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}",
    "\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}",
    "\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}",
    "\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}",
    "\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}",
    "\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}",
    "]+",
);
const DEEPSEEK_MARKS: &str = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";

/// How a byte-level BPE cuts a text before it merges.
#[derive(Clone, Copy)]
pub(super) struct Pre {
    patterns: &'static [&'static str],
    /// Whether a text is normalised to NFC first.
    pub(super) nfc: bool,
    /// Whether a piece that is a token is taken as it is.
    pub(super) ignore_merges: bool,
    /// Whether a text gets a start token where the file does not say.
    pub(super) adds_bos: bool,
}

impl Pre {
    /// llama.cpp's names. A file without one has the default's patterns.
    pub(super) fn named(name: Option<&str>) -> Option<Self> {
        let plain = |patterns| Self { patterns, nfc: false, ignore_merges: false, adds_bos: false };
        Some(match name.unwrap_or("default") {
            "" | "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
            "gpt-2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "mpt" | "olmo" | "jais"
            | "trillion" | "granite-docling" | "exaone4" | "jina-es" | "jina-de" | "jina-v2-es"
            | "jina-v2-de" | "modern-bert" => plain(&[GPT2]),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
            | "minerva-7b" | "mellum2" => plain(&[r"\p{N}", GPT2]),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral"
            | "midm-2.0" | "lfm2" | "jina-v5-nano" => {
                Self { ignore_merges: true, adds_bos: true, ..plain(&[LLAMA3]) }
            }
            "smaug-bpe" | "dbrx" | "glm4" | "chatglm-bpe" => plain(&[LLAMA3]),
            "jais-2" => plain(&[JAIS2]),
            "minicpm5" => Self { ignore_merges: true, ..plain(&[r"\p{N}{1,3}", MINICPM5]) },
            "qwen2" | "deepseek-r1-qwen" | "megrez" | "kormo" | "f2llmv2" => {
                Self { nfc: true, ..plain(&[QWEN2]) }
            }
            "qwen35" => Self { nfc: true, ..plain(&[QWEN35]) },
            "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => plain(&[QWEN2]),
            "laguna" => plain(&[r"[^\n]+|[\n]+", QWEN2]),
            "ufakzeka" => plain(&[UFAKZEKA]),
            "seed-coder" => plain(&[SEED_CODER]),
            "bailingmoe" | "bailingmoe2" | "llada-moe" => plain(&[BAILINGMOE]),
            "exaone-moe" => plain(&[EXAONE_MOE]),
            "tekken" => Self { ignore_merges: true, adds_bos: true, ..plain(&[TEKKEN]) },
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => plain(&[GPT4O]),
            "tiny_aya" | "cohere2moe" => plain(&[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O]),
            "youtu" => Self {
                ignore_merges: true,
                ..plain(&[
                    "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+",
                    YOUTU,
                ])
            },
            "deepseek-llm" => plain(&[
                r"[\r\n]",
                DEEPSEEK_LETTERS,
                DEEPSEEK_MARKS,
                r"\s+$",
                DEEPSEEK_CJK,
                r"\p{N}+",
            ]),
            "deepseek-coder" => {
                plain(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"])
            }
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => {
                plain(&[r"\p{N}{1,3}", CJK, DEEPSEEK3])
            }
            "spark2_5" => plain(&[r"\p{N}{1,3}", CJK, SPARK, r"\p{N}"]),
            "falcon" => plain(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
            "bloom" | "poro-chat" | "gpt3-finnish" => plain(&[BLOOM]),
            "viking" => plain(&[BLOOM, r"\p{N}"]),
            "chameleon" => Self {
                adds_bos: true,
                ..plain(&[
                    "<sentinel:[0-9]+>",
                    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                    r"([\t\n]|    |  )",
                    r"\p{N}",
                    r"[\p{P}!-/:-@\[-`{-~]",
                    GPT2,
                ])
            },
            _ => return None,
        })
    }

    pub(super) fn build(&self) -> Result<Sequence, tokenizers::Error> {
        let split = |pattern: &&str| {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::from)
        };
        let mut steps = self.patterns.iter().map(split).collect::<Result<Vec<_>, _>>()?;
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    /// What a text is cut into.
    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        let pre = Pre::named(Some(name)).unwrap_or_else(|| panic!("{name} is known"));
        pre.build().unwrap().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    /// `pre.json` is made by `tests/fixtures/text/make_pre.py` with another engine, from
    /// llama.cpp's own patterns.
    #[test]
    fn texts_are_cut_as_by_llama_cpp() {
        let golden: Value =
            serde_json::from_str(include_str!("../../../tests/fixtures/text/pre.json")).unwrap();
        let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
        let check = |name: &str, cuts: &Value| {
            let cuts: Vec<Vec<String>> = serde_json::from_value(cuts.clone()).unwrap();
            for (text, expected) in texts.iter().zip(cuts) {
                assert_eq!(cut(name, text), expected, "{name}: {text:?}");
            }
        };
        let cuts = golden["cuts"].as_object().unwrap();
        cuts.iter().for_each(|(name, cuts)| check(name, cuts));
        let aliases = golden["aliases"].as_object().unwrap();
        aliases.iter().for_each(|(alias, name)| check(alias, &cuts[name.as_str().unwrap()]));
        assert!(cuts.len() + aliases.len() > 60);
    }

    /// The list of marks holds ASCII letters, so a word falls apart at its others, as in the
    /// model's own tokenizer.
    #[test]
    fn deepseeks_lists_of_letters_are_those_of_its_scripts() {
        let expected =
            ["Gr", "öß", "e", " Ωμέγα", " да", ",", " ", "日本", " x", "1", " ", "12", "!"];
        assert_eq!(cut("deepseek-llm", "Größe Ωμέγα да, 日本 x1 12!"), expected);
        assert_eq!(cut("deepseek-llm", "a\nb  "), ["a", "\n", "b", "  "]);
    }
}
