//! The proof that the fence holds here: the torture test passed on this device, by this address, since
//! this machine started.
//!
//! Where a write's completion counts as a vote the fence is what the safety rests on, and no manual of a
//! device promises it (`docs/decisions/0023-what-a-write-completion-may-count-for.md`, B6). So a
//! replica that is to vote so runs the test when it starts, and keeps the result beside its data: another start
//! in the same boot, on the same device and address, believes it. A driver or a firmware that is changed
//! takes a restart of the machine, or the file `fence.proof` is removed by hand.

use crate::torture::{self, Fence, Finding};
use crate::{Adapter, AdapterOptions};
use quorate_ffi::verbs::{Library, VerbsError};
use std::io;
use std::path::Path;

/// Rounds with writes of each length.
pub const PROOF_ROUNDS: u32 = 40;
/// Of so many bytes: one packet, and enough packets that a fence comes in the middle of a write.
pub const PROOF_BYTES: [usize; 2] = [4096, 64 << 10];
/// Of so many rounds at least the stream has to be running when the fence comes.
const LIVE_ROUNDS_MIN: u32 = PROOF_ROUNDS / 2;
/// The file of a proof.
pub const PROOF_FILE: &str = "fence.proof";
/// Another one when the test is another one.
const VERSION: u32 = 1;

/// The fence was shown to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// On this device.
    pub device: String,
    /// By this address of it.
    pub gid: String,
    /// Rounds that were tried now; 0 if an earlier start tried them.
    pub rounds: u32,
}

/// Why there is no proof, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The test could not be run.
    #[error("the fence of the RDMA device cannot be tested: {0}")]
    Verbs(#[from] VerbsError),
    /// Something landed late.
    #[error(
        "the fence of {device} does not hold: in {late} of {rounds} rounds with writes of {bytes} bytes \
         something landed after ibv_dereg_mr had returned. No follower may be passive here: set followers = \
         \"active\" (`passive` in the library), which needs no fence"
    )]
    Late {
        /// On which device.
        device: String,
        /// So many rounds showed it,
        late: u32,
        /// of so many,
        rounds: u32,
        /// with writes of so many bytes.
        bytes: usize,
    },
    /// The test was none.
    #[error(
        "the fence of {device} could not be tested: writes were under way in only {rounds} of {asked} rounds. \
         Start this replica again when the machine is less busy, or set followers = \"active\" \
         (`passive` in the library)"
    )]
    Idle {
        /// On which device.
        device: String,
        /// So many were a test,
        rounds: u32,
        /// of so many.
        asked: u32,
    },
    /// Not known which boot this is.
    #[error(
        "it cannot be told in which boot of this machine the fence was tested: {path}: {source}"
    )]
    Boot {
        /// What tells it.
        path: &'static str,
        /// Why it does not.
        source: io::Error,
    },
    /// The result cannot be kept.
    #[error("the proof of the fence cannot be kept in {directory}: {source}")]
    Keep {
        /// Where.
        directory: String,
        /// Why.
        source: io::Error,
    },
}

/// Proves that the fence holds on the device of `options`: by the record of an earlier start of this boot in
/// `directory`, or else by the test, which takes some seconds.
///
/// # Errors
/// [`ProofError`]. Then no follower here may be passive.
pub fn prove(
    library: &Library,
    options: &AdapterOptions,
    directory: Option<&Path>,
) -> Result<Proof, ProofError> {
    const BOOT: &str = "/proc/sys/kernel/random/boot_id";
    let boot =
        std::fs::read_to_string(BOOT).map_err(|source| ProofError::Boot { path: BOOT, source })?;
    prove_in(library, options, directory, boot.trim())
}

pub(crate) fn prove_in(
    library: &Library,
    options: &AdapterOptions,
    directory: Option<&Path>,
    boot: &str,
) -> Result<Proof, ProofError> {
    let adapter = Adapter::open(library, options)?;
    let (device, path) = (adapter.device().name().to_owned(), adapter.path()?);
    let (port, gid) = (path.port.number, path.gid.to_string());
    let record = format!(
        "quorate fence proof {VERSION}\nboot {boot}\ndevice {device}\nport {port}\ngid {gid}\n"
    );
    let keep = |source| {
        let directory = directory.unwrap_or(Path::new("")).display().to_string();
        ProofError::Keep { directory, source }
    };
    let file = directory.map(|directory| directory.join(PROOF_FILE));
    if let Some(file) = &file {
        match std::fs::read_to_string(file) {
            Ok(kept) if kept == record => return Ok(Proof { device, gid, rounds: 0 }),
            Ok(_) => std::fs::remove_file(file).map_err(keep)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Not what was written here: it proves nothing, and goes.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                std::fs::remove_file(file).map_err(keep)?;
            }
            Err(error) => return Err(keep(error)),
        }
    }
    // The device that was chosen, also where another one would be by now.
    let options = AdapterOptions { device: Some(device.clone()), ..options.clone() };
    let mut rounds = 0;
    for bytes in PROOF_BYTES {
        let found = torture::run(library, &options, Fence::Deregister, bytes, PROOF_ROUNDS)?;
        judge(&device, &found)?;
        rounds += found.rounds;
    }
    tracing::info!(device, gid, rounds, "the fence holds: nothing landed after a deregistration");
    if let (Some(file), Some(directory)) = (&file, directory) {
        std::fs::create_dir_all(directory).map_err(keep)?;
        // Half a file is no proof, and a lost one costs seconds.
        std::fs::write(file, record).map_err(keep)?;
    }
    Ok(Proof { device, gid, rounds })
}

pub(crate) fn judge(device: &str, found: &Finding) -> Result<(), ProofError> {
    let Finding { bytes, rounds, late, .. } = *found;
    let device = device.to_owned();
    if late > 0 {
        Err(ProofError::Late { device, late, rounds, bytes })
    } else if rounds < LIVE_ROUNDS_MIN {
        Err(ProofError::Idle { device, rounds, asked: PROOF_ROUNDS })
    } else {
        Ok(())
    }
}
