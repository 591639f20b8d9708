//! The scenarios.

use super::Build;
use super::rig::{A, B, Outcome, REGION, Rig, check, pattern};
use super::{lives, streams};
use crate::{Event, Lane, PeerError, PostError, RegionError, RegionId};
use bytes::Bytes;
use quorate_consensus::NodeId;
use std::time::Instant;

type Scenario = fn(&mut Build<'_>) -> Outcome;

pub(super) const ALL: &[(&str, Scenario)] = &[
    ("messages arrive whole and in order", messages_in_order),
    ("messages: the empty one and 8 MiB", messages_of_extreme_sizes),
    ("writes take effect in post order", writes_in_order),
    ("writes: pieces are joined without a gap", pieces_are_joined),
    ("writes: 8 MiB in one piece", large_write),
    ("writes: three replicas at each other at once", three_at_once),
    ("completions are cumulative and never early", completions_are_honest),
    ("both ends agree on the incarnation, and a rebuilt lane has another", incarnations_agree),
    ("after a reset nothing old takes effect", nothing_old_after_reset),
    ("half-open: one end resets, the other learns of it", half_open),
    ("peers: one that is removed is gone, and comes back as another", peers_come_and_go),
    ("flushed once, all of it arrives though nobody flushes again", flushed_once),
    ("a lane that is down refuses, and an unknown peer too", down_and_unknown),
    ("back-pressure: Full, bounded, and nothing is lost", back_pressure),
    ("too large is refused, not queued", too_large),
    ("a write without a grant fails the lane and changes nothing", no_grant),
    ("a write beyond the region fails the lane and changes nothing", out_of_range),
    ("regions: registered once, missing ones named", regions),
    ("fence: no byte changes after revoke, under a stream of writes", streams::fence),
    ("fence: what was acknowledged is visible", streams::fence_keeps_promises),
    ("ring: laps under resets deliver whole records in order", streams::ring_under_resets),
    ("row: the newest arrives, older ones never after it", streams::rows),
    ("park: woken by data and by the waker", streams::park),
];

/// Of grants for one life, where there are such.
pub(super) const FOR_LIFE: &[(&str, Scenario)] = &[
    (
        "for life: the right ends with its life, and writes wait for the next",
        lives::ends_with_its_life,
    ),
    (
        "for life: no byte changes after its end, under a stream of writes",
        lives::no_byte_after_its_life,
    ),
    ("for life: what was acknowledged is there at its end", lives::end_keeps_promises),
    ("for life: nothing of another life comes in by it", lives::nothing_of_another_life),
    ("for life: fenced, it comes back in another life only", lives::fenced_until_another_life),
    ("for life: a fence lets no byte change, under a stream of writes", lives::fence),
    ("for life: it replaces a lasting grant", lives::replaces_a_lasting_grant),
];

pub(super) fn text(number: u64) -> Bytes {
    Bytes::from(number.to_le_bytes().to_vec())
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(u64::MAX, u64::from_le_bytes)
}

pub(super) fn posted<T>(result: Result<T, PostError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// Posts until it succeeds, turning in between.
fn insist<T>(
    rig: &mut Rig,
    mut post: impl FnMut(&mut Rig) -> Result<T, PostError>,
) -> Result<T, String> {
    let deadline = Instant::now() + super::rig::DEADLINE;
    loop {
        match post(rig) {
            Err(PostError::Full(_)) if Instant::now() < deadline => rig.turn(),
            other => return posted(other),
        }
    }
}

fn messages_in_order(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    for i in 0..5000u64 {
        insist(&mut rig, |rig| rig.a().transport.send(B, text(i)))?;
        insist(&mut rig, |rig| rig.b().transport.send(A, text(i + 1_000_000)))?;
        if i % 100 == 0 {
            rig.turn();
        }
    }
    rig.until("all messages arrived", |rig| {
        rig.ends.iter().all(|end| end.messages().count() == 5000)
    })?;
    for (end, from) in [(&rig.ends[1], 0), (&rig.ends[0], 1_000_000)] {
        let order = end.messages().map(|message| number(message)).eq(from..from + 5000);
        check(order, || "messages were reordered or damaged".into())?;
    }
    Ok(())
}

fn messages_of_extreme_sizes(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    let sent = [Bytes::new(), pattern(8 << 20, 3), Bytes::from_static(b"x"), Bytes::new()];
    for message in &sent {
        insist(&mut rig, |rig| rig.a().transport.send(B, message.clone()))?;
    }
    rig.until("all messages arrived", |rig| rig.ends[1].messages().count() == sent.len())?;
    check(rig.b().messages().eq(&sent), || "a message was damaged".into())
}

fn writes_in_order(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 1024)?;
    // Every word is written before the one behind it: at any moment they may not grow.
    for round in 1..500u64 {
        for word in 0..128 {
            insist(&mut rig, |rig| rig.a().write(B, word * 8, text(round)))?;
        }
        rig.turn();
        let words: Vec<u64> =
            (0..128).map(|word| rig.ends[1].transport.load(REGION, word * 8)).collect();
        check(words.is_sorted_by(|a, b| a >= b), || format!("out of order: {words:?}"))?;
    }
    rig.until("the last write arrived", |rig| rig.ends[1].transport.load(REGION, 1016) == 499)
}

fn pieces_are_joined(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 1 << 20)?;
    let whole = pattern(300_000, 5);
    let cuts = [0, 0, 1, 9, 64, 64, 5000, 170_000, 299_999, 300_000];
    let pieces: Vec<Bytes> = cuts.windows(2).map(|cut| whole.slice(cut[0]..cut[1])).collect();
    posted(rig.a().transport.write(B, REGION, 77, &pieces))?;
    posted(rig.a().transport.write(B, REGION, 400_000, &[]))?;
    posted(rig.a().transport.write(B, REGION, 500_000, &pieces[..4]))?;
    rig.until("all three writes completed", |rig| rig.ends[0].completed() == 3)?;
    rig.settle();
    let region = rig.b().region(1 << 20);
    check(region[77..300_077] == whole, || "the pieces were not joined".into())?;
    check(region[..77].iter().all(|byte| *byte == 0), || "bytes before the write changed".into())?;
    check(region[500_000..500_064] == whole[..64], || "a later write went astray".into())
}

