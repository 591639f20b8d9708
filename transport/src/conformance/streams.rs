//! Scenarios of fences under a stream of writes, and of the structures above writes.

use super::Build;
use super::cases::{posted, reset_and_rebuild, text};
use super::rig::{A, B, End, Outcome, REGION, Rig, check, pattern};
use crate::ring::{RingReader, RingWriter, ShipError};
use crate::row::{RowReader, RowWriter};
use crate::{Event, Lane, RegionId};
use quorate_consensus::{Accept, Ballot, Row, Slot, Value, ValueKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The writes of a stream whose numbers belong to the first life of its lane: (number, counter).
type Sent = Vec<(u64, u64)>;

/// Streams counters and large writes over the whole region from a thread of its own, lets the
/// other end turn until they arrive, and then calls `with`.
pub(super) fn under_a_stream(
    rig: Rig,
    region: RegionId,
    mut with: impl FnMut(&mut End) -> Outcome,
) -> Result<(End, End, Sent), String> {
    let mut ends = rig.ends.into_iter();
    let (Some(mut writer), Some(mut reader)) = (ends.next(), ends.next()) else {
        return Err("two endpoints were asked for".into());
    };
    let large = [1, 2, 3].map(|salt| pattern(60_000, salt));
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut sent = Sent::new();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1u64.. {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                // Refusals are part of the plan: the lane fails again and again after the fence.
                let counter = (round % 512) as usize * 8;
                let op = writer.transport.write(B, region, counter, &[text(round)]);
                let large = &large[round as usize % 3..][..1];
                let _ = writer.transport.write(B, region, 4096, large);
                if let Ok(op) = op.map(|op| op.0)
                    && writer.downs(B, Lane::Data) == 0
                {
                    sent.push((op, round));
                }
                writer.turn();
                if round % 16 == 0 && writer.completed() > 0 {
                    acknowledged.store(true, Ordering::Release);
                }
            }
        });
        let deadline = Instant::now() + super::rig::DEADLINE;
        let streaming = |reader: &End| {
            reader.transport.load(region, 8 * 20) > 0 && acknowledged.load(Ordering::Acquire)
        };
        while !streaming(&reader) && Instant::now() < deadline {
            reader.turn();
        }
        let outcome = with(&mut reader);
        stop.store(true, Ordering::Release);
        outcome
    });
    outcome.map(|()| (writer, reader, sent))
}

pub(super) const FENCED_BYTES: usize = 1 << 16;

pub(super) fn turn_for(end: &mut End, turns: u32, least: Duration) {
    let until = Instant::now() + least;
    for turn in 0.. {
        if turn >= turns && Instant::now() >= until {
            return;
        }
        end.turn();
    }
}

