//! What the fault catalogue names, where something other than a plain run sees to a fault, is there.

use quorate_sim::{Mutant, Row, Standing};
use std::path::Path;

/// The pieces of a text that stand between back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The names in `text` behind `--mutants`, up to the next sign.
fn mistakes(text: &str) -> impl Iterator<Item = &str> {
    let behind = text.split("`--mutants`: ").skip(1);
    behind.flat_map(|rest| rest.split([';', '`']).next().unwrap_or_default().split(", "))
}

#[test]
fn what_the_catalogue_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let known: Vec<String> = Mutant::ALL.iter().map(|mutant| format!("{mutant:?}")).collect();
    let (mut named, mut files) = (0, 0);
    for row in Row::ALL {
        let Standing::Elsewhere(text) = row.standing() else { continue };
        for mistake in mistakes(text) {
            named += 1;
            assert!(known.iter().any(|known| known == mistake), "{row:?}: no mistake {mistake}");
        }
        let mut source = String::new();
        for piece in quoted(text).filter(|piece| !piece.starts_with("--")) {
            let (path, function) = match piece.split_once("::") {
                Some((path, function)) => (path, Some(function)),
                None if piece.contains('/') => (piece, None),
                // In the file that was named before.
                None => ("", Some(piece)),
            };
            if !path.is_empty() {
                files += 1;
                let read = std::fs::read_to_string(root.join(path));
                source = read.unwrap_or_else(|error| panic!("{row:?}: {path}: {error}"));
            }
            let there = |function| source.contains(&format!("fn {function}("));
            assert!(function.is_none_or(there), "{row:?}: no function {piece}");
        }
    }
    assert!(named > 5 && files > 10, "{named} mistakes and {files} files are looked at");
}
