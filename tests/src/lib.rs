//! Cross-crate tests: protocol scenarios, random walks.
#![forbid(unsafe_code)]

mod cores;
pub mod passive;
pub mod script;

/// The folder of these tests, also for the package that compiles them once more (`sim/code/tests`).
#[must_use]
pub fn folder() -> std::path::PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = here.join("scripts").is_dir();
    if own { here.to_owned() } else { here.join("../../../tests") }
}

/// Plants the mistake that `QUORATE_MUTANT` names: for `cargo xtask mutants`.
///
/// # Panics
/// If this core has no such mistake.
pub fn plant() {
    if let Ok(name) = std::env::var("QUORATE_MUTANT") {
        assert!(quorate_consensus::plant(&name), "this core has no mistake {name}");
    }
}
