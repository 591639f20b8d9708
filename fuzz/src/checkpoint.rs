//! Checkpoints on a medium that changed behind the store's back, with checksums that match.

use crate::Input;
use crate::input::{overwrite, put_piece};
use crate::medium::{FuzzMedium, PROFILES};
use quorate_consensus::Slot;
use quorate_pmem_log::{
    BLOCK_BYTES, BLOCK_PAYLOAD_BYTES, Checkpoint, CheckpointId, CheckpointStore, Medium,
};
use std::io::Read;
use std::sync::Arc;

/// Changes of one execution at the most.
const CHANGES_MAX: usize = 6;
/// Where a block's header has its fields, and how wide they are.
const BLOCK_FIELDS: [(usize, usize); 9] =
    [(8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 4), (52, 1), (53, 1)];
/// The same of a certificate, without its checksum.
const CERTIFICATE_FIELDS: [(usize, usize); 9] =
    [(8, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8)];

/// An image that is written, then blocks and certificates forged, with right checksums or wrong
/// ones. What is read is the beginning of the image, and all of it where nothing is reported; every
/// call comes to an end; a peer that is sent what stands there ends with the image or an error.
pub fn checkpoint(data: &[u8]) {
    let mut input = Input::new(data);
    let profile = PROFILES[usize::from(input.u8()) % PROFILES.len()];
    let bytes =
        [0, 1, 100, BLOCK_PAYLOAD_BYTES, 2 * BLOCK_PAYLOAD_BYTES + 7][usize::from(input.u8()) % 5];
    let fill = input.u8();
    let image: Vec<u8> = (0..bytes).map(|at| fill ^ (at % 251) as u8).collect();
    let medium = FuzzMedium::new(profile, &Default::default());
    let Some(written) = write(&medium, &image) else { return };
    let mut areas = medium.image();
    let mut honest = true;
    for _ in 0..CHANGES_MAX {
        if input.is_empty() {
            break;
        }
        let index = input.below(areas.len());
        let Some((name, area)) = areas.iter_mut().nth(index) else { break };
        let certificate = name.matches('-').count() == 1;
        let block = if certificate { 0 } else { input.below((area.len() / BLOCK_BYTES).max(1)) };
        let start = block * BLOCK_BYTES;
        match input.u8() % 4 {
            // A byte anywhere; no checksum is mended.
            0 => {
                let at = input.below(area.len().max(1));
                let change = input.u8();
                if let Some(byte) = area.get_mut(at) {
                    *byte ^= change;
                }
            }
            1 => area.truncate(input.below(area.len() + 1)),
            _ => {
                let fields: &[(usize, usize)] =
                    if certificate { &CERTIFICATE_FIELDS } else { &BLOCK_FIELDS };
                let (offset, width) = fields[input.below(fields.len())];
                let value = input.edge();
                overwrite(area, start + offset, &value.to_le_bytes()[..width]);
                let (at, from, to) = if certificate { (12, 16, 128) } else { (4, 8, 64) };
                if let Some(covered) = area.get(start + from..start + to) {
                    let crc = crc32c::crc32c(covered);
                    overwrite(area, start + at, &crc.to_le_bytes());
                }
                honest = false;
            }
        }
    }
    let medium = FuzzMedium::new(profile, &areas);
    let Ok(mut store) = CheckpointStore::open(medium as Arc<dyn Medium>, 2) else { return };
    for found in store.installed().to_vec() {
        let mut read = Vec::new();
        let ended = store.reader(&found).is_ok_and(|mut from| from.read_to_end(&mut read).is_ok());
        if honest {
            assert!(image.starts_with(&read), "what came out is the image's");
            assert!(!ended || (found == written && read == image), "the image ends where it ends");
        }
        assert_eq!(store.verify(&found).is_ok(), ended);
        send(&store, &found, honest.then_some(&image));
        store.distrust(found.id.slot);
    }
    let _ = store.prune(&[]);
    let next = CheckpointId { slot: Slot(9), ..written.id };
    if let Ok(mut writer) = store.create(next)
        && writer.write(&image).is_ok()
        && let Ok(finished) = writer.finish()
        && let Ok(installed) = store.install(finished, Slot(0))
    {
        store.verify(&installed).expect("what was just written");
    }
}

fn write(medium: &Arc<FuzzMedium>, image: &[u8]) -> Option<Checkpoint> {
    let mut store = CheckpointStore::open(Arc::clone(medium) as Arc<dyn Medium>, 2).ok()?;
    let id = CheckpointId { slot: Slot(7), digest: 5, cluster: 3 };
    let mut writer = store.create(id).ok()?;
    writer.write(image).ok()?;
    let finished = writer.finish().ok()?;
    store.install(finished, Slot(0)).ok()
}

fn send(store: &CheckpointStore, checkpoint: &Checkpoint, image: Option<&Vec<u8>>) {
    let medium = FuzzMedium::new(PROFILES[0], &Default::default());
    let Ok(mut peer) = CheckpointStore::open(medium as Arc<dyn Medium>, 2) else { return };
    let Ok(mut receiver) = peer.receive(checkpoint.id) else { return };
    while !receiver.is_whole() {
        let Ok(blocks) = store.blocks(checkpoint, receiver.next(), 2 * BLOCK_BYTES) else { return };
        if blocks.is_empty() || receiver.take(&blocks).is_err() {
            return;
        }
    }
    let Ok(finished) = receiver.finish() else { return };
    let Ok(installed) = peer.install(finished, Slot(0)) else { return };
    let mut read = Vec::new();
    let whole = peer.reader(&installed).is_ok_and(|mut from| from.read_to_end(&mut read).is_ok());
    assert!(whole, "what a peer installed reads back");
    if let Some(image) = image {
        assert_eq!(&read, image, "a peer has the image, or nothing");
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for size in 0..5 {
        for change in 0..4 {
            let mut seed = vec![size & 1, size, 7];
            put_piece(&mut seed, &[change, change, 0, change, 2, 0, 3, 1, 4, 5, 6]);
            seeds.push(seed);
        }
    }
    seeds
}
