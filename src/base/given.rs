//! A setting that may be absent, null or given: a configuration class takes its default for the
//! first alone.

use serde::{Deserialize, Deserializer};

use crate::error::ConfigDefect;

/// What a JSON object says of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Given<T> {
    #[default]
    Absent,
    Null,
    Value(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Null, Self::Value))
    }
}

impl<T: Copy> Given<T> {
    /// The value, or the default where the key is absent. Null is refused: the class takes none for
    /// this key.
    pub(super) fn or(self, key: &str, default: T) -> Result<T, ConfigDefect> {
        match self {
            Self::Absent => Ok(default),
            Self::Null => Err(ConfigDefect::Missing { key: key.to_owned() }),
            Self::Value(value) => Ok(value),
        }
    }

    /// The value, none where it is null, or the default where the key is absent.
    pub(super) fn or_none(self, default: Option<T>) -> Option<T> {
        match self {
            Self::Absent => default,
            Self::Null => None,
            Self::Value(value) => Some(value),
        }
    }
}