fn large_write(build: &mut Build<'_>) -> Outcome {
    const LENGTH: usize = 8 << 20;
    let mut rig = Rig::connected(build, 2, LENGTH)?;
    for salt in 0..3 {
        let bytes = pattern(LENGTH, salt);
        let op = insist(&mut rig, |rig| rig.a().write(B, 0, bytes.clone()))?;
        rig.until("the write completed and is whole", |rig| {
            rig.ends[0].completed() >= op && rig.ends[1].region(LENGTH) == bytes
        })?;
    }
    Ok(())
}

fn three_at_once(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 3, 4096)?;
    for round in 1..=300u64 {
        for from in 0..3 {
            for peer in rig.ends[from].transport.peers() {
                // Each writer has a place of its own in each peer's region.
                insist(&mut rig, |rig| rig.ends[from].write(peer, from * 64, text(round)))?;
                insist(&mut rig, |rig| rig.ends[from].transport.send(peer, text(round)))?;
            }
        }
        if round % 7 == 0 {
            rig.turn();
        }
    }
    rig.until("every replica has everything of the others", |rig| {
        (0..3).all(|at| {
            let others = (0..3).filter(|from| *from != at);
            let end = &rig.ends[at];
            end.messages().count() == 600
                && others.clone().all(|from| end.transport.load(REGION, from * 64) == 300)
        })
    })
}

fn completions_are_honest(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 8192)?;
    let mut last = 0;
    for i in 1..=1000u64 {
        last = insist(&mut rig, |rig| rig.a().write(B, (i % 1024) as usize * 8, text(i)))?;
        check(last == i, || format!("write {i} got number {last}"))?;
        rig.a().turn();
        let told = rig.a().events.iter().filter_map(|event| match event {
            Event::Completed { through, level, .. } if *level > crate::Level::Accepted => {
                Some(through.0)
            }
            _ => None,
        });
        let visible = told.max().unwrap_or(0);
        if visible > 0 {
            let word = rig.b().transport.load(REGION, (visible % 1024) as usize * 8);
            check(word == visible, || format!("{visible} completed and is not visible"))?;
        }
        if i % 3 == 0 {
            rig.b().turn();
        }
    }
    rig.until("the last write completed", |rig| rig.ends[0].completed() == last)?;
    let mut told = Vec::new();
    for event in &rig.a().events {
        if let Event::Completed { through, level: crate::Level::Visible, .. } = event {
            told.push(*through);
        }
    }
    check(told.is_sorted(), || "completions went backwards".into())
}

