//! Redis' glob patterns (`KEYS`, `SCAN MATCH`, `CONFIG GET`): `*`, `?`, `[a-z]`, `[^a-z]` and `\` to quote.
//!
//! Only the latest `*` is ever retried, which suffices for globs: the time is at most pattern length times text length,
//! where a recursive matcher can be made to take exponential time by a hostile pattern.

/// Whether the whole of `text` matches `pattern`.
pub fn matches(pattern: &[u8], text: &[u8], ignore_case: bool) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to resume when the text behind the latest star does not match: the pattern behind it, one byte later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        if t == text.len() && p == pattern.len() {
            return true;
        }
        if t < text.len()
            && p < pattern.len()
            && let Some(next) = match_one(pattern, p, text[t], ignore_case)
        {
            p = next;
            t += 1;
            continue;
        }
        match retry {
            Some((star, from)) if from < text.len() => {
                retry = Some((star, from + 1));
                p = star;
                t = from + 1;
            }
            _ => return false,
        }
    }
}

/// Matches one byte against the element of the pattern at `p`; answers the offset behind the element.
fn match_one(pattern: &[u8], p: usize, byte: u8, ignore_case: bool) -> Option<usize> {
    let fold = |b: u8| if ignore_case { b.to_ascii_lowercase() } else { b };
    match pattern[p] {
        b'?' => Some(p + 1),
        b'[' => {
            let (hit, next) = match_class(pattern, p + 1, byte, ignore_case);
            hit.then_some(next)
        }
        b'\\' if p + 1 < pattern.len() => (fold(pattern[p + 1]) == fold(byte)).then_some(p + 2),
        other => (fold(other) == fold(byte)).then_some(p + 1),
    }
}

/// Matches a class whose first byte behind `[` is at `p`. A class that is never closed ends with the pattern.
fn match_class(pattern: &[u8], mut p: usize, byte: u8, ignore_case: bool) -> (bool, usize) {
    let fold = |b: u8| if ignore_case { b.to_ascii_lowercase() } else { b };
    let negated = pattern.get(p) == Some(&b'^');
    if negated {
        p += 1;
    }
    let mut hit = false;
    while p < pattern.len() && pattern[p] != b']' {
        if pattern[p] == b'\\' && p + 1 < pattern.len() {
            p += 1;
            hit |= pattern[p] == byte;
            p += 1;
        } else if p + 2 < pattern.len() && pattern[p + 1] == b'-' {
            let (a, b) = (fold(pattern[p]), fold(pattern[p + 2]));
            hit |= (a.min(b)..=a.max(b)).contains(&fold(byte));
            p += 3;
        } else {
            hit |= fold(pattern[p]) == fold(byte);
            p += 1;
        }
    }
    (hit != negated, (p + 1).min(pattern.len()))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: bool) {
        assert_eq!(
            matches(pattern.as_bytes(), text.as_bytes(), false),
            expected,
            "{pattern} on {text}"
        );
    }

    #[test]
    fn patterns_match_as_in_redis() {
        check("*", "", true);
        check("", "", true);
        check("", "a", false);
        check("h?llo", "hallo", true);
        check("h?llo", "hllo", false);
        check("h*llo", "heeeello", true);
        check("h[ae]llo", "hello", true);
        check("h[ae]llo", "hillo", false);
        check("h[^e]llo", "hello", false);
        check("h[a-b]llo", "hbllo", true);
        check("h[b-a]llo", "hallo", true);
        check("h\\*llo", "h*llo", true);
        check("h\\*llo", "hallo", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-b-b-d", false);
        check("[abc", "c", true);
        check("trailing\\", "trailing\\", true);
        assert!(matches(b"SAVE", b"save", true));
    }

    #[test]
    fn hostile_pattern_takes_polynomial_time() {
        let pattern = "a*".repeat(200) + "b";
        let text = "a".repeat(2_000);
        assert!(!matches(pattern.as_bytes(), text.as_bytes(), false));
    }
}
