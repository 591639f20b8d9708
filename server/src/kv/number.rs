//! Numbers as Redis reads and writes them: strict integers, and decimal fractions.

use std::fmt::Write as _;

/// The digits behind the point that `INCRBYFLOAT` keeps, as Redis' `%.17Lf` does.
const FRACTION_DIGITS: usize = 17;
/// 10^17: one, in fixed point.
const ONE: i128 = 100_000_000_000_000_000;
/// Fixed-point numbers stay below 10^20 in magnitude, so that a sum of two cannot overflow.
const FIXED_LIMIT: i128 = ONE * 100_000_000_000_000_000_000;
/// The longest text that is read as a float; Redis' limit is the same.
const MAX_FLOAT_TEXT_BYTES: usize = 5 * 1024;

/// Reads an integer as Redis does: no spaces, no plus sign, no leading zeros, no `-0`.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut magnitude = 0u64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // Nineteen digits stay below 10^19, which a u64 holds.
        magnitude = magnitude * 10 + u64::from(digit - b'0');
    }
    if negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

/// Why a sum of decimals is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatError {
    /// One of the texts is no number.
    NotANumber,
    /// The sum is infinite or undefined.
    NotFinite,
}

/// Adds two decimal numbers given as text, for `INCRBYFLOAT`.
///
/// Redis computes in the 80-bit floats of x86. Here numbers below 10^20 are added exactly, in fixed
/// point with 17 decimals, so that every replica of every architecture gets the same result, and
/// 0.1 + 0.2 is 0.3; larger ones are added as `f64`. The result carries no trailing zeros.
/// Hexadecimal floats, which Redis accepts, are refused.
pub fn add_decimals(a: &[u8], b: &[u8]) -> Result<String, FloatError> {
    let (a, b) = (Decimal::parse(a)?, Decimal::parse(b)?);
    if let (Some(x), Some(y)) = (a.fixed, b.fixed) {
        return Ok(format_fixed(x + y));
    }
    let sum = a.float + b.float;
    if !sum.is_finite() {
        return Err(FloatError::NotFinite);
    }
    let text = format!("{sum:.17}");
    let trimmed = text.trim_end_matches('0').trim_end_matches('.');
    Ok(if trimmed == "-0" { "0".to_owned() } else { trimmed.to_owned() })
}

struct Decimal {
    float: f64,
    /// The same in units of 10^-17, where that is in range.
    fixed: Option<i128>,
}

impl Decimal {
    fn parse(text: &[u8]) -> Result<Decimal, FloatError> {
        let text = std::str::from_utf8(text).map_err(|_| FloatError::NotANumber)?;
        if text.len() >= MAX_FLOAT_TEXT_BYTES {
            return Err(FloatError::NotANumber);
        }
        // Accepts exactly: sign, digits with an optional point and exponent, inf, infinity, nan.
        let float: f64 = text.parse().map_err(|_| FloatError::NotANumber)?;
        let infinite_by_name = text.bytes().any(|b| matches!(b, b'i' | b'I'));
        if float.is_nan() || (float.is_infinite() && !infinite_by_name) {
            return Err(FloatError::NotANumber);
        }
        Ok(Decimal { float, fixed: parse_fixed(text) })
    }
}

/// Reads a number that `f64` has accepted into fixed point, rounding half away from zero.
fn parse_fixed(text: &str) -> Option<i128> {
    let (negative, text) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], text[at + 1..].parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // The power of ten, in units of 10^-17, of the first digit.
    let mut place = i64::from(exponent) + whole.len() as i64 - 1 + FRACTION_DIGITS as i64;
    let mut fixed = 0i128;
    for digit in whole.bytes().chain(fraction.bytes()) {
        let value = i128::from(digit.checked_sub(b'0').filter(|value| *value < 10)?);
        if place >= 0 {
            if value != 0 {
                fixed += value.checked_mul(10i128.checked_pow(u32::try_from(place).ok()?)?)?;
            }
        } else if place == -1 && value >= 5 {
            fixed += 1;
        }
        if fixed >= FIXED_LIMIT {
            return None;
        }
        place -= 1;
    }
    Some(if negative { -fixed } else { fixed })
}

fn format_fixed(value: i128) -> String {
    let (whole, fraction) =
        (value.unsigned_abs() / ONE as u128, value.unsigned_abs() % ONE as u128);
    let mut text = String::new();
    let sign = if value < 0 { "-" } else { "" };
    // Writing into a String cannot fail.
    let _ = write!(text, "{sign}{whole}");
    if fraction != 0 {
        let _ = write!(text, ".{fraction:017}");
        text.truncate(text.trim_end_matches('0').len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_strict() {
        assert_eq!(parse_integer(b"0"), Some(0));
        assert_eq!(parse_integer(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse_integer(b"9223372036854775807"), Some(i64::MAX));
        for bad in ["", "-", "-0", "+1", "01", " 1", "1 ", "1.0", "9223372036854775808", "1a"] {
            assert_eq!(parse_integer(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_integer(b"-9223372036854775809"), None);
    }

    #[track_caller]
    fn sum(a: &str, b: &str) -> String {
        add_decimals(a.as_bytes(), b.as_bytes()).expect("two numbers")
    }

    #[test]
    fn decimals_add_as_on_paper() {
        assert_eq!(sum("10.5", "0.1"), "10.6");
        assert_eq!(sum("0.1", "0.2"), "0.3");
        assert_eq!(sum("5.0e3", "2.0e2"), "5200");
        assert_eq!(sum("3", "-3"), "0");
        assert_eq!(sum("-0.5", "0.25"), "-0.25");
        assert_eq!(sum("1e-17", "0"), "0.00000000000000001");
        assert_eq!(sum("5e-18", "0"), "0.00000000000000001");
        assert_eq!(sum("4e-18", "0"), "0");
        assert_eq!(sum(".5", "1."), "1.5");
        assert_eq!(sum("1e300", "1"), format!("{:.0}", 1e300));
        assert_eq!(sum("1e19", "1e19"), "20000000000000000000");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in ["", " 1", "1 ", "abc", "1e", "nan", "0x10", "1e999", "--1"] {
            assert_eq!(add_decimals(bad.as_bytes(), b"1"), Err(FloatError::NotANumber), "{bad}");
        }
        assert_eq!(add_decimals(b"inf", b"1"), Err(FloatError::NotFinite));
        assert_eq!(add_decimals(b"1e308", b"1.7e308"), Err(FloatError::NotFinite));
    }
}
