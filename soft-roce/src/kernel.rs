//! The kernel that virtual machines boot: Debian's, unpacked into the user's cache, never installed.

use crate::needs::run;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that depends on Debian's newest kernel. The one for clouds has no Soft-RoCE.
pub const META_PACKAGE: &str = "linux-image-amd64";

/// A kernel and its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The image: unpacked where that was possible, which saves half of the time to boot.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

/// Where this program keeps what it unpacked: `$XDG_CACHE_HOME/quorate/soft-roce`.
///
/// # Errors
/// When there is no home directory.
pub fn cache() -> Result<PathBuf> {
    // XDG Base Directory Specification.
    let named = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")));
    let cache = cache.context("no home directory for the cache: set XDG_CACHE_HOME")?;
    Ok(cache.join("quorate").join("soft-roce"))
}

/// The newest kernel in the cache.
#[must_use]
pub fn find() -> Option<Kernel> {
    let mut names: Vec<_> = fs::read_dir(cache().ok()?)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("linux-")))
        .collect();
    names.sort();
    names.iter().rev().find_map(|folder| open(folder))
}

fn open(folder: &Path) -> Option<Kernel> {
    let first = |folder: PathBuf, prefix: &str| {
        let entries = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        entries.into_iter().find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
    };
    let boot = folder.join("boot");
    let image = first(boot.clone(), "vmlinux-").or_else(|| first(boot, "vmlinuz-"))?;
    let modules = first(folder.join("lib/modules"), "")?;
    modules.join("modules.dep").exists().then_some(Kernel { image, modules })
}

/// Fetches Debian's kernel package and unpacks it into the cache (70 MB to fetch, 400 MB unpacked).
///
/// # Errors
/// When apt knows no such package, or the cache cannot be written.
pub fn fetch() -> Result<Kernel> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("virtual machines are made for x86_64 only, this is {}", std::env::consts::ARCH);
    }
    let depends = run(Command::new("apt-cache").args(["depends", "--important", META_PACKAGE]))?;
    let mut words = depends.split_whitespace().skip_while(|word| *word != "Depends:");
    let package = words.nth(1).context("apt knows no kernel: run apt-get update as root first")?;
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // In a folder of its own until all of it is there: another process may look for it meanwhile.
    let work = tempfile::Builder::new().prefix("unpacking-").tempdir_in(&cache)?;
    run(Command::new("apt-get").current_dir(work.path()).args(["-qq", "download", package]))?;
    let files = fs::read_dir(work.path())?.filter_map(|entry| Some(entry.ok()?.path()));
    let file = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"));
    let file = file.with_context(|| format!("apt-get download {package} left no file"))?;
    let name = file.file_stem().context("a package without a name")?.to_string_lossy().into_owned();
    let tree = work.path().join("tree");
    run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&tree))?;
    let release = package.trim_start_matches("linux-image-");
    run(Command::new(crate::needs::place("depmod").context("no depmod: install kmod")?)
        .arg("-b")
        .arg(&tree)
        .arg(release))?;
    let boot = tree.join("boot");
    if let Err(error) = unpack_image(
        &boot.join(format!("vmlinuz-{release}")),
        &boot.join(format!("vmlinux-{release}")),
    ) {
        // The packed one boots as well.
        eprintln!("the kernel stays packed and boots slower: {error:#}");
    }
    let place = cache.join(&name);
    if let Err(error) = fs::rename(&tree, &place) {
        // Another process may have been quicker: then its copy is as good.
        if !place.exists() {
            return Err(error).with_context(|| format!("cannot create {}", place.display()));
        }
    }
    open(&place).with_context(|| format!("{package} holds no kernel and modules as expected"))
}

/// Unpacks the kernel within a `bzImage`, as its own loader would do in the emulator, slowly.
///
/// Offsets are those of Documentation/x86/boot.rst, protocol 2.08.
fn unpack_image(image: &Path, target: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let (payload, program) = payload(&bytes).context("no packed kernel where it should be")?;
    let packed = target.with_extension("packed");
    fs::write(&packed, payload)?;
    let out = fs::File::create(target)?;
    let status = Command::new(program).arg("-dc").arg(&packed).stdout(out).status();
    fs::remove_file(&packed)?;
    if !status.is_ok_and(|status| status.success()) {
        fs::remove_file(target)?;
        bail!("{program} cannot unpack it");
    }
    Ok(())
}

/// The packed kernel in an image, and the program that unpacks it.
fn payload(image: &[u8]) -> Option<(&[u8], &'static str)> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(*image.get(0x1f1)?).max(1);
    let begin = (setup_sectors + 1) * 512 + word(0x248)?;
    // Four bytes at the end say how long it is when unpacked.
    let payload = image.get(begin..(begin + word(0x24c)?).checked_sub(4)?)?;
    let program = match payload.get(..4)? {
        [0xfd, b'7', b'z', b'X'] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return None,
    };
    Some((payload, program))
}

impl Kernel {
    /// The release, as `uname -r` would say.
    #[must_use]
    pub fn release(&self) -> String {
        self.modules.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The files of the modules asked for and of all that they need, in an order that loads.
    ///
    /// # Errors
    /// When the kernel has no such module.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let read = |name: &str| {
            let path = self.modules.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let order = load_order(&read("modules.dep")?, &read("modules.builtin")?, wanted)?;
        Ok(order.into_iter().map(|name| self.modules.join(name)).collect())
    }
}

/// A module's name, as the kernel says it: `kernel/fs/9p/9p.ko` is `9p`, `crc32-pclmul.ko` is `crc32_pclmul`.
fn stem(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// `modules.dep` (depmod(8), modules.dep(5)): a line `FILE: FILE…` names all that the first needs, the
/// ones to load first last.
fn load_order(dependencies: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let builtin: BTreeSet<_> = builtin.lines().map(stem).collect();
    let mut order = Vec::new();
    for name in wanted.iter().filter(|name| !builtin.contains(**name)) {
        let mut lines = dependencies.lines().filter_map(|line| line.split_once(':'));
        let (file, needs) = lines
            .find(|(file, _)| stem(file) == *name)
            .with_context(|| format!("this kernel has no module {name}"))?;
        let files = needs.split_whitespace().rev().chain([file]);
        for file in files {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/a/a.ko: kernel/b/b-2.ko kernel/c.ko\n\
                                kernel/b/b-2.ko: kernel/c.ko\nkernel/c.ko:\n";

    #[test]
    fn the_packed_kernel_is_found_in_its_image() {
        let mut image = vec![0; 2048];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        image[0x24c] = 12;
        image[1040..1048].copy_from_slice(b"\xfd7zXbody");
        assert_eq!(payload(&image), Some((&b"\xfd7zXbody"[..], "xz")));
        assert_eq!(payload(&image[..1040]), None);
        assert_eq!(payload(b"short"), None);
        image[1040] = 0;
        assert_eq!(payload(&image), None, "not packed in a known way");
    }

    #[test]
    fn modules_load_after_what_they_need() {
        let order = |wanted: &[&str]| load_order(DEPENDENCIES, "kernel/z.ko\n", wanted);
        let all = ["kernel/c.ko", "kernel/b/b-2.ko", "kernel/a/a.ko"];
        assert_eq!(order(&["a"]).unwrap(), all);
        assert_eq!(
            order(&["b_2", "a", "z"]).unwrap(),
            all,
            "once each, the built-in one not at all"
        );
        assert!(order(&["nothing"]).is_err());
    }
}
