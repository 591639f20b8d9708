//! Pages of a new file, brought into the page cache before they are stored to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Zeros written at a time.
const STEP_BYTES: u64 = 256 << 10;
static ZEROS: [u8; STEP_BYTES as usize] = [0; STEP_BYTES as usize];

/// Writes zeros into a file that is stored to through a mapping, from its beginning on and ahead of the
/// stores.
///
/// A store to a page that was never written has the kernel read it first, and as many behind it as the
/// device's read-ahead says (8 MiB on the machine this was measured on), zeroed in one go: up to 25 ms in
/// which nothing else gets the processor where the kernel is not preemptible. A write brings only what it
/// covers, and at half the price.
#[derive(Debug)]
pub(super) struct Ahead {
    bytes: u64,
    /// Everything before is there, and nobody has stored to anything behind.
    reached: AtomicU64,
    /// None once all of it is there.
    file: Mutex<Option<File>>,
}

impl Ahead {
    /// For a file of so many bytes, that reads as zeros and that nobody has stored to.
    pub(super) fn of(file: File, bytes: u64) -> Self {
        Self { bytes, reached: AtomicU64::new(0), file: Mutex::new(Some(file)) }
    }

    /// Has everything before `end` there: to be called before anything before `end` is stored to, by each
    /// thread that does.
    ///
    /// # Errors
    /// What the system says of the write.
    pub(super) fn reach(&self, end: u64) -> io::Result<()> {
        if end <= self.reached.load(Ordering::Acquire) {
            return Ok(());
        }
        // A thread that died in here left it whole: each change is one assignment.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reached = self.reached.load(Ordering::Acquire);
        while let Some(file) = file.as_ref().filter(|_| reached < end.min(self.bytes)) {
            let step = STEP_BYTES.min(self.bytes - reached);
            file.write_all_at(&ZEROS[..step as usize], reached)?;
            reached += step;
            self.reached.store(reached, Ordering::Release);
        }
        if reached == self.bytes {
            *file = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_is_left_alone() {
        let file = tempfile::tempfile().expect("a temporary file");
        let bytes = 2 * STEP_BYTES + 4096;
        file.set_len(bytes).expect("sets");
        let ahead = Ahead::of(file.try_clone().expect("a second handle"), bytes);
        let at = |offset| {
            let mut byte = [9];
            file.read_exact_at(&mut byte, offset).expect("reads");
            byte[0]
        };
        ahead.reach(1).expect("reaches");
        file.write_all_at(&[7], STEP_BYTES - 1).expect("a store");
        // Only behind what is there.
        file.write_all_at(&[8], STEP_BYTES).expect("a store that nobody announced");
        ahead.reach(STEP_BYTES).expect("reaches");
        assert_eq!((at(STEP_BYTES - 1), at(STEP_BYTES)), (7, 8));
        ahead.reach(STEP_BYTES + 1).expect("reaches");
        assert_eq!((at(STEP_BYTES - 1), at(STEP_BYTES)), (7, 0));
        // To the end and no further, and the file is let go then.
        ahead.reach(u64::MAX).expect("reaches");
        assert_eq!(file.metadata().expect("its size").len(), bytes);
        assert!(ahead.file.lock().expect("unpoisoned").is_none());
    }
}
