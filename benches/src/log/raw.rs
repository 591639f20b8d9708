//! What no log can be faster than by much: the same bytes, written and made durable, and nothing else.

use super::{CIRCLE_BYTES, Side};
use quorate_ffi::cache;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// `memcpy`, `clwb` for each line, `sfence`.
#[derive(Debug)]
pub(super) struct Flushed {
    memory: Vec<u8>,
    source: Vec<u8>,
    at: usize,
}

impl Flushed {
    pub(super) fn new(commit_bytes: usize) -> Self {
        Self { memory: vec![1; CIRCLE_BYTES], source: vec![0xa5; commit_bytes], at: 0 }
    }
}

impl Side for Flushed {
    fn commit(&mut self) {
        let bytes = self.source.len();
        if self.at + bytes > self.memory.len() {
            self.at = 0;
        }
        let target = &mut self.memory[self.at..self.at + bytes];
        target.copy_from_slice(&self.source);
        cache::write_back_bytes(target);
        cache::fence();
        self.at += bytes;
    }
}

/// `pwrite` of whole pages of their own into a preallocated and written file, `fdatasync`.
#[derive(Debug)]
pub(super) struct Synced {
    file: File,
    source: Vec<u8>,
    at: u64,
}

/// What a batch is rounded up to: a page that was acknowledged is not written again.
const PAGE_BYTES: usize = 4096;

impl Synced {
    pub(super) fn new(directory: &Path, commit_bytes: usize) -> Self {
        let path = directory.join("raw");
        let mut file = File::create_new(path).expect("a file for the loop");
        file.write_all(&vec![0; CIRCLE_BYTES]).expect("room for the loop");
        file.sync_all().expect("the disk works");
        let source = vec![0xa5; commit_bytes.next_multiple_of(PAGE_BYTES)];
        Self { file, source, at: 0 }
    }
}

impl Side for Synced {
    fn commit(&mut self) {
        let bytes = self.source.len() as u64;
        if self.at + bytes > CIRCLE_BYTES as u64 {
            self.at = 0;
        }
        self.file.write_all_at(&self.source, self.at).expect("the disk works");
        self.file.sync_data().expect("the disk works");
        self.at += bytes;
    }
}
