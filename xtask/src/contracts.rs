//! Contracts in the code, held against the rules and against what tests reach: part of `cargo xtask rules`.
//!
//! Faults: a contract of a rule that is gone, or of a tier that is not there; two contracts with one text; a
//! contract that no test reaches. What is reached is counted by `tests/tests/contracts.rs`, which runs the
//! scripts, random walks and properties.

use std::collections::{BTreeMap, BTreeSet};

use crate::report::Report;
use crate::workspace::{Source, cargo, output};

/// Where contracts stand.
const PLACES: [&str; 2] = ["consensus/src/", "pmem-log/src/"];

/// The macros themselves.
const DEFINITION: &str = "consensus/src/contract.rs";

const KINDS: [&str; 3] = ["requires!(", "ensures!(", "invariant!("];

/// One contract.
struct Contract {
    at: String,
    tier: String,
    rule: String,
    text: String,
}

/// Checks the contracts in `sources`; `known` are the rules that there are.
pub(crate) fn check(sources: &[Source], known: &BTreeSet<&str>, report: &mut Report) -> usize {
    let contracts = contracts(sources);
    let mut texts = BTreeSet::new();
    let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
    for contract in &contracts {
        let Contract { at, tier, rule, text } = contract;
        *rules.entry(rule).or_default() += 1;
        if !known.contains(rule.as_str()) {
            report.fault(format!("{at}: a contract of rule {rule}, which is gone: {text}"));
        }
        if tier != "always" && tier != "checked" {
            report.fault(format!("{at}: {tier} is no tier: {text}"));
        }
        if !texts.insert(text) {
            report.fault(format!("{at}: another contract says the same: {text}"));
        }
    }
    let always = contracts.iter().filter(|contract| contract.tier == "always").count();
    let list: Vec<String> = rules.iter().map(|(rule, count)| format!("{rule} {count}")).collect();
    report.note(format!(
        "{} contracts, {always} of them always on: {}",
        contracts.len(),
        list.join(", ")
    ));
    contracts.len()
}

/// Runs the tests that reach contracts, and names those that none reaches.
pub(crate) fn check_reached(sources: &[Source], report: &mut Report) -> Result<(), String> {
    let mut tests = cargo();
    tests.args(["test", "-q", "--locked", "-p", "quorate-tests", "--test", "contracts"]);
    tests.args(["every_contract_is_reached", "--", "--nocapture"]);
    let said = output(&mut tests);
    let said = match said {
        Ok(said) | Err(said) => said,
    };
    let reached = reached(&said);
    for contract in contracts(sources) {
        if !reached.contains(contract.text.as_str()) {
            report.fault(format!("{}: no test reaches: {}", contract.at, contract.text));
        }
    }
    Ok(())
}

/// The texts behind `contract reached N times: `, but for N = 0.
fn reached(said: &str) -> BTreeSet<&str> {
    let lines = said.lines().filter_map(|line| Some(line.split_once("contract reached ")?.1));
    let lines = lines.filter_map(|line| line.split_once(" times: "));
    lines.filter(|(times, _)| *times != "0").map(|(_, text)| text).collect()
}

fn contracts(sources: &[Source]) -> Vec<Contract> {
    let mut found = Vec::new();
    let code = sources.iter().filter(|source| source.path.ends_with(".rs"));
    let code = code.filter(|source| PLACES.iter().any(|place| source.path.starts_with(place)));
    for source in code.filter(|source| source.path != DEFINITION) {
        for (at, kind) in KINDS.iter().flat_map(|kind| source.text.match_indices(*kind)) {
            let line = source.text[..at].lines().count();
            let rest = &source.text[at + kind.len()..];
            let mut parts = rest.split(',').map(|part| part.trim().to_owned());
            let tier = parts.next().unwrap_or_default();
            let rule = parts.next().unwrap_or_default();
            let text = rest.split('"').nth(1).unwrap_or_default().to_owned();
            found.push(Contract { at: format!("{}:{line}", source.path), tier, rule, text });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(code: &str) -> Vec<String> {
        let sources = [Source { path: "consensus/src/a.rs".into(), text: code.into() }];
        let mut report = Report::new("contracts", "contracts");
        check(&sources, &BTreeSet::from(["A1", "A2"]), &mut report);
        report.faults().to_vec()
    }

    #[test]
    fn a_contract_cites_a_rule_and_says_what_no_other_says() {
        let one = "requires!(always, A1, x > y, \"it grows\");";
        assert_eq!(faults(one), [""; 0]);
        let long = "ensures!(\n    checked,\n    A2,\n    x,\n    \"it is\"\n);";
        assert_eq!(faults(&format!("{one}\n{long}")), [""; 0]);
        assert!(faults(&one.replace("A1", "A7"))[0].contains("which is gone"));
        assert!(faults(&one.replace("always", "often"))[0].contains("no tier"));
        assert!(faults(&format!("{one}{one}"))[0].contains("says the same"));
    }

    #[test]
    fn what_is_not_reached_is_told_from_what_is() {
        let said = "contract reached 3 times: it grows\ncontract reached 0 times: it is\n";
        assert_eq!(reached(said), BTreeSet::from(["it grows"]));
    }
}
