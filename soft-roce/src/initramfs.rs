//! The initial file system of a virtual machine: BusyBox, the modules to load first, and a script.

use crate::needs;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes the host's root the guest's root, read-only, with changes in memory, and hands over to
/// `/quorate/share/boot` there.
pub(crate) const MAIN_SCRIPT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /host /memory /new
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" || echo "cannot load $module"; done </modules/order
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,cache=loose,$options" host /host || exec poweroff -f
mount -t tmpfs -o size=75% memory /memory
mkdir /memory/changes /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/changes,workdir=/memory/work root /new || exec poweroff -f
for place in proc sys dev; do mkdir -p "/new/$place"; mount --move "/$place" "/new/$place"; done
mkdir -p /new/tmp /new/run /new/dev/shm /new/dev/pts /new/quorate/share /new/lib/modules
mount -t tmpfs -o mode=0755 run /new/run
mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t devpts pts /new/dev/pts
mount -t 9p -o "rw,cache=none,$options" share /new/quorate/share || exec poweroff -f
release=$(uname -r)
mkdir -p "/new/lib/modules/$release"
mount -o bind "/host$(cat /new/quorate/share/modules)" "/new/lib/modules/$release"
exec switch_root /new /bin/sh /quorate/share/boot
"#;

/// Says a word on the console and powers off: shows that an accelerator runs guests.
pub(crate) const PROBE_SCRIPT: &str = "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\nmkdir -p /proc /dev\nmount -t devtmpfs dev /dev\n\
                                echo quorate-guest-ran >/dev/ttyS0\npoweroff -f\n";

/// Writes the initial file system for `script` and `modules` to `target`, working in its folder.
///
/// # Errors
/// When BusyBox is missing or a file cannot be copied.
pub(crate) fn build(script: &str, modules: &[PathBuf], target: &Path) -> Result<()> {
    let busybox = needs::place("busybox").context("no static busybox: install busybox-static")?;
    let tree = target.with_extension("tree");
    for folder in ["bin", "modules"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(&busybox, tree.join("bin/busybox")).context("cannot copy busybox")?;
    fs::set_permissions(tree.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    fs::write(tree.join("init"), script)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    let mut order = String::new();
    for module in modules {
        order.push_str(&copy_module(module, &tree.join("modules"))?);
        order.push('\n');
    }
    fs::write(tree.join("modules/order"), order)?;
    archive(&busybox, &tree, target)
}

/// Copies a module, unpacked: BusyBox loads plain ones only. Returns the file's name.
fn copy_module(module: &Path, folder: &Path) -> Result<String> {
    let name = module.file_name().context("a module without a name")?.to_string_lossy();
    let unpack = match name.rsplit_once('.') {
        Some((_, "ko")) => None,
        Some((plain, "xz")) => Some((plain, "xz")),
        Some((plain, "zst")) => Some((plain, "zstd")),
        Some((plain, "gz")) => Some((plain, "gzip")),
        _ => bail!("{name} is packed in a way that is not known"),
    };
    let Some((plain, program)) = unpack else {
        fs::copy(module, folder.join(&*name))
            .with_context(|| format!("cannot copy {}", module.display()))?;
        return Ok(name.into_owned());
    };
    let out = File::create(folder.join(plain))?;
    let status = Command::new(program).arg("-dc").arg(module).stdout(out).status();
    if !status.with_context(|| format!("cannot run {program}"))?.success() {
        bail!("{program} cannot unpack {}", module.display());
    }
    Ok(plain.to_owned())
}

/// The kernel takes a cpio archive in the `newc` format (Documentation/driver-api/early-userspace).
fn archive(busybox: &Path, tree: &Path, target: &Path) -> Result<()> {
    let out = File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    let status = Command::new(busybox)
        .args(["sh", "-c", "find . | cpio -o -H newc"])
        .current_dir(tree)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::null())
        .status()
        .context("cannot run busybox")?;
    if !status.success() {
        bail!("busybox cannot write {}", target.display());
    }
    // Scratch data: what cannot be removed goes with the folder around it.
    let _ = fs::remove_dir_all(tree);
    Ok(())
}
