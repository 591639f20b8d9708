//! SPDX licence expressions, as far as crates use them.

/// Whether the licence expression can be met by licences that `allowed` accepts.
///
/// `OR` needs one side, `AND` both; `A WITH B` is one licence. The old form `MIT/Apache-2.0`
/// means `OR`.
pub(crate) fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let result = any_of(&mut rest, allowed);
    match (result, rest) {
        (Some(result), []) => Ok(result),
        _ => Err(format!("not a licence expression: {expression:?}")),
    }
}

fn any_of(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut result = all_of(rest, allowed)?;
    while let ["OR", tail @ ..] = rest {
        *rest = tail;
        result |= all_of(rest, allowed)?;
    }
    Some(result)
}

fn all_of(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut result = one(rest, allowed)?;
    while let ["AND", tail @ ..] = rest {
        *rest = tail;
        result &= one(rest, allowed)?;
    }
    Some(result)
}

fn one(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    match *rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let result = any_of(rest, allowed)?;
            let [")", tail @ ..] = *rest else { return None };
            *rest = tail;
            Some(result)
        }
        [name, "WITH", exception, tail @ ..] => {
            *rest = tail;
            Some(allowed(&format!("{name} WITH {exception}")))
        }
        [")" | "OR" | "AND" | "WITH", ..] | [] => None,
        [name, tail @ ..] => {
            *rest = tail;
            Some(allowed(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::satisfied;

    #[test]
    fn expressions_of_crates_are_weighed_as_spdx_says() {
        let allowed = |name: &str| {
            ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].contains(&name)
        };
        for (expression, expected) in [
            ("MIT", true),
            ("MIT OR GPL-3.0-only", true),
            ("MIT/GPL-2.0", true),
            ("MIT AND GPL-3.0-only", false),
            ("(MIT OR GPL-2.0) AND Unicode-3.0", true),
            ("GPL-2.0 OR MIT AND GPL-3.0-only", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0 WITH Classpath-exception-2.0", false),
        ] {
            assert_eq!(satisfied(expression, &allowed), Ok(expected), "{expression}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for expression in ["", "MIT OR", "(MIT", "MIT Apache-2.0", "AND MIT"] {
            assert!(satisfied(expression, &|_| true).is_err(), "{expression:?}");
        }
    }
}
