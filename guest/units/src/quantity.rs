//! Kubernetes quantities, read exactly.
//!
//! `1`, `0.25`, `250m`, `1.5Gi`, `2e3`, `.5`, `1E` (exa): an optional sign, a decimal number, and a
//! binary suffix, a decimal suffix or a decimal exponent. Integers only: no rounding but the final
//! one, which is up, as Kubernetes does it.

/// Longer texts are refused before they are looked at.
const MAX_TEXT: usize = 64;
/// Decimal exponents beyond this are out of every range.
const MAX_EXPONENT: i32 = 36;

/// Why a text is no usable quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Nothing but white space, or no digit.
    #[error("quantity without a digit")]
    Empty,
    /// A character where none is allowed.
    #[error("quantity with a malformed number")]
    Malformed,
    /// A suffix that Kubernetes does not know.
    #[error("quantity with an unknown suffix")]
    Suffix,
    /// Below zero, where only amounts make sense.
    #[error("quantity is negative")]
    Negative,
    /// Too large for the unit, or with more digits than can be held exactly.
    #[error("quantity is out of range")]
    Range,
}

/// Reads a quantity in units of `10^-scale`, rounded up to the next whole one.
///
/// `parse_scaled("0.25", 3)` is 250, `parse_scaled("1Ki", 0)` is 1024.
///
/// # Errors
/// When the text is no quantity, is negative, or does not fit.
pub fn parse_scaled(text: &str, scale: u32) -> Result<u64, QuantityError> {
    if text.len() > MAX_TEXT {
        return Err(QuantityError::Range);
    }
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (mantissa, fraction_digits) = mantissa(number)?;
    let (factor, exponent) = suffix_factor(suffix)?;
    if mantissa == 0 {
        return Ok(0);
    }
    if negative {
        return Err(QuantityError::Negative);
    }
    let scale = i32::try_from(scale).map_err(|_| QuantityError::Range)?;
    let power = exponent + scale - fraction_digits;
    let whole = mantissa.checked_mul(factor).ok_or(QuantityError::Range)?;
    let result = if power >= 0 {
        whole.checked_mul(ten_to(power)?).ok_or(QuantityError::Range)?
    } else {
        // A divisor beyond the type is larger than any number: the remainder rounds up to one.
        ten_to(-power).map_or(1, |divisor| whole.div_ceil(divisor))
    };
    u64::try_from(result).map_err(|_| QuantityError::Range)
}

/// The digits as an integer, and how many of them stand behind the point.
fn mantissa(number: &str) -> Result<(u128, i32), QuantityError> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') {
        return Err(QuantityError::Malformed);
    }
    if whole.is_empty() && fraction.is_empty() {
        return Err(QuantityError::Empty);
    }
    let fraction = fraction.trim_end_matches('0');
    let digits = whole.bytes().chain(fraction.bytes());
    let mantissa = digits
        .into_iter()
        .try_fold(0u128, |sum, digit| sum.checked_mul(10)?.checked_add(u128::from(digit - b'0')));
    let places = i32::try_from(fraction.len()).map_err(|_| QuantityError::Range)?;
    mantissa.map(|mantissa| (mantissa, places)).ok_or(QuantityError::Range)
}

/// What a suffix multiplies by: a factor and a power of ten.
fn suffix_factor(suffix: &str) -> Result<(u128, i32), QuantityError> {
    Ok(match suffix {
        "" => (1, 0),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        other => {
            let exponent = other.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
                return Err(QuantityError::Suffix);
            }
            let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Range)?;
            if exponent.abs() > MAX_EXPONENT {
                return Err(QuantityError::Range);
            }
            (1, exponent)
        }
    })
}

fn ten_to(power: i32) -> Result<u128, QuantityError> {
    let power = u32::try_from(power).map_err(|_| QuantityError::Range)?;
    10u128.checked_pow(power).ok_or(QuantityError::Range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_read_exactly() {
        let cases: &[(&str, u32, Result<u64, QuantityError>)] = &[
            ("0", 0, Ok(0)),
            ("1", 3, Ok(1000)),
            ("250m", 3, Ok(250)),
            ("0.25", 3, Ok(250)),
            (".5", 3, Ok(500)),
            ("5.", 0, Ok(5)),
            ("+7", 0, Ok(7)),
            ("1.5", 3, Ok(1500)),
            ("0.0001", 3, Ok(1)),
            ("100u", 3, Ok(1)),
            ("1n", 0, Ok(1)),
            ("1Ki", 0, Ok(1024)),
            ("1.5Gi", 0, Ok(3 << 29)),
            ("1500Mi", 0, Ok(1500 << 20)),
            ("15Ei", 0, Ok(15 << 60)),
            ("2k", 0, Ok(2000)),
            ("1E", 0, Ok(1_000_000_000_000_000_000)),
            ("1e3", 0, Ok(1000)),
            ("1E-1", 0, Ok(1)),
            ("1.0000000000", 0, Ok(1)),
            ("0.1Ki", 0, Ok(103)),
            ("-0", 0, Ok(0)),
            ("0e-36", 9, Ok(0)),
            ("1e-36", 0, Ok(1)),
            ("-1", 0, Err(QuantityError::Negative)),
            ("16Ei", 0, Err(QuantityError::Range)),
            ("1e40", 0, Err(QuantityError::Range)),
            ("1e99999999999", 0, Err(QuantityError::Range)),
            ("", 0, Err(QuantityError::Empty)),
            (".", 0, Err(QuantityError::Empty)),
            ("Ki", 0, Err(QuantityError::Empty)),
            ("1.2.3", 0, Err(QuantityError::Malformed)),
            ("1ki", 0, Err(QuantityError::Suffix)),
            ("1 Ki", 0, Err(QuantityError::Suffix)),
            ("1e", 0, Err(QuantityError::Suffix)),
            ("1e1.5", 0, Err(QuantityError::Suffix)),
            ("--1", 0, Err(QuantityError::Empty)),
        ];
        for (text, scale, expected) in cases {
            assert_eq!(parse_scaled(text, *scale), *expected, "{text:?} at scale {scale}");
        }
        assert_eq!(parse_scaled(&"1".repeat(65), 0), Err(QuantityError::Range));
    }

    proptest! {
        #[test]
        fn whole_numbers_come_back(value: u64) {
            prop_assert_eq!(parse_scaled(&value.to_string(), 0), Ok(value));
        }

        #[test]
        fn a_fraction_rounds_up_to_the_next_whole_one(whole in 0u64..1_000_000, thousandths in 1u64..1000) {
            let text = format!("{whole}.{thousandths:03}");
            prop_assert_eq!(parse_scaled(&text, 0), Ok(whole + 1));
            prop_assert_eq!(parse_scaled(&text, 3), Ok(whole * 1000 + thousandths));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}", scale in 0u32..10) {
            let _ = parse_scaled(&text, scale);
        }

        #[test]
        fn quantity_like_text_is_read_or_refused(text in "[+-]?[0-9.]{0,30}[numkMGTPEeKi0-9+-]{0,6}", scale in 0u32..10) {
            let _ = parse_scaled(&text, scale);
        }
    }
}