fn incarnations_agree(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    let mut seen = Vec::new();
    for _ in 0..4 {
        for lane in [Lane::Control, Lane::Data] {
            let lives = (rig.ends[0].life(B, lane), rig.ends[1].life(A, lane));
            check(lives.0.is_some() && lives.0 == lives.1, || format!("{lane:?}: {lives:?}"))?;
            check(!seen.contains(&lives.0), || "an incarnation was used twice".into())?;
            seen.push(lives.0);
        }
        reset_and_rebuild(&mut rig)?;
    }
    Ok(())
}

/// Resets from the first end and waits until both have both lanes again.
pub(super) fn reset_and_rebuild(rig: &mut Rig) -> Outcome {
    let before: Vec<_> = [Lane::Control, Lane::Data].map(|lane| rig.ends[0].life(B, lane)).into();
    rig.a().transport.reset(B, "a scenario wants a new life");
    rig.until("both lanes are rebuilt at both ends", |rig| {
        [Lane::Control, Lane::Data].iter().zip(&before).all(|(lane, before)| {
            let lives = (rig.ends[0].life(B, *lane), rig.ends[1].life(A, *lane));
            lives.0.is_some() && lives.0 == lives.1 && lives.0 != *before
        })
    })
}

fn nothing_old_after_reset(build: &mut Build<'_>) -> Outcome {
    const LENGTH: usize = 1 << 20;
    let mut rig = Rig::connected(build, 2, LENGTH)?;
    for life in 0..10u64 {
        // Under way when the lane ends: large enough that it cannot all have arrived.
        for _ in 0..40 {
            let under_way = Bytes::from(vec![0xee; LENGTH]);
            posted(rig.a().write(B, 0, under_way))?;
            posted(rig.a().transport.send(B, text(life)))?;
        }
        rig.a().transport.flush();
        rig.b().transport.poll(&mut Vec::new());
        rig.b().events.clear();
        reset_and_rebuild_from_events(&mut rig)?;
        let fresh = Bytes::from(vec![life as u8; LENGTH]);
        let op = insist(&mut rig, |rig| rig.a().write(B, 0, fresh.clone()))?;
        check(op == 1, || format!("numbers start at 1 in a new life, got {op}"))?;
        rig.until("the new write completed", |rig| rig.ends[1].region(LENGTH) == fresh)?;
        rig.settle();
        check(rig.b().region(LENGTH) == fresh, || "an old write landed in a new life".into())?;
    }
    Ok(())
}

/// As [`reset_and_rebuild`], and no message of the old life follows the news of the new one.
fn reset_and_rebuild_from_events(rig: &mut Rig) -> Outcome {
    let old = rig.ends[0].life(B, Lane::Control);
    rig.a().transport.reset(B, "a scenario wants a new life");
    rig.until("both lanes are rebuilt at both ends", |rig| {
        [Lane::Control, Lane::Data].iter().all(|lane| {
            let lives = (rig.ends[0].life(B, *lane), rig.ends[1].life(A, *lane));
            lives.0.is_some() && lives.0 == lives.1
        }) && rig.ends[0].life(B, Lane::Control) != old
    })?;
    let events = &rig.ends[1].events;
    let up =
        events.iter().rposition(|event| matches!(event, Event::LinkUp { lane: Lane::Control, .. }));
    let late = events[up.unwrap_or(0)..].iter().any(|event| matches!(event, Event::Control { .. }));
    check(!late, || "a message of the old life arrived in the new one".into())
}

fn half_open(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    // Each end in turn, so that whoever dials and whoever listens is the one that is left behind.
    for (from, other, at) in [(0, 1, B), (1, 0, A)] {
        let downs = rig.ends[other].downs(rig.ends[from].transport.local(), Lane::Data);
        rig.ends[from].transport.reset(at, "half of the link is gone");
        for _ in 0..5 {
            // The other end has not polled and believes in the link.
            let me = rig.ends[from].transport.local();
            let believed = rig.ends[other].transport.send(me, text(1));
            check(believed.is_ok(), || "it knew without polling".into())?;
        }
        let me = rig.ends[from].transport.local();
        rig.until("the other end learned that the link broke, and all is up again", |rig| {
            rig.ends[other].downs(me, Lane::Data) > downs
                && rig.ends[from].up(at)
                && rig.ends[other].up(me)
                && rig.ends[from].life(at, Lane::Data) == rig.ends[other].life(me, Lane::Data)
        })?;
    }
    let op = posted(rig.a().write(B, 0, text(9)))?;
    rig.until("the rebuilt link works", |rig| rig.ends[0].completed() >= op)
}

