//! `cargo xtask rules`: the numbered rules of `docs/spec/paxos.md`, held against code and tests.
//!
//! Contracts are held against the rules too: see `contracts.rs`.
//!
//! Faults: a rule that names no code; a place that a rule names and that is not there; a rule that no
//! test names; a citation of a rule that is gone. Tests name rules where a script, or a line of a test,
//! says `Rule R7` or `Rules R7, R9`, and in the table of the specification that lists the checks made
//! after every event.

use crate::contracts;
use crate::report::Report;
use crate::workspace::{Source, sources};
use std::collections::BTreeSet;

const SPEC: &str = "docs/spec/paxos.md";

/// Where rules may be cited. Elsewhere the same letters number other things: clauses of the transport
/// contract, rows of the catalogue of faults.
const CITING: [&str; 7] = [
    "consensus/src/",
    "tests/",
    "replica/src/",
    "replica/tests/",
    "quorate/tests/",
    "server/src/kv/",
    "server/tests/",
];

/// What counts as a test.
const TESTS: [&str; 5] = ["tests/", "replica/tests/", "server/tests/", "quorate/tests/", "fuzz/"];

/// One rule.
struct Rule {
    name: String,
    line: usize,
    text: String,
}

pub(crate) fn run() -> Result<Report, String> {
    let sources = sources()?;
    let spec = sources.iter().find(|source| source.path == SPEC);
    let spec = spec.ok_or_else(|| format!("{SPEC} is not there"))?;
    let mut report = Report::new("rules", "rules and contracts");
    check(&spec.text, &sources, &mut report);
    let rules = rules_of(&spec.text);
    let known = rules.iter().map(|rule| rule.name.as_str()).collect();
    let count = contracts::check(&sources, &known, &mut report);
    report.checked(count);
    contracts::check_reached(&sources, &mut report)?;
    Ok(report)
}

fn check(spec: &str, sources: &[Source], report: &mut Report) {
    let rules = rules_of(spec);
    report.checked(rules.len());
    let known: BTreeSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    if known.len() != rules.len() {
        report.fault(format!("{SPEC}: two rules have one number"));
    }
    let mut tested: BTreeSet<String> = checked_after_every_event(spec);
    for source in sources {
        let cites = CITING.iter().any(|place| source.path.starts_with(place));
        if !cites || source.path == SPEC {
            continue;
        }
        let is_test = TESTS.iter().any(|place| source.path.starts_with(place))
            || source.path.ends_with("tests.rs");
        for (index, line) in source.text.lines().enumerate() {
            for name in citations(line) {
                if !known.contains(name.as_str()) {
                    let at = format!("{}:{}", source.path, index + 1);
                    report.fault(format!("{at}: rule {name} is not in {SPEC}"));
                } else if is_test || is_in_unit_tests(&source.text, index) {
                    tested.insert(name);
                }
            }
        }
    }
    for rule in &rules {
        let at = format!("{SPEC}:{}: {}", rule.line, rule.name);
        let places = places(&rule.text);
        if places.is_empty() {
            report.fault(format!("{at} names no code"));
        }
        for (path, symbols) in places {
            let Some(source) = find(sources, &path) else {
                report.fault(format!("{at} names {path}, which is not there"));
                continue;
            };
            for symbol in symbols.iter().filter(|symbol| !has_word(&source.text, symbol)) {
                report.fault(format!("{at} names {symbol} in {path}, which is not there"));
            }
        }
        if !tested.contains(&rule.name) {
            report.fault(format!("{at} has no test that names it"));
        }
    }
}

fn rules_of(spec: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut within = false;
    for (index, line) in spec.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("- **") {
            let name = rest.split([' ', '*']).next().unwrap_or_default();
            within = is_name(name);
            if within {
                rules.push(Rule { name: name.into(), line: index + 1, text: String::new() });
            }
        } else if line.trim().is_empty() || line.starts_with('#') {
            within = false;
        }
        if let Some(rule) = rules.last_mut().filter(|_| within) {
            rule.text.push_str(line);
            rule.text.push('\n');
        }
    }
    rules
}

/// A letter and a number: `R7`.
fn is_name(word: &str) -> bool {
    let mut characters = word.chars();
    characters.next().is_some_and(|letter| letter.is_ascii_uppercase())
        && (1..=2).contains(&(word.len() - 1))
        && characters.all(|digit| digit.is_ascii_digit())
}

/// The rules in `| check | rules |` of the table of checks.
fn checked_after_every_event(spec: &str) -> BTreeSet<String> {
    let table = spec.split("| check | rules |").nth(1).unwrap_or_default();
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| names(row.rsplit('|').nth(1).unwrap_or_default())).collect()
}