pub(super) fn fence(build: &mut Build<'_>) -> Outcome {
    for _ in 0..5 {
        let rig = Rig::connected(build, 2, FENCED_BYTES)?;
        under_a_stream(rig, REGION, |reader| {
            let streaming = reader.transport.load(REGION, 8 * 20) != 0;
            check(streaming, || "the stream never arrived".into())?;
            let revoked = reader.transport.revoke(REGION, A);
            check(revoked.is_ok(), || format!("{revoked:?}"))?;
            let fenced = reader.region(FENCED_BYTES);
            for _ in 0..20 {
                turn_for(reader, 20, Duration::from_millis(1));
                let now = reader.region(FENCED_BYTES);
                check(now == fenced, || "bytes changed after the fence".into())?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The newest write that the writer was told of before its lane failed for the first time.
pub(super) fn promised_in_first_life(writer: &End) -> Result<u64, String> {
    let first_life = writer
        .events
        .iter()
        .take_while(|event| !matches!(event, Event::LinkDown { lane: Lane::Data, .. }));
    let promised = first_life.filter_map(|event| match event {
        Event::Completed { through, .. } => Some(through.0),
        _ => None,
    });
    let promised = promised.max().unwrap_or(0);
    check(promised > 0, || "nothing was acknowledged".into())?;
    Ok(promised)
}

pub(super) fn fence_keeps_promises(build: &mut Build<'_>) -> Outcome {
    let rig = Rig::connected(build, 2, FENCED_BYTES)?;
    let (writer, reader, sent) = under_a_stream(rig, REGION, |reader| {
        let revoked = reader.transport.revoke(REGION, A);
        check(revoked.is_ok(), || format!("{revoked:?}"))?;
        turn_for(reader, 50, Duration::from_millis(5));
        Ok(())
    })?;
    let promised = promised_in_first_life(&writer)?;
    for (op, counter) in sent.into_iter().filter(|(op, _)| *op <= promised) {
        let word = reader.transport.load(REGION, (counter % 512) as usize * 8);
        check(word >= counter, || {
            format!("write {op} of {counter} was acknowledged, as {promised} were; there is {word}")
        })?;
    }
    Ok(())
}

pub(super) fn ring_under_resets(build: &mut Build<'_>) -> Outcome {
    const RING: usize = 16 << 10;
    let mut rig = Rig::connected(build, 2, RING)?;
    let (mut writer, mut reader) = (RingWriter::new(REGION, RING), RingReader::new(REGION, RING));
    let mut accept = Accept::default();
    for round in 0..6u64 {
        let (Some(at_a), Some(at_b)) =
            (rig.ends[0].life(B, Lane::Data), rig.ends[1].life(A, Lane::Data))
        else {
            return Err("the lane is down".into());
        };
        writer.reset(at_a);
        reader.reset(at_b);
        // Slots start over in each life; what an older one left must not appear.
        let base = round * 1_000_000;
        let (mut shipped, mut taken) = (0u64, 0u64);
        let deadline = Instant::now() + super::rig::DEADLINE;
        while taken < 2000 {
            check(Instant::now() < deadline, || format!("stuck at {taken} in life {round}"))?;
            let bytes = pattern((shipped * 911 % 9000) as usize, base + shipped);
            let checksum = crc32c::crc32c(&bytes);
            let value = Value { kind: ValueKind::Commands, checksum, bytes };
            let slot = Slot(base + shipped);
            let (peer, ballot) = (B, Ballot { round, node: A });
            let transport = &mut *rig.ends[0].transport;
            match writer.ship(transport, peer, ballot, slot, slot, [&value]) {
                Ok(_) => shipped += 1,
                Err(ShipError::NoCredit { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
            rig.turn();
            let transport = &*rig.ends[1].transport;
            while reader.poll(transport, &mut accept).map_err(|error| error.to_string())? {
                let expected = Slot(base + taken);
                check(accept.first == expected && accept.ballot.round == round, || {
                    format!("expected {expected:?} of life {round}, got {accept:?}")
                })?;
                taken += 1;
            }
            writer.set_consumed(reader.consumed());
        }
        reset_and_rebuild(&mut rig)?;
    }
    Ok(())
}

pub(super) fn rows(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    let region = RegionId::row(A);
    let ready = rig.b().transport.register(region, crate::row::ROW_BYTES);
    check(ready.is_ok() && rig.b().transport.grant(region, A).is_ok(), || format!("{ready:?}"))?;
    let (mut writer, mut reader) = (RowWriter::new(A), RowReader::new(A));
    for life in 0..3 {
        writer.reset(rig.ends[0].life(B, Lane::Data).unwrap_or_default());
        reader.reset(rig.ends[1].life(A, Lane::Data).unwrap_or_default());
        let mut newest = 0;
        let mut take = |rig: &Rig| match reader.poll(&*rig.ends[1].transport) {
            Some((row, consumed)) if row.heartbeat != consumed || consumed <= newest => {
                Err(format!("life {life}: {consumed} after {newest}, {row:?}"))
            }
            Some((_, consumed)) => {
                newest = consumed;
                Ok(newest)
            }
            None => Ok(newest),
        };
        for step in 1..=1000 {
            let row = Row { heartbeat: step, ..Row::default() };
            let end = &mut rig.ends[0];
            posted(writer.publish(&mut *end.transport, B, &row, step))?;
            if step % 3 == 0 {
                rig.turn();
            }
            take(&rig)?;
        }
        let deadline = Instant::now() + super::rig::DEADLINE;
        while take(&rig)? < 1000 {
            check(Instant::now() < deadline, || "the last row never arrived".into())?;
            rig.turn();
        }
        reset_and_rebuild(&mut rig)?;
    }
    Ok(())
}

pub(super) fn park(build: &mut Build<'_>) -> Outcome {
    const LONG: Duration = Duration::from_secs(60);
    let mut rig = Rig::connected(build, 2, 64)?;
    rig.settle();
    let start = Instant::now();
    rig.b().transport.waker().wake();
    rig.b().transport.park(LONG);
    let mut ends = rig.ends.into_iter();
    let (Some(mut a), Some(mut b)) = (ends.next(), ends.next()) else {
        return Err("two endpoints were asked for".into());
    };
    let waker = b.transport.waker();
    let rounds = std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let mut rounds = 0;
            while b.messages().count() < 3 && start.elapsed() < LONG {
                b.transport.park(LONG);
                b.turn();
                rounds += 1;
            }
            rounds
        });
        for i in 0..3 {
            let _ = a.transport.send(B, text(i));
            a.transport.flush();
            waker.wake();
            a.turn();
        }
        sleeper.join().unwrap_or(0)
    });
    check(rounds > 0 && start.elapsed() < LONG, || "it slept through its messages".into())
}
