//! Soft-RoCE on a network interface of the running kernel: in a guest, or here where the kernel can.

use crate::needs::{place, run};
use anyhow::{Context, Result, bail};
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the modules are for: verbs from user space, and connections by address.
const MODULES: [&str; 4] = ["crc32_generic", "rdma_rxe", "ib_uverbs", "rdma_ucm"];
/// A new device has its addresses within a second; emulation takes longer.
const DEVICE_PATIENCE: Duration = Duration::from_secs(120);
const DEVICES: &str = "/sys/class/infiniband";

/// A device, and the index of the GID to use with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name, as `ibv_devices` says it.
    pub name: String,
    /// The index of its RoCE v2 GID that maps the IPv4 address.
    pub gid_index: u32,
}

/// Programs of the system, wherever they are.
pub(crate) fn tool(name: &str, arguments: &[&str]) -> Result<String> {
    let path = place(name).with_context(|| format!("no {name} here"))?;
    run(Command::new(path).args(arguments))
}

/// Creates the device `name` on `netdev`, which is up and has `address`, and waits until it is usable.
///
/// # Errors
/// When the kernel has no Soft-RoCE or refuses the interface.
pub fn create(name: &str, netdev: &str, address: Ipv4Addr) -> Result<Device> {
    for module in MODULES {
        // Loaded before, or built in: then there is a folder for it.
        if !fs::exists(format!("/sys/module/{module}"))? {
            tool("modprobe", &[module])
                .with_context(|| format!("this kernel cannot load {module}"))?;
        }
    }
    tool("rdma", &["link", "add", name, "type", "rxe", "netdev", netdev])
        .context("the kernel refuses Soft-RoCE on this interface; dmesg may say why")?;
    let deadline = Instant::now() + DEVICE_PATIENCE;
    loop {
        let gid_index = gid_index(name, address);
        let active = fs::read_to_string(format!("{DEVICES}/{name}/ports/1/state"));
        let active = active.is_ok_and(|state| state.contains("ACTIVE"));
        if let Some(gid_index) = gid_index.filter(|_| active) {
            return Ok(Device { name: name.into(), gid_index });
        }
        if Instant::now() > deadline {
            bail!("{name} got no active port with a GID for {address} in {DEVICE_PATIENCE:?}");
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The RoCE v2 GID that maps an IPv4 address, `::ffff:a.b.c.d`.
fn gid_index(device: &str, address: Ipv4Addr) -> Option<u32> {
    let wanted = format_gid(address);
    (0..16).find(|index| {
        let port = format!("{DEVICES}/{device}/ports/1");
        let read = |path: String| fs::read_to_string(path).unwrap_or_default();
        read(format!("{port}/gids/{index}")).trim() == wanted
            && read(format!("{port}/gid_attrs/types/{index}")).trim() == "RoCE v2"
    })
}

fn format_gid(address: Ipv4Addr) -> String {
    let words = address.to_ipv6_mapped().segments().map(|word| format!("{word:04x}"));
    words.join(":")
}

/// An RDMA device that is here already.
#[must_use]
pub fn existing() -> Option<String> {
    let mut names: Vec<_> = fs::read_dir(DEVICES)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names.into_iter().next()
}

/// A device on an interface of its own, made for one command and removed with this value.
#[derive(Debug)]
pub struct Temporary {
    /// The device.
    pub device: Device,
}

const TEMPORARY_NETDEV: &str = "quorate0";
const TEMPORARY_DEVICE: &str = "quorate_rxe0";

impl Temporary {
    /// Makes it on this kernel; only root may.
    ///
    /// # Errors
    /// When the kernel has no Soft-RoCE, or this is not root.
    pub fn create() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("only root may create an RDMA device");
        }
        tool("modprobe", &["rdma_rxe"]).context("this kernel has no Soft-RoCE")?;
        let address = Ipv4Addr::new(10, 77, 255, 1);
        up(TEMPORARY_NETDEV, address)?;
        match create(TEMPORARY_DEVICE, TEMPORARY_NETDEV, address) {
            Ok(device) => Ok(Self { device }),
            Err(error) => {
                remove();
                Err(error)
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        remove();
    }
}

fn remove() {
    // What is not there any more need not be removed.
    let _ = tool("rdma", &["link", "delete", TEMPORARY_DEVICE]);
    let _ = tool("ip", &["link", "delete", TEMPORARY_NETDEV]);
}

/// A dummy interface with an address.
pub(crate) fn up(netdev: &str, address: Ipv4Addr) -> Result<()> {
    // RDMA packets of 4096 bytes and their headers fit.
    tool("ip", &["link", "add", netdev, "mtu", "4500", "type", "dummy"])?;
    tool("ip", &["address", "add", &format!("{address}/24"), "dev", netdev])?;
    tool("ip", &["link", "set", netdev, "up"]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gids_are_written_as_the_kernel_does() {
        let gid = format_gid(Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(gid, "0000:0000:0000:0000:0000:ffff:0a4d:0001");
    }
}