/// All rules that a text names, ranges (`R1 to R5`) included.
fn names(text: &str) -> Vec<String> {
    let words: Vec<&str> = text
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let mut names: Vec<String> = Vec::new();
    for (index, word) in words.iter().enumerate().filter(|(_, word)| is_name(word)) {
        let from = index.checked_sub(2).filter(|_| words[index - 1] == "to").map(|at| words[at]);
        if let Some(from) = from.filter(|from| is_name(from) && from[..1] == word[..1]) {
            let numbers = from[1..].parse::<u8>().ok().zip(word[1..].parse::<u8>().ok());
            let (low, high) = numbers.unwrap_or_default();
            names.extend((low..high).map(|number| format!("{}{number}", &word[..1])));
        }
        names.push((*word).to_string());
    }
    names
}

/// What a line cites: the names behind `rule` or `rules`, up to the first word that is neither one
/// nor `and` or `to`.
fn citations(line: &str) -> Vec<String> {
    let mut cited = Vec::new();
    for keyword in ["rule ", "rules ", "Rule ", "Rules "] {
        for rest in line.split(keyword).skip(1) {
            let list: Vec<&str> = rest
                .split_whitespace()
                .take_while(|word| {
                    let bare = word.trim_matches(|character: char| !character.is_alphanumeric());
                    is_name(bare) || bare == "and" || bare == "to"
                })
                .collect();
            cited.extend(names(&list.join(" ")));
        }
    }
    cited
}

/// Whether the line at `index` is in the unit tests at the end of a file.
fn is_in_unit_tests(text: &str, index: usize) -> bool {
    text.lines().take(index).any(|line| line.trim() == "#[cfg(test)]")
}

/// The places that a rule names: files with `/` or `.rs` in backticks, and symbols behind `::`.
fn places(text: &str) -> Vec<(String, Vec<String>)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|quoted| {
            let (path, symbols) = quoted.split_once("::").unwrap_or((quoted, ""));
            let is_path = path.rsplit('.').next() == Some("rs") && !path.contains(' ');
            let symbols = symbols
                .split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
                .filter(|symbol| !symbol.is_empty())
                .map(str::to_owned)
                .collect();
            is_path.then(|| (path.to_owned(), symbols))
        })
        .collect()
}

fn find<'a>(sources: &'a [Source], path: &str) -> Option<&'a Source> {
    let in_core = format!("consensus/src/{path}");
    sources.iter().find(|source| source.path == path || source.path == in_core)
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: &str, code: &str, test: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let sources = [source("consensus/src/a.rs", code), source("tests/scripts/a.script", test)];
        let mut report = Report::new("rules", "rules");
        check(spec, &sources, &mut report);
        report.faults().to_vec()
    }

    const SPEC_TEXT: &str = "- **A1 One.** Holds. `a.rs::Thing::{hold, keep}`.\n";
    const CODE: &str = "impl Thing { fn hold() {} fn keep() {} }";

    #[test]
    fn a_rule_with_code_and_a_test_is_sound() {
        assert_eq!(faults(SPEC_TEXT, CODE, "# Rule A1: it holds."), [""; 0]);
        let table = format!("{SPEC_TEXT}\n| check | rules |\n| --- | --- |\n| `x` | A1 to A2 |\n");
        assert_eq!(faults(&table, CODE, ""), [""; 0]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let bite = |spec: &str, code: &str, test: &str, what: &str| {
            let faults = faults(spec, code, test);
            assert!(faults.iter().any(|fault| fault.contains(what)), "{what}: {faults:?}");
        };
        bite("- **A1 One.** Nothing.\n", CODE, "# Rule A1", "names no code");
        bite(SPEC_TEXT, "impl Thing { fn hold() {} fn keeper() {} }", "# Rule A1", "names keep in");
        bite(SPEC_TEXT, CODE, "# nothing", "A1 has no test");
        bite(SPEC_TEXT, CODE, "# Rules A1, A7.", "rule A7 is not in");
        bite("- **A1 One.** `b.rs::x`.\n", CODE, "# Rule A1", "names b.rs, which is not there");
    }

    #[test]
    fn lists_and_ranges_are_read() {
        let mut cited = citations("// rules A1, A3 and P1 to P3; see R9");
        cited.dedup();
        cited.sort();
        cited.dedup();
        assert_eq!(cited, ["A1", "A3", "P1", "P2", "P3"]);
    }
}
