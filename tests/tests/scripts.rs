//! The protocol's scenarios: `tests/scripts/*.script`.
//!
//! `UPDATE_SCRIPTS=1 cargo test -p quorate-tests --test scripts` writes what came as what is
//! expected; `SCRIPT=name` runs only files whose name contains it.

#[test]
fn every_script_gives_the_trace_that_was_reviewed() {
    let update = std::env::var_os("UPDATE_SCRIPTS").is_some();
    let only = std::env::var("SCRIPT").unwrap_or_default();
    quorate_tests::plant();
    let directory = quorate_tests::folder().join("scripts");
    let mut paths: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "script"))
        .filter(|path| path.file_name().unwrap().to_string_lossy().contains(&only))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no script in {}", directory.display());
    let run = |path: &std::path::PathBuf| quorate_tests::script::run_file(path, update).err();
    let failures: Vec<String> = paths.iter().filter_map(run).collect();
    assert!(failures.is_empty(), "{} scripts failed\n{}", failures.len(), failures.join("\n"));
}
