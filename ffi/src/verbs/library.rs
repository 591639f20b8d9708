//! libibverbs, loaded when it is asked for.

use super::{Device, VerbsError};
use crate::sys::verbs::{Verbs, ibv_device};
use core::ffi::CStr;
use core::fmt;
use std::io;
use std::sync::Arc;

const LIBIBVERBS: &str = "libibverbs.so.1";

/// The functions of libibverbs, or of a fake.
#[derive(Clone)]
pub struct Library {
    pub(super) verbs: Arc<Verbs>,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").finish_non_exhaustive()
    }
}

impl Library {
    /// Loads libibverbs.
    ///
    /// # Errors
    /// [`VerbsError::NoLibrary`]: it is not installed, or lacks a function of version 44.
    pub fn load() -> Result<Self, VerbsError> {
        // SAFETY: `Verbs::new` wants the file to be the library that the declarations were made
        // for. Its name and version 1 are those that libibverbs has kept since 2006, and all
        // symbols are looked up at once with the default version of each.
        let loaded = unsafe { Verbs::new(LIBIBVERBS) };
        let no_library = |error: libloading::Error| VerbsError::NoLibrary {
            library: LIBIBVERBS,
            why: error.to_string(),
        };
        Ok(Self::from_table(loaded.map_err(no_library)?))
    }

    pub(crate) fn from_table(verbs: Verbs) -> Self {
        Self { verbs: Arc::new(verbs) }
    }

    /// The names of the devices.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`] if there is none.
    pub fn device_names(&self) -> Result<Vec<String>, VerbsError> {
        let list = DeviceList::new(self)?;
        Ok((0..list.count).map(|index| list.name(index)).collect())
    }

    /// Opens a device by its name.
    ///
    /// # Errors
    /// [`VerbsError`]: there is none of this name, or it does not open.
    pub fn open(&self, name: &str) -> Result<Device, VerbsError> {
        let list = DeviceList::new(self)?;
        let found = (0..list.count).find(|index| list.name(*index) == name);
        let Some(index) = found else {
            let present = (0..list.count).map(|index| list.name(index)).collect();
            return Err(VerbsError::UnknownDevice { asked: name.to_owned(), present });
        };
        // SAFETY: `ibv_open_device` wants an entry of a list that is not freed yet: `list` lives.
        let context = unsafe { (self.verbs.ibv_open_device)(list.device(index)) };
        if context.is_null() {
            let source = io::Error::last_os_error();
            return Err(VerbsError::Open { device: name.to_owned(), source });
        }
        // The list may go: an open device keeps what it needs (ibv_get_device_list(3)).
        Device::new(self.clone(), context, name.to_owned())
    }
}

struct DeviceList<'l> {
    library: &'l Library,
    list: *mut *mut ibv_device,
    count: usize,
}

impl<'l> DeviceList<'l> {
    fn new(library: &'l Library) -> Result<Self, VerbsError> {
        let mut count = 0;
        // SAFETY: `ibv_get_device_list` wants a place for a number, which `count` is.
        let list = unsafe { (library.verbs.ibv_get_device_list)(&raw mut count) };
        if list.is_null() {
            let error = io::Error::last_os_error();
            return Err(VerbsError::NoDevice { why: error.to_string() });
        }
        let count = usize::try_from(count).unwrap_or(0);
        let list = Self { library, list, count };
        if count == 0 {
            return Err(VerbsError::NoDevice { why: "the list of devices is empty".into() });
        }
        Ok(list)
    }

    fn device(&self, index: usize) -> *mut ibv_device {
        assert!(index < self.count, "a device of the list");
        let at = self.list.wrapping_add(index);
        // SAFETY: the list has `count` entries until it is freed, which happens when `self` drops.
        unsafe { at.read() }
    }

    fn name(&self, index: usize) -> String {
        // SAFETY: `ibv_get_device_name` wants a device of a list that is not freed yet.
        let name = unsafe { (self.library.verbs.ibv_get_device_name)(self.device(index)) };
        // SAFETY: it returns a C string that lives as long as the device's entry in the list.
        let name = unsafe { CStr::from_ptr(name) };
        name.to_string_lossy().into_owned()
    }
}

impl Drop for DeviceList<'_> {
    fn drop(&mut self) {
        // SAFETY: the list came from `ibv_get_device_list`, and nobody has freed it before.
        unsafe { (self.library.verbs.ibv_free_device_list)(self.list) };
    }
}
