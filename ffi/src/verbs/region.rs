//! Protection domains, and memory that a device may touch.

use super::device::{Device, DeviceInner, check};
use super::error::registration;
use super::{Source, VerbsError};
use crate::memory::SharedMemory;
use crate::sys::verbs as sys;
use core::fmt;
use std::io;
use std::sync::Arc;

/// A group of queue pairs and memory regions that may be used with each other.
#[derive(Clone, Debug)]
pub struct ProtectionDomain {
    pub(super) inner: Arc<DomainInner>,
}

pub(super) struct DomainInner {
    pub(super) device: Arc<DeviceInner>,
    pub(super) domain: *mut sys::ibv_pd,
}

// SAFETY: the library may be called from any thread on any object; the pointer is only handed to it.
unsafe impl Send for DomainInner {}
// SAFETY: as above.
unsafe impl Sync for DomainInner {}

impl fmt::Debug for DomainInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProtectionDomain on {:?}", self.device)
    }
}

impl Drop for DomainInner {
    fn drop(&mut self) {
        // SAFETY: the domain came from `ibv_alloc_pd`, this is its only owner, and the objects in it
        // held this value. Should it still be busy, it stays: a leak, no danger.
        let _ = unsafe { (self.device.library.verbs.ibv_dealloc_pd)(self.domain) };
    }
}

/// What may be done to a memory region. The owner's device may always read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Nothing else: a source of writes.
    Source,
    /// The own device writes into it: a target of reads and receives.
    Sink,
    /// Peers write into it.
    RemoteWrite,
    /// Peers read and write it.
    RemoteReadWrite,
}

impl Device {
    /// Makes a protection domain.
    ///
    /// # Errors
    /// [`VerbsError::Create`].
    pub fn protection_domain(&self) -> Result<ProtectionDomain, VerbsError> {
        // SAFETY: `ibv_alloc_pd` wants an open device.
        let domain = unsafe { (self.verbs().ibv_alloc_pd)(self.inner.context) };
        if domain.is_null() {
            let source = io::Error::last_os_error();
            return Err(VerbsError::Create { what: "protection domain", source });
        }
        let device = Arc::clone(&self.inner);
        Ok(ProtectionDomain { inner: Arc::new(DomainInner { device, domain }) })
    }
}

/// Memory that the device knows. Several regions over the same memory are fine: one for each peer
/// makes a fence of taking one of them away.
pub struct MemoryRegion {
    region: *mut sys::ibv_mr,
    local_key: u32,
    remote_key: u32,
    memory: Arc<SharedMemory>,
    domain: Arc<DomainInner>,
}

// SAFETY: the library may be called from any thread on any object; the pointer is only handed to it.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above; and no method changes anything.
unsafe impl Sync for MemoryRegion {}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryRegion({} bytes, rkey {:#x})", self.memory.len(), self.remote_key)
    }
}

impl ProtectionDomain {
    /// Pins all of `memory` and makes it known to the device.
    ///
    /// # Errors
    /// [`VerbsError::Memlock`] or [`VerbsError::Register`].
    pub fn register(
        &self,
        memory: &Arc<SharedMemory>,
        access: Access,
    ) -> Result<MemoryRegion, VerbsError> {
        use sys::ibv_access_flags as a;
        let (local, write, read) = (
            a::IBV_ACCESS_LOCAL_WRITE.0,
            a::IBV_ACCESS_REMOTE_WRITE.0,
            a::IBV_ACCESS_REMOTE_READ.0,
        );
        let flags = match access {
            Access::Source => 0,
            Access::Sink => local,
            Access::RemoteWrite => local | write,
            Access::RemoteReadWrite => local | write | read,
        };
        let address = core::ptr::with_exposed_provenance_mut(memory.address() as usize);
        let register = self.inner.device.library.verbs.ibv_reg_mr;
        // SAFETY: `ibv_reg_mr` wants a live domain and mapped memory, which stays mapped while it is
        // registered: `memory` is shared memory, which nothing refers to but atomics and copies that
        // expect others to write; and the region keeps it until it is deregistered.
        let region = unsafe { register(self.inner.domain, address, memory.len(), flags as i32) };
        if region.is_null() {
            return Err(registration(memory.len(), io::Error::last_os_error()));
        }
        // SAFETY: a region that was just made is a valid structure.
        let local_key = unsafe { (*region).lkey };
        // SAFETY: as above.
        let remote_key = unsafe { (*region).rkey };
        let (memory, domain) = (Arc::clone(memory), Arc::clone(&self.inner));
        Ok(MemoryRegion { region, local_key, remote_key, memory, domain })
    }
}

impl MemoryRegion {
    /// The memory behind it.
    #[must_use]
    pub const fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// What a peer has to present to touch it.
    #[must_use]
    pub const fn remote_key(&self) -> u32 {
        self.remote_key
    }

    /// A part of it, for a work request.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn source(&self, offset: usize, length: usize) -> Source {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.memory.len()), "{length} bytes at {offset}");
        let length = u32::try_from(length).expect("a piece of a request has less than 4 GiB");
        Source::new(self.memory.address() + offset as u64, length, self.local_key)
    }

    /// Takes the memory away from the device. When this returns, no byte of it changes any more
    /// through this region: the fence of contract C4. It waits for what the device is doing with it.
    ///
    /// # Errors
    /// The device's. Then the region may still be in force, and its memory stays mapped for ever.
    pub fn deregister(self) -> Result<(), VerbsError> {
        let this = core::mem::ManuallyDrop::new(self);
        let length = this.memory.len();
        this.take_away().map_err(|source| VerbsError::Deregister { length, source })?;
        // SAFETY: `this` is not dropped and its fields are not used again: they are moved out once.
        let memory = unsafe { core::ptr::read(&raw const this.memory) };
        // SAFETY: as above.
        let domain = unsafe { core::ptr::read(&raw const this.domain) };
        drop((memory, domain));
        Ok(())
    }

    fn take_away(&self) -> io::Result<()> {
        // SAFETY: `ibv_dereg_mr` wants a region that was not deregistered before: this is called by
        // `deregister`, which consumes the region, and by `drop`.
        check(unsafe { (self.domain.device.library.verbs.ibv_dereg_mr)(self.region) })
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        if self.take_away().is_err() {
            // The device may still write there: the memory must never be used for anything else.
            core::mem::forget(Arc::clone(&self.memory));
        }
    }
}
