//! Where things are, and cargo's answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The top of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cargo that runs this command.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command; its standard output. What it prints on standard error passes through.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let what = format!("{:?}", command.get_program());
    let result = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| format!("{what} does not run: {error}"))?;
    if !result.status.success() {
        return Err(format!("{command:?} failed ({})", result.status));
    }
    String::from_utf8(result.stdout).map_err(|_| format!("{what} printed no UTF-8"))
}

/// A file of the repository as text.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// All text files of the repository, sorted by path. Build output and files that are no UTF-8 are
/// left out.
pub(crate) fn sources() -> Result<Vec<Source>, String> {
    let root = root();
    let mut found = Vec::new();
    collect(&root, &root, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) -> Result<(), String> {
    let wrong = |error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let kind = entry.file_type().map_err(wrong)?;
        if kind.is_dir() {
            if name != ".git" && name != "target" && !name.starts_with("target-") {
                collect(root, &path, found)?;
            }
        } else if kind.is_file()
            // In a second work tree of a repository this is a file, and no source.
            && name != ".git"
            && let Ok(text) = fs::read_to_string(&path)
        {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            found.push(Source { path: parts.join("/"), text });
        }
    }
    Ok(())
}
