//! The device, its port and its address: chosen once, looked at again for each connection.

use quorate_ffi::verbs::{
    Channel, Device, Gid, GidKind, Library, Path, Port, PortState, ProtectionDomain, VerbsError,
};
use std::net::{IpAddr, Ipv6Addr};

/// An unanswered packet is sent again after 4.096 µs times two to this power: 67 ms.
const TIMEOUT: u8 = 14;
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
        Ok(Path { port, gid, timeout: TIMEOUT, retries: RETRIES })
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