fn peers_come_and_go(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    if let Err(PeerError::Fixed(_)) = rig.a().transport.add_peer(NodeId(77), "") {
        return Ok(());
    }
    rig.a().transport.remove_peer(NodeId(77));
    let own = rig.a().transport.add_peer(A, "");
    check(matches!(own, Err(PeerError::Unusable(..))), || "it took itself for a peer".into())?;
    for round in 0..3 {
        let before = rig.ends[1].life(A, Lane::Data);
        let downs = rig.ends[1].downs(A, Lane::Data);
        posted(rig.a().transport.send(B, text(round)))?;
        rig.a().transport.remove_peer(B);
        let refused = rig.a().transport.send(B, text(round));
        check(refused == Err(PostError::Unknown(B)), || format!("it was sent: {refused:?}"))?;
        check(!rig.a().transport.peers().contains(&B), || "it is a peer still".into())?;
        rig.until("the other end learned that the link broke", |rig| {
            rig.ends[1].downs(A, Lane::Data) > downs
        })?;
        rig.settle();
        rig.a().events.clear();
        rig.settle();
        let told = rig.a().events.len();
        check(told == 0, || format!("{told} events of one that is no peer"))?;
        check(rig.ends[1].life(A, Lane::Data).is_none(), || "a link to one that left".into())?;
        let again = rig.a().transport.add_peer(B, "");
        check(again.is_ok(), || format!("it may not come back: {again:?}"))?;
        rig.until("the lanes are up again", |rig| rig.ends[0].up(B) && rig.ends[1].up(A))?;
        let after = rig.ends[1].life(A, Lane::Data);
        check(after != before, || "a new link has the life of the old one".into())?;
        let op = posted(rig.a().write(B, 0, text(100 + round)))?;
        rig.until("the new link works", |rig| {
            rig.ends[0].completed() >= op && rig.ends[1].region(8) == text(100 + round)
        })?;
    }
    posted(rig.a().transport.revoke(REGION, B).map_err(|_| PostError::Unknown(B)))?;
    let freed = rig.a().transport.unregister(REGION);
    check(freed.is_ok(), || format!("the region stays: {freed:?}"))?;
    let again = rig.a().transport.register(REGION, 128);
    check(again.is_ok(), || format!("its name is taken: {again:?}"))
}

fn flushed_once(build: &mut Build<'_>) -> Outcome {
    const LENGTH: usize = 1 << 20;
    let mut rig = Rig::connected(build, 2, LENGTH)?;
    let message = pattern(LENGTH, 1);
    for _ in 0..24 {
        posted(rig.a().transport.send(B, message.clone()))?;
        posted(rig.a().write(B, 0, message.clone()))?;
    }
    rig.a().transport.flush();
    let deadline = Instant::now() + super::rig::DEADLINE;
    while rig.b().messages().count() < 24 || rig.a().completed() < 24 {
        check(Instant::now() < deadline, || "a part of it stayed behind".into())?;
        for end in &mut rig.ends {
            end.transport.poll(&mut end.events);
        }
    }
    Ok(())
}

fn down_and_unknown(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    let nobody = NodeId(999);
    let errors = (rig.a().write(nobody, 0, text(1)), rig.a().transport.send(nobody, text(1)));
    check(errors == (Err(PostError::Unknown(nobody)), Err(PostError::Unknown(nobody))), || {
        format!("an unknown peer: {errors:?}")
    })?;
    rig.a().transport.reset(B, "down for a while");
    rig.a().turn();
    if rig.a().life(B, Lane::Data).is_none() {
        let refused = rig.a().write(B, 0, text(1));
        check(refused == Err(PostError::Down(B)), || format!("while down: {refused:?}"))?;
        check(!rig.a().transport.status(B).data_up, || "its status says up".into())?;
    }
    rig.until("it comes back", |rig| rig.ends[0].up(B) && rig.ends[1].up(A))
}

