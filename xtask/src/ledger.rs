//! `cargo xtask ledger [--check]`: every `unsafe` of the workspace with its obligation, as one page.
//!
//! The page is made from the `SAFETY:` comments, so that whoever audits reads one list, and a change
//! of unsafe code shows as a change of that list. `tidy` fails when it is stale.

use std::fmt::Write;
use std::fs;

use crate::report::Report;
use crate::workspace::{Source, root, sources};

const PAGE: &str = "docs/unsafe-ledger.md";

/// Made by bindgen: declarations, and the look-up of symbols.
pub(crate) const GENERATED: [&str; 2] = ["ffi/src/sys/verbs_v44.rs", "ffi/src/sys/rdmacm_v44.rs"];

const HEAD: &str = "# Unsafe ledger

Made by `cargo xtask ledger` from the `SAFETY:` comments; do not edit. Each entry is one `unsafe` block, implementation, function or
foreign declaration outside of tests: where it is, what it owes and why that holds. Everything else in the workspace forbids unsafe code.
";

pub(crate) fn run(check: bool) -> Result<Report, String> {
    let mut report = Report::new("ledger", "entries");
    let sources = sources()?;
    if check {
        stale(&sources, &mut report);
    } else {
        let (page, count) = page(&sources);
        report.checked(count);
        fs::write(root().join(PAGE), page).map_err(|error| format!("{PAGE}: {error}"))?;
    }
    Ok(report)
}

/// A fault if the page is not what the code says.
pub(crate) fn stale(sources: &[Source], report: &mut Report) {
    let (page, count) = page(sources);
    report.checked(count);
    if sources.iter().find(|source| source.path == PAGE).is_none_or(|kept| kept.text != page) {
        report.fault(format!("{PAGE} is stale: run `cargo xtask ledger`"));
    }
}

fn page(sources: &[Source]) -> (String, usize) {
    let (mut page, mut total) = (HEAD.to_owned(), 0);
    let code = sources.iter().filter(|source| {
        source.path.ends_with(".rs")
            && source.path.contains("/src/")
            && !source.path.starts_with("xtask/")
    });
    for source in code {
        if GENERATED.contains(&source.path.as_str()) {
            let count = source.text.matches("unsafe").count();
            let path = &source.path;
            let _ = write!(page, "\n## {path}\n\nMade by bindgen, {count} times the word.\n");
            continue;
        }
        let entries = entries(&source.text);
        if entries.is_empty() {
            continue;
        }
        total += entries.len();
        let _ = write!(page, "\n## {}: {}\n\n", source.path, entries.len());
        for (place, safety) in entries {
            let _ = writeln!(page, "- `{place}`: {safety}");
        }
    }
    let _ = write!(page, "\n{total} entries.\n");
    (page, total)
}

/// Where each `unsafe` of a file is, and its comment. Tests are left out: they end a file.
fn entries(text: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let product = lines.iter().position(|line| line.trim() == "#[cfg(test)]");
    let product = &lines[..product.unwrap_or(lines.len())];
    let mut found = Vec::new();
    for (index, line) in product.iter().enumerate() {
        let code = line.split("//").next().unwrap_or(line);
        let is_word = code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
        let quoted = code.contains('"') && code.contains("concat!");
        // A type that mentions unsafe functions does nothing.
        if is_word && !quoted && !code.contains("unsafe extern \"C\" fn(") {
            found.push((place(product, index), obligation(product, index)));
        }
    }
    found
}

/// The function around a line, or the line itself if it opens something.
fn place(lines: &[&str], index: usize) -> String {
    let own = lines[index].trim().trim_end_matches('{').trim();
    if own.starts_with("unsafe impl") || own.contains("unsafe fn") || own.contains("unsafe extern")
    {
        return own.to_owned();
    }
    let name = |line: &&str| {
        let rest = line.trim_start();
        let at = rest.find("fn ").filter(|at| !rest[..*at].contains("//"))?;
        let name = rest[at + 3..].split(['(', '<']).next()?;
        name.chars().all(|c| c.is_alphanumeric() || c == '_').then(|| name.to_owned())
    };
    let found = lines[..=index].iter().rev().find_map(name);
    found.unwrap_or_else(|| own.to_owned())
}

/// The comment that states the obligation of a line.
fn obligation(lines: &[&str], index: usize) -> String {
    let comment = |line: &str| {
        let line = line.trim_start();
        let text = line.strip_prefix("///").or_else(|| line.strip_prefix("//"));
        text.map(|text| text.trim().to_owned())
    };
    let start = (index.saturating_sub(12)..=index)
        .rev()
        .find(|at| lines[*at].contains("SAFETY:") || lines[*at].contains("# Safety"));
    let Some(start) = start else { return "a declaration".into() };
    let words = lines[start..=index].iter().map_while(|line| comment(line));
    let text = words.collect::<Vec<_>>().join(" ");
    let text = text.trim_start_matches("SAFETY:").trim_start_matches("# Safety");
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "fn outer() {\n    // SAFETY: it is total,\n    // and cheap.\n    unsafe { f() };\n}\n\n/// Does.\n///\n/// # Safety\n/// Call it once.\nunsafe fn once() {}\n#[cfg(test)]\nmod tests {\n    unsafe { g() }\n}\n";

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn each_unsafe_stands_with_its_place_and_obligation() {
        let code = CODE.replace("unsafe", concat!("un", "safe"));
        let expected = [
            ("outer".to_owned(), "it is total, and cheap.".to_owned()),
            (concat!("un", "safe fn once() {}").to_owned(), "Call it once.".to_owned()),
        ];
        assert_eq!(entries(&code), expected);
    }

    #[test]
    fn a_page_that_misses_one_is_stale() {
        let mut sources = vec![source("ffi/src/a.rs", CODE)];
        let (page, count) = page(&sources);
        assert_eq!(count, 2);
        sources.push(source(PAGE, &page));
        let faults = |sources: &[Source]| {
            let mut report = Report::new("ledger", "entries");
            stale(sources, &mut report);
            report.faults().len()
        };
        assert_eq!(faults(&sources), 0);
        sources[0].text = CODE.replace("cheap", "dear");
        assert_eq!(faults(&sources), 1);
        sources.pop();
        assert_eq!(faults(&sources), 1);
    }
}
