//! What has to be on this machine, whether it is, and which package brings it.

use crate::kernel::{self, Kernel};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One thing that has to be here.
#[derive(Clone, Copy, Debug)]
struct Need {
    /// A program to find, or a file by its whole path.
    what: &'static str,
    /// The Debian package that brings it.
    package: &'static str,
    /// What it is for.
    purpose: &'static str,
    /// Only some commands and tests need it.
    optional: bool,
}

const fn need(what: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need { what, package, purpose, optional: false }
}

const fn tool(what: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need { what, package, purpose, optional: true }
}

/// The program that runs the machines.
pub const EMULATOR: &str = "qemu-system-x86_64";

const NEEDS: [Need; 14] = [
    need(EMULATOR, "qemu-system-x86", "runs the virtual machines"),
    need("busybox", "busybox-static", "the first program in a virtual machine"),
    need("setpriv", "util-linux", "ends the emulator when its parent dies"),
    need("dpkg-deb", "dpkg", "unpacks the kernel"),
    need("depmod", "kmod", "orders the kernel's modules"),
    need("modprobe", "kmod", "loads modules in the virtual machine"),
    need("ip", "iproute2", "sets up the network in the virtual machine"),
    need("rdma", "iproute2", "creates the Soft-RoCE device"),
    need("mke2fs", "e2fsprogs", "makes the file systems of the virtual machine"),
    need("/etc/libibverbs.d/rxe.driver", "ibverbs-providers", "verbs on Soft-RoCE"),
    tool("ibv_rc_pingpong", "ibverbs-utils", "tries the device (tests)"),
    tool("ib_write_lat", "perftest", "measures the device (tests)"),
    tool("ndctl", "ndctl", "--pmem-file"),
    tool("redis-benchmark", "redis-tools", "load on a cluster (tests)"),
];

/// Something that is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub what: String,
    /// The package that brings it; none for the kernel, which is unpacked and not installed.
    pub package: Option<&'static str>,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether virtual machines run without it.
    pub optional: bool,
}

/// What was found here.
#[derive(Debug)]
pub struct Found {
    /// The kernel to boot, if there is one.
    pub kernel: Option<Kernel>,
    /// What is not here.
    pub missing: Vec<Missing>,
    /// What is here: name and place.
    pub present: Vec<(String, String)>,
}

impl Found {
    /// Whether virtual machines can run.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.missing.iter().all(|missing| missing.optional)
    }

    /// One line that says what is missing and how to get it.
    #[must_use]
    pub fn complaint(&self) -> String {
        let names: Vec<_> = self.missing.iter().map(|missing| missing.what.as_str()).collect();
        format!(
            "missing: {}. Run: cargo run -p quorate-soft-roce -- check --install",
            names.join(", ")
        )
    }

    /// Which packages would bring what is missing, each once.
    #[must_use]
    pub fn packages(&self) -> Vec<&'static str> {
        let mut packages: Vec<_> = self.missing.iter().filter_map(|m| m.package).collect();
        packages.sort_unstable();
        packages.dedup();
        packages
    }
}

/// Looks for everything.
#[must_use]
pub fn look() -> Found {
    let mut found = Found { kernel: kernel::find(), missing: Vec::new(), present: Vec::new() };
    for need in NEEDS {
        match place(need.what) {
            Some(path) => found.present.push((need.what.into(), path.display().to_string())),
            None => found.missing.push(Missing {
                what: need.what.into(),
                package: Some(need.package),
                purpose: need.purpose,
                optional: need.optional,
            }),
        }
    }
    match &found.kernel {
        Some(kernel) => found.present.push(("kernel".into(), kernel.image.display().to_string())),
        None => found.missing.push(Missing {
            what: format!("a kernel with Soft-RoCE ({}, unpacked)", kernel::META_PACKAGE),
            package: None,
            purpose: "boots in the virtual machine",
            optional: false,
        }),
    }
    found
}

/// Why tests do not boot machines here; none when they are to boot them.
///
/// With the variable `QUORATE_SOFT_ROCE=required` they boot or fail, otherwise they boot where all is there,
/// what only tests need included.
#[must_use]
pub fn reason_to_skip() -> Option<String> {
    let required = std::env::var_os("QUORATE_SOFT_ROCE").is_some_and(|asked| asked == "required");
    Some(look())
        .filter(|found| !required && !found.missing.is_empty())
        .map(|found| found.complaint())
}

/// Where a program or file is.
#[must_use]
pub fn place(what: &str) -> Option<PathBuf> {
    if what.starts_with('/') {
        return Some(PathBuf::from(what)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    // Debian's users have no sbin in their path; root's tools are readable there all the same.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut candidates = folders.map(|folder| folder.join(what)).filter(|path| path.is_file());
    candidates.find(|path| what != "busybox" || is_static(path))
}

/// Whether an executable needs no loader: in the initial file system there is none.
fn is_static(path: &Path) -> bool {
    let loader = b"/ld-linux";
    std::fs::read(path).is_ok_and(|bytes| !bytes.windows(loader.len()).any(|at| at == loader))
}

/// Installs the packages that are missing and unpacks a kernel into the user's cache.
///
/// # Errors
/// When packages are missing and this is not root, or apt fails; with what to do.
pub fn install(found: &Found) -> Result<()> {
    let packages = found.packages();
    if place("apt-get").is_none() {
        bail!("no apt-get here: only Debian and its relatives can be served automatically");
    }
    if !packages.is_empty() && !rustix::process::geteuid().is_root() {
        bail!("only root may install. Run: sudo apt-get install {}", packages.join(" "));
    }
    if packages.is_empty() && found.kernel.is_some() {
        return Ok(());
    }
    if rustix::process::geteuid().is_root() {
        run(Command::new("apt-get").args(["-qq", "update"]))?;
    }
    if !packages.is_empty() {
        let install = ["-qq", "install", "--yes", "--no-install-recommends"];
        run(Command::new("apt-get").args(install).args(&packages))?;
    }
    if found.kernel.is_none() {
        kernel::fetch()?;
    }
    Ok(())
}

/// Runs a program to its end and shows what it said when it failed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        bail!("{name} {} failed: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named_with_its_package() {
        let missing = |what: &str, package, optional| Missing {
            what: what.into(),
            package,
            purpose: "",
            optional,
        };
        let mut found = Found { kernel: None, missing: Vec::new(), present: Vec::new() };
        assert!(found.complete());
        found.missing.push(missing("ndctl", Some("ndctl"), true));
        assert!(found.complete(), "machines run without it");
        found.missing.push(missing("ip", Some("iproute2"), false));
        found.missing.push(missing("rdma", Some("iproute2"), false));
        assert!(!found.complete());
        assert_eq!(found.packages(), ["iproute2", "ndctl"]);
        let complaint = found.complaint();
        assert!(complaint.starts_with("missing: ndctl, ip, rdma. Run: "), "{complaint}");
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(place("sh").is_some());
        assert!(place("/bin/sh").is_some());
        assert!(place("no-such-program").is_none());
        assert!(!is_static(&place("sh").unwrap()), "Debian's shell is linked dynamically");
    }
}