fn back_pressure(build: &mut Build<'_>) -> Outcome {
    const LENGTH: usize = 1 << 20;
    let mut rig = Rig::connected(build, 2, LENGTH)?;
    // The other end does not read at all.
    let message = pattern(LENGTH, 1);
    let (mut messages, mut writes) = (0usize, 0u64);
    for lane in [Lane::Control, Lane::Data] {
        let mut full = false;
        for _ in 0..2000 {
            let result = match lane {
                Lane::Control => rig.a().transport.send(B, message.clone()).map(|()| messages += 1),
                Lane::Data => rig.a().write(B, 0, message.clone()).map(|op| writes = op),
            };
            rig.a().transport.flush();
            match result {
                Ok(()) => {}
                Err(PostError::Full(_)) => {
                    full = true;
                    break;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        check(full, || format!("{lane:?}: 2000 MiB went into a queue that nobody reads"))?;
    }
    let queued = rig.a().transport.status(B).queued_bytes;
    check(queued > 0, || "a full queue reports no bytes".into())?;
    rig.until("everything accepted arrived", |rig| {
        rig.ends[1].messages().count() == messages && rig.ends[0].completed() == writes
    })?;
    check(rig.b().messages().all(|got| *got == message), || "a message was damaged".into())?;
    let queued = rig.a().transport.status(B).queued_bytes;
    check(queued == 0, || format!("{queued} bytes are left in an idle queue"))
}

fn too_large(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    let huge = Bytes::from(vec![0; crate::codec::MESSAGE_BYTES_MAX + 1]);
    let refused = rig.a().transport.send(B, huge);
    check(matches!(refused, Err(PostError::TooLarge { .. })), || format!("{refused:?}"))?;
    posted(rig.a().transport.send(B, text(1)))?;
    rig.until("the next one arrives", |rig| rig.ends[1].messages().count() == 1)
}

fn no_grant(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    let revoked = rig.b().transport.revoke(REGION, A);
    check(revoked.is_ok(), || format!("{revoked:?}"))?;
    refused_write(&mut rig, 0)?;
    // The grant outlives the lane, once given again.
    let granted = rig.b().transport.grant(REGION, A);
    check(granted.is_ok(), || format!("{granted:?}"))?;
    reset_and_rebuild(&mut rig)?;
    let op = posted(rig.a().write(B, 0, text(7)))?;
    rig.until("a granted write works again", |rig| {
        rig.ends[0].completed() >= op && rig.ends[1].transport.load(REGION, 0) == 7
    })
}

fn out_of_range(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    for offset in [57, 64, 1 << 40, usize::MAX - 3] {
        refused_write(&mut rig, offset)?;
        rig.until("the lane is rebuilt", |rig| rig.ends[0].up(B) && rig.ends[1].up(A))?;
    }
    Ok(())
}

fn refused_write(rig: &mut Rig, offset: usize) -> Outcome {
    let before = rig.b().region(64);
    let downs = (rig.ends[0].downs(B, Lane::Data), rig.ends[1].downs(A, Lane::Data));
    posted(rig.a().write(B, offset, Bytes::from_static(&[0xee; 8])))?;
    rig.until("the data lane failed at both ends", |rig| {
        rig.ends[0].downs(B, Lane::Data) > downs.0 && rig.ends[1].downs(A, Lane::Data) > downs.1
    })?;
    check(rig.b().region(64) == before, || format!("a refused write at {offset} landed"))
}

fn regions(build: &mut Build<'_>) -> Outcome {
    let mut rig = Rig::connected(build, 2, 64)?;
    let twice = rig.a().transport.register(REGION, 64);
    check(twice == Err(RegionError::Exists(REGION)), || format!("{twice:?}"))?;
    let missing = RegionId(77);
    let results = (rig.a().transport.grant(missing, B), rig.a().transport.revoke(missing, B));
    let expected = Err(RegionError::Missing(missing));
    check(results == (expected.clone(), expected), || format!("{results:?}"))?;
    let absurd = rig.a().transport.register(missing, usize::MAX);
    check(matches!(absurd, Err(RegionError::Refused(..))), || format!("{absurd:?}"))
}
