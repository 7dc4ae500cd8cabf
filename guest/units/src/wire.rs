//! Reading a quantity from JSON or YAML, where it may be a number or a string.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Visitor};

use crate::QuantityError;

/// A unit that has a quantity's textual form.
pub(crate) trait FromQuantity: Sized {
    const EXPECTING: &'static str;
    fn from_quantity(text: &str) -> Result<Self, QuantityError>;
}

pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromQuantity,
{
    deserializer.deserialize_any(QuantityVisitor(PhantomData))
}

struct QuantityVisitor<T>(PhantomData<T>);

impl<T: FromQuantity> Visitor<'_> for QuantityVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTING)
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::from_quantity(text).map_err(E::custom)
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        T::from_quantity(&value.to_string()).map_err(E::custom)
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        T::from_quantity(&value.to_string()).map_err(E::custom)
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        if !value.is_finite() {
            return Err(E::custom(QuantityError::Range));
        }
        // The shortest decimal text of a float, never with an exponent: 0.25 stays 0.25.
        T::from_quantity(&value.to_string()).map_err(E::custom)
    }
}
