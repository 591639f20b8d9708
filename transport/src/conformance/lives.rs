//! Scenarios of grants for one life of a lane. Where a transport answers
//! [`RegionError::Lasting`] they are passed over, and the report says so.

use super::Build;
use super::cases::{posted, text};
use super::rig::{A, B, DEADLINE, End, Outcome, REGION, Rig, check, pattern};
use super::streams::{FENCED_BYTES, promised_in_first_life, turn_for, under_a_stream};
use crate::{Event, Lane, RegionError, RegionId};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// Granted for life, and never before.
const LIFE: RegionId = RegionId(0x77);

/// Whether there are such grants on what is built.
pub(super) fn offered(build: &mut Build<'_>) -> Result<bool, String> {
    let mut rig = Rig::connected(build, 2, 64)?;
    let registered = rig.b().transport.register(LIFE, 64);
    registered.map_err(|error| error.to_string())?;
    match rig.b().transport.grant_for_life(LIFE, A) {
        Ok(()) => Ok(true),
        Err(RegionError::Lasting(..)) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// Two ends; the second one granted `LIFE` to the first, for this life.
fn granted(build: &mut Build<'_>, length: usize) -> Result<Rig, String> {
    let mut rig = Rig::connected(build, 2, 64)?;
    let registered = rig.b().transport.register(LIFE, length);
    registered.map_err(|error| error.to_string())?;
    grant(&mut rig)?;
    Ok(rig)
}

fn grant(rig: &mut Rig) -> Outcome {
    let granted = rig.b().transport.grant_for_life(LIFE, A);
    granted.map_err(|error| format!("not granted: {error}"))
}

fn write(rig: &mut Rig, offset: usize, bytes: Bytes) -> Result<u64, String> {
    posted(rig.a().transport.write(B, LIFE, offset, &[bytes]).map(|op| op.0))
}

fn memory(end: &End, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    end.transport.copy_out(LIFE, 0, &mut bytes);
    bytes
}

/// What the writer was told of in the present life of its lane.
fn completed(end: &End) -> u64 {
    let events = end.events.iter().rev();
    let life = events.take_while(|event| !matches!(event, Event::LinkUp { lane: Lane::Data, .. }));
    let told = life.filter_map(|event| match event {
        Event::Completed { through, .. } => Some(through.0),
        _ => None,
    });
    told.max().unwrap_or(0)
}

/// Ends the present life from one end, and waits for the next one.
fn next_life(rig: &mut Rig, by: usize) -> Outcome {
    let before = rig.ends[0].life(B, Lane::Data);
    let other = if by == 0 { B } else { A };
    rig.ends[by].transport.reset(other, "a scenario wants a new life");
    rig.until("both lanes are rebuilt at both ends", |rig| {
        let lives = (rig.ends[0].life(B, Lane::Data), rig.ends[1].life(A, Lane::Data));
        lives.0.is_some() && lives.0 == lives.1 && lives.0 != before && rig.ends[0].up(B)
    })
}

/// The right ends with its life; a write that comes before the next grant waits for it.
pub(super) fn ends_with_its_life(build: &mut Build<'_>) -> Outcome {
    let mut rig = granted(build, 64)?;
    for round in 1..=4u64 {
        let op = write(&mut rig, 0, text(round))?;
        rig.until("a granted write completed and is there", |rig| {
            completed(&rig.ends[0]) >= op && rig.ends[1].transport.load(LIFE, 0) == round
        })?;
        next_life(&mut rig, (round % 2) as usize)?;
        let op = write(&mut rig, 8, text(round))?;
        let downs = rig.ends[0].downs(B, Lane::Data);
        rig.settle();
        let word = rig.ends[1].transport.load(LIFE, 8);
        check(word == round - 1, || "a write landed in a life without a grant".into())?;
        check(completed(&rig.ends[0]) < op, || "a write without a grant completed".into())?;
        let kept = rig.ends[0].downs(B, Lane::Data) == downs;
        check(kept, || "a write that came before its grant failed the lane".into())?;
        grant(&mut rig)?;
        rig.until("the write that waited completed and is there", |rig| {
            completed(&rig.ends[0]) >= op && rig.ends[1].transport.load(LIFE, 8) == round
        })?;
    }
    Ok(())
}

/// The reader's end of a life, under a stream of writes. What is in memory then.
fn end_life(reader: &mut End) -> Result<Vec<u8>, String> {
    let downs = reader.downs(A, Lane::Data);
    reader.transport.reset(A, "a scenario wants a new life");
    let deadline = Instant::now() + DEADLINE;
    while reader.downs(A, Lane::Data) == downs {
        check(Instant::now() < deadline, || "the end of the life was not polled".into())?;
        reader.turn();
    }
    Ok(memory(reader, FENCED_BYTES))
}

/// C4 at the end of a life: no byte changes any more, also while the writer writes in the next one.
pub(super) fn no_byte_after_its_life(build: &mut Build<'_>) -> Outcome {
    for _ in 0..5 {
        let rig = granted(build, FENCED_BYTES)?;
        under_a_stream(rig, LIFE, |reader| {
            let left = end_life(reader)?;
            for _ in 0..20 {
                turn_for(reader, 20, Duration::from_millis(1));
                let now = memory(reader, FENCED_BYTES);
                check(now == left, || {
                    let carrier = reader.transport.status(A).carrier;
                    format!("bytes changed after the end of the life; now over {carrier}")
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// C4 at the end of a life: what was acknowledged in it is there, whoever was told when.
pub(super) fn end_keeps_promises(build: &mut Build<'_>) -> Outcome {
    let rig = granted(build, FENCED_BYTES)?;
    let mut left = Vec::new();
    let (writer, _, sent) = under_a_stream(rig, LIFE, |reader| {
        left = end_life(reader)?;
        turn_for(reader, 50, Duration::from_millis(5));
        Ok(())
    })?;
    let promised = promised_in_first_life(&writer)?;
    for (op, counter) in sent.into_iter().filter(|(op, _)| *op <= promised) {
        let at = (counter % 512) as usize * 8;
        let word = left[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        check(word >= counter, || {
            format!("write {op} of {counter} was acknowledged, as {promised} were; there is {word}")
        })?;
    }
    Ok(())
}

/// The grant of one life lets in nothing of another one: here nobody writes in the later life.
pub(super) fn nothing_of_another_life(build: &mut Build<'_>) -> Outcome {
    const LENGTH: usize = 1 << 20;
    let mut rig = granted(build, LENGTH)?;
    for life in 0..8u8 {
        let bytes = pattern(LENGTH, u64::from(life) + 1);
        for _ in 0..20 {
            write(&mut rig, 0, bytes.clone())?;
        }
        rig.a().transport.flush();
        for _ in 0..u32::from(life % 4) {
            rig.b().turn();
        }
        next_life(&mut rig, usize::from(life % 2))?;
        grant(&mut rig)?;
        let left = memory(&rig.ends[1], LENGTH);
        rig.settle();
        let now = memory(&rig.ends[1], LENGTH);
        check(now == left, || "a write of an earlier life landed in a later one".into())?;
    }
    Ok(())
}

/// A revoke fences as always, and the grant comes back in another life only.
pub(super) fn fenced_until_another_life(build: &mut Build<'_>) -> Outcome {
    let mut rig = granted(build, 64)?;
    for round in 1..=3u64 {
        let op = write(&mut rig, 0, text(round))?;
        rig.until("a granted write completed", |rig| completed(&rig.ends[0]) >= op)?;
        let revoked = rig.b().transport.revoke(LIFE, A);
        check(revoked.is_ok(), || format!("{revoked:?}"))?;
        let word = rig.ends[1].transport.load(LIFE, 0);
        check(word == round, || format!("{word} is there, {round} was acknowledged"))?;
        let again = rig.b().transport.grant_for_life(LIFE, A);
        check(again == Err(RegionError::Fenced(LIFE, A)), || format!("renewed: {again:?}"))?;
        let downs = rig.ends[0].downs(B, Lane::Data);
        write(&mut rig, 0, text(round + 100))?;
        rig.until("a write after the fence failed the lane", |rig| {
            rig.ends[0].downs(B, Lane::Data) > downs
        })?;
        rig.until("the lanes are rebuilt", |rig| {
            let lives = (rig.ends[0].life(B, Lane::Data), rig.ends[1].life(A, Lane::Data));
            rig.ends[0].up(B) && rig.ends[1].up(A) && lives.0 == lives.1
        })?;
        let word = rig.ends[1].transport.load(LIFE, 0);
        check(word == round, || format!("{word} landed after the fence"))?;
        grant(&mut rig)?;
    }
    Ok(())
}

/// As the case of lasting grants.
pub(super) fn fence(build: &mut Build<'_>) -> Outcome {
    for _ in 0..5 {
        let rig = granted(build, FENCED_BYTES)?;
        under_a_stream(rig, LIFE, |reader| {
            let revoked = reader.transport.revoke(LIFE, A);
            check(revoked.is_ok(), || format!("{revoked:?}"))?;
            let fenced = memory(reader, FENCED_BYTES);
            for _ in 0..20 {
                turn_for(reader, 20, Duration::from_millis(1));
                let now = memory(reader, FENCED_BYTES);
                check(now == fenced, || "bytes changed after the fence".into())?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A lasting grant makes place for one for a life, and the other way round.
pub(super) fn replaces_a_lasting_grant(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    let granted = rig.b().transport.grant_for_life(REGION, A);
    check(granted.is_ok(), || format!("{granted:?}"))?;
    // What is written by the lasting one, until the word of the other is there, fails the lane.
    rig.settle();
    let op = posted(rig.a().write(B, 0, text(1)))?;
    rig.until("the write completed", |rig| completed(&rig.ends[0]) >= op)?;
    next_life(&mut rig, 0)?;
    let op = posted(rig.a().write(B, 0, text(2)))?;
    rig.settle();
    let word = rig.ends[1].transport.load(REGION, 0);
    check(word == 1, || "the lasting grant was left".into())?;
    let lasting = rig.b().transport.grant(REGION, A);
    check(lasting.is_ok(), || format!("{lasting:?}"))?;
    rig.until("the write that waited completed", |rig| completed(&rig.ends[0]) >= op)?;
    next_life(&mut rig, 1)?;
    let op = posted(rig.a().write(B, 0, text(3)))?;
    rig.until("the lasting grant lasts", |rig| {
        completed(&rig.ends[0]) >= op && rig.ends[1].transport.load(REGION, 0) == 3
    })
}
