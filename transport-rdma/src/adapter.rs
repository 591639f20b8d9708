//! The device, its port and its address: chosen once, looked at again for each connection.

use crate::STALL;
use quorate_ffi::verbs::{
    Channel, Device, Gid, GidKind, Library, Path, Port, PortState, ProtectionDomain, VerbsError,
};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// An unanswered packet is sent again after 4.096 µs times two to this power, 67 ms, where the stall is
/// [`STALL`]; after twice as long where that is up to twice as long, and so on. So the device itself gives
/// up after about half of a stall, at least.
const TIMEOUT: u8 = 14;
/// The longest that there is (IBTA volume 1, section 11.2.4.2: five bits).
const TIMEOUT_MAX: u8 = 31;
/// So many times. Seven would mean for ever on some devices.
const RETRIES: u8 = 6;

/// Which device, port and address to use; what is `None` is chosen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AdapterOptions {
    /// Name of the device; else the one that has the listening address, else the first one.
    pub device: Option<String>,
    /// Port of the device, from 1; else the one of the address, else 1.
    pub port: Option<u8>,
    /// Index of the port's GID; else the listening address as RoCE v2, else the first RoCE v2
    /// address, else the first of all.
    pub gid_index: Option<u8>,
    /// The address to look for among the GIDs.
    pub address: Option<IpAddr>,
    /// A request without an answer for so long ends the life of its lane: else [`crate::STALL`].
    pub stall: Option<Duration>,
}

impl AdapterOptions {
    pub(crate) fn stall(&self) -> Duration {
        self.stall.unwrap_or(STALL)
    }

    fn timeout(&self) -> u8 {
        let stalls = self.stall().as_millis().div_ceil(STALL.as_millis()).max(1);
        let doublings = stalls.next_power_of_two().trailing_zeros() as u8;
        TIMEOUT.saturating_add(doublings).min(TIMEOUT_MAX)
    }
}

/// An open device with what all connections share.
#[derive(Debug)]
pub struct Adapter {
    device: Device,
    domain: ProtectionDomain,
    channel: Channel,
    options: AdapterOptions,
}

impl Adapter {
    /// Opens the device.
    ///
    /// # Errors
    /// [`VerbsError`]: there is none, or it does not open. That its port is down is no error here:
    /// lanes go over TCP until it comes up.
    pub fn open(library: &Library, options: &AdapterOptions) -> Result<Self, VerbsError> {
        let device = match &options.device {
            Some(name) => library.open(name)?,
            None => choose(library, options)?,
        };
        let domain = device.protection_domain()?;
        let channel = device.channel()?;
        Ok(Self { device, domain, channel, options: options.clone() })
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// For memory and queue pairs.
    #[must_use]
    pub const fn domain(&self) -> &ProtectionDomain {
        &self.domain
    }

    /// Tells when a completion queue has something.
    #[must_use]
    pub const fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Where connections go out now.
    ///
    /// # Errors
    /// [`VerbsError::PortDown`] or [`VerbsError::NoGid`].
    pub fn path(&self) -> Result<Path, VerbsError> {
        let gids = self.device.gids()?;
        let wanted = self.options.address.map(mapped);
        let number = self
            .options
            .port
            .or_else(|| gids.iter().find(|gid| Some(gid.bytes) == wanted).map(|gid| gid.port));
        let port = self.device.port(number.unwrap_or(1))?;
        if let PortState::Other(state) = port.state {
            let device = self.device.name().to_owned();
            return Err(VerbsError::PortDown { device, port: port.number, state });
        }
        let gid = self.gid(&port, &gids, wanted)?;
        Ok(Path { port, gid, timeout: self.options.timeout(), retries: RETRIES })
    }

    fn gid(&self, port: &Port, gids: &[Gid], wanted: Option<[u8; 16]>) -> Result<Gid, VerbsError> {
        let of_port = || gids.iter().filter(|gid| gid.port == port.number);
        let found = match self.options.gid_index {
            Some(index) => of_port().find(|gid| gid.index == index),
            None => of_port().min_by_key(|gid| {
                let v2 = gid.kind == GidKind::RoceV2;
                let v4 = Ipv6Addr::from(gid.bytes).to_ipv4_mapped().is_some();
                // The smallest is the best: false comes before true.
                (!(v2 && Some(gid.bytes) == wanted), !(v2 && v4), !v2, gid.index)
            }),
        };
        found.copied().ok_or_else(|| VerbsError::NoGid {
            device: self.device.name().to_owned(),
            port: port.number,
            asked: self.options.gid_index.map_or("at all".into(), |index| index.to_string()),
            present: of_port().map(Gid::to_string).collect(),
        })
    }
}

/// The device that has the address, or else the first one.
fn choose(library: &Library, options: &AdapterOptions) -> Result<Device, VerbsError> {
    let wanted = options.address.map(mapped);
    let mut first = None;
    let mut refused = None;
    for name in library.device_names()? {
        match library.open(&name) {
            Ok(device) => {
                let gids = device.gids().unwrap_or_default();
                if gids.iter().any(|gid| Some(gid.bytes) == wanted) {
                    return Ok(device);
                }
                first = first.or(Some(device));
            }
            Err(error) => refused = Some(error),
        }
    }
    let none = || VerbsError::NoDevice { why: "the list of devices is empty".into() };
    first.ok_or_else(|| refused.unwrap_or_else(none))
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_as_patient_as_its_user() {
        let timeout = |stall: Option<u64>| {
            let stall = stall.map(Duration::from_millis);
            AdapterOptions { stall, ..AdapterOptions::default() }.timeout()
        };
        assert_eq!((timeout(None), timeout(Some(1000)), timeout(Some(50))), (14, 14, 14));
        assert_eq!((timeout(Some(1001)), timeout(Some(4000)), timeout(Some(5000))), (15, 16, 17));
        assert_eq!(timeout(Some(u64::MAX)), TIMEOUT_MAX);
    }
}
