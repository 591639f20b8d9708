//! `quorate member`: who is in the cluster, and changes of it, step by step until they are safe.
//!
//! Each step is one change that the leader accepts or refuses; the command waits for it and says how
//! far it is. All of it may be run again: what is done already is found and left as it is.

use crate::admin;
use crate::cli::{AskArgs, MemberCommand};
use crate::config::{Config, MemberConfig};
use crate::report::{MembersReport, PeerReport, Report};
use crate::status;
use anyhow::{Context, Result, bail};
use quorate::{Address, Change, NodeId, QuorumSizes};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The cluster is asked this often how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// How the leader refuses a change that changes nothing.
const ALREADY_SO: &str = "the members are so already";
/// A new voter may lack so many slots; the leader has its own limit, and the last word.
const CAUGHT_UP_SLOTS: u64 = 512;

/// Reads a change in the form of `QUORATE MEMBERS`: words of `voters=1,2,3`, `learners=4`,
/// `witnesses=5`, `copies=2`, `quorums=ELECT/CHOOSE`, `readmit=3`, and `address=4@PEER@CLIENT`, voters at least.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Change, String> {
    let mut change = Change::default();
    for word in text.split_whitespace() {
        let (name, value) =
            word.split_once('=').ok_or_else(|| format!("{word} is no name=value"))?;
        match name {
            "voters" => change.voters = nodes(value)?,
            "learners" => change.learners = nodes(value)?,
            "readmit" => change.readmit = nodes(value)?,
            "witnesses" => change.witnesses = nodes(value)?,
            "copies" => {
                let copies = value.parse().map_err(|_| format!("{value} is no number"))?;
                change.copies = Some(copies);
            }
            "quorums" => {
                let sizes = value.split_once('/').and_then(|(elect, choose)| {
                    let (phase_one, phase_two) = (elect.parse().ok()?, choose.parse().ok()?);
                    Some(QuorumSizes { phase_one, phase_two })
                });
                change.quorums = Some(sizes.ok_or_else(|| format!("{value} is no 3/2"))?);
            }
            "address" => {
                let parts: Vec<&str> = value.split('@').collect();
                let [node, peer, client] = parts[..] else {
                    return Err(format!("{value} is no NODE@PEER@CLIENT"));
                };
                let node = *nodes(node)?.first().ok_or("an address needs a node")?;
                let (peer, client) = (peer.to_owned(), client.to_owned());
                change.addresses.push(Address { node, peer, client });
            }
            _ => return Err(format!("{name} is not known here")),
        }
    }
    if change.voters.is_empty() { Err("nobody would vote".into()) } else { Ok(change) }
}

fn nodes(text: &str) -> Result<Vec<NodeId>, String> {
    let node = |word: &str| word.parse().map(NodeId).map_err(|_| format!("{word} is no number"));
    text.split(',').filter(|word| !word.is_empty()).map(node).collect()
}

/// What a step shall make of the members.
#[derive(Clone, Debug, Default)]
struct Target {
    members: MembersReport,
    readmit: Option<u16>,
    copies: Option<u16>,
    /// A member with another address than the configuration has.
    address: Option<(u16, String, String)>,
}

impl Target {
    fn text(&self) -> String {
        let list = |nodes: &[u16]| {
            let words: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            words.join(",")
        };
        let mut text = format!("voters={}", list(&self.members.voters));
        if !self.members.learners.is_empty() {
            text.push_str(&format!(" learners={}", list(&self.members.learners)));
        }
        if !self.members.witnesses.is_empty() {
            text.push_str(&format!(" witnesses={}", list(&self.members.witnesses)));
            // The leader takes what was so before, or its default, where nothing is said.
            if let Some(copies) = self.copies {
                text.push_str(&format!(" copies={copies}"));
            }
        }
        if let Some((elect, choose)) = self.members.quorums {
            text.push_str(&format!(" quorums={elect}/{choose}"));
        }
        if let Some(node) = self.readmit {
            text.push_str(&format!(" readmit={node}"));
        }
        if let Some((node, peer, client)) = &self.address {
            text.push_str(&format!(" address={node}@{peer}@{client}"));
        }
        text
    }
}

/// How far a replica is behind, for whoever waits for it: `lag` counts slots that it has not voted for under
/// the present leader, and whoever catches up votes at the end, whatever it knows before.
fn known_behind(report: &Report, peer: &PeerReport, lag: u64) -> u64 {
    lag.min(report.commit_slot.saturating_sub(peer.commit_slot))
}

/// The cluster, as it is asked from here.
struct Asked {
    addresses: Vec<String>,
    deadline: Instant,
    told: Instant,
}

impl Asked {
    fn new(args: &AskArgs) -> Result<Self> {
        Self::at(
            status::client_addresses(&args.addr, args.config.as_deref(), args.dir.as_deref())?,
            args,
        )
    }

    /// The members that `file` names are asked.
    fn of(file: &Path, args: &AskArgs) -> Result<Self> {
        Self::at(status::client_addresses(&[], Some(file), None)?, args)
    }

    fn at(addresses: Vec<String>, args: &AskArgs) -> Result<Self> {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(args.timeout);
        Ok(Self { addresses, deadline, told: now })
    }

    /// The report of the leader and its client address, as soon as there is one.
    fn leader(&mut self) -> Result<(String, Report, MembersReport)> {
        loop {
            let answers = status::ask(&self.addresses);
            for answer in &answers {
                let Ok(report) = &answer.report else { continue };
                let known = report.configuration.iter().flat_map(|known| &known.addresses);
                for client in known.map(|at| at.client.clone()).filter(|at| !at.is_empty()) {
                    if !self.addresses.contains(&client) {
                        self.addresses.push(client);
                    }
                }
            }
            let leads = answers.into_iter().find_map(|answer| {
                let report = answer.report.ok().filter(|report| report.role == "leader")?;
                let members = report.configuration.clone()?;
                Some((answer.address, report, members))
            });
            match leads {
                Some(leads) => return Ok(leads),
                None => self.wait(|| "no leader answers".into())?,
            }
        }
    }

    /// Until the leader's report was made after this call: one is renewed every 50 ms or so.
    fn renewed(&mut self) -> Result<()> {
        let state = |report: &Report| (report.process, report.counters.steps);
        let (_, first, _) = self.leader()?;
        loop {
            self.wait(|| "the leader's report is not renewed".into())?;
            let (_, report, _) = self.leader()?;
            if state(&report) != state(&first) {
                return Ok(());
            }
        }
    }

    fn wait(&mut self, what: impl FnOnce() -> String) -> Result<()> {
        let now = Instant::now();
        if now >= self.deadline {
            bail!("it took too long: {}. Run the command again to go on", what());
        }
        if now - self.told >= TELL_EVERY {
            self.told = now;
            println!("waiting: {}", what());
        }
        std::thread::sleep(LOOK_EVERY);
        Ok(())
    }

    /// Until the last change is settled.
    fn settled(&mut self) -> Result<(String, Report, MembersReport)> {
        loop {
            let (address, report, members) = self.leader()?;
            if members.settled {
                return Ok((address, report, members));
            }
            self.wait(|| format!("the change to configuration {} is under way", members.id))?;
        }
    }

    /// Until the leader accepted what `make` makes of the members, and it is settled. Nothing if
    /// `make` has nothing to change.
    fn change(&mut self, make: impl Fn(&MembersReport) -> Option<Target>) -> Result<MembersReport> {
        let mut asked_at = None;
        loop {
            let (address, _, members) = self.settled()?;
            if asked_at.is_some_and(|id| members.id > id) {
                return Ok(members);
            }
            let Some(target) = make(&members) else { return Ok(members) };
            match admin::change_members(&address, &target.text()) {
                Ok(None) => asked_at = Some(members.id),
                // A status is a moment old: what was just changed is seen in the next one.
                Ok(Some(refusal)) if refusal.contains(ALREADY_SO) => {
                    self.wait(|| "the status does not show the change yet".into())?;
                }
                Ok(Some(refusal)) => match refusal.strip_prefix("TRYAGAIN ") {
                    Some(why) => self.wait(|| why.to_owned())?,
                    None => bail!("refused: {}", refusal.trim_start_matches("REFUSED ")),
                },
                // It may have been proposed or not: looked at again.
                Err(error) => self.wait(|| format!("{address} does not answer: {error}"))?,
            }
        }
    }

    /// Until `node` has a link to the leader, and nearly all that is chosen.
    fn caught_up(&mut self, node: u16) -> Result<()> {
        loop {
            let (_, report, _) = self.leader()?;
            if report.node == node {
                return Ok(());
            }
            let peer = report.peers.iter().find(|peer| peer.node == node);
            // What it said before its lane ended may be of another process, which remembered more.
            let heard = peer.filter(|peer| peer.data_up && !peer.outdated);
            let behind = heard.and_then(|peer| peer.lag);
            if let Some(old) = heard.filter(|peer| peer.speaks < report.protocol) {
                bail!(
                    "replica {node} speaks the protocol up to version {}, and version {} is active: start it \
                     with a newer program",
                    old.speaks,
                    report.protocol
                );
            }
            match (peer, behind) {
                (_, Some(behind)) if behind <= CAUGHT_UP_SLOTS => return Ok(()),
                (Some(peer), Some(behind)) => {
                    let behind = known_behind(&report, peer, behind);
                    self.wait(|| format!("replica {node} is {behind} slots behind"))?;
                }
                (Some(peer), None) if !peer.last_error.is_empty() => self.wait(|| {
                    format!("the leader has no link to replica {node}: {}", peer.last_error)
                })?,
                _ => self.wait(|| format!("replica {node} is not connected; is it started?"))?,
            }
        }
    }

    fn add(&mut self, node: u16, peer: Option<&str>, client: Option<&str>) -> Result<()> {
        let (_, _, members) = self.settled()?;
        if !is_member(&members, node) {
            let peer = peer.with_context(|| {
                format!("replica {node} is no member: say where its peers reach it, as HOST:PORT")
            })?;
            let place = (node, peer.to_owned(), client.unwrap_or_default().to_owned());
            let members = self.change(|members| {
                let mut next = members.clone();
                next.learners.push(node);
                let address = Some(place.clone());
                (!is_member(members, node)).then_some(Target {
                    members: next,
                    address,
                    ..Target::default()
                })
            })?;
            println!("replica {node} is a learner, by configuration {}", members.id);
        }
        self.caught_up(node)?;
        println!("replica {node} has caught up");
        Ok(())
    }
}

fn is_member(members: &MembersReport, node: u16) -> bool {
    members.voters.contains(&node)
        || members.learners.contains(&node)
        || members.witnesses.contains(&node)
}

/// Runs the command.
///
/// # Errors
/// What stood in the way, and what to do.
pub fn run(command: &MemberCommand) -> Result<ExitCode> {
    match command {
        MemberCommand::List(ask) => {
            let (address, report, members) = Asked::new(ask)?.leader()?;
            print!("{}", table(&address, &report, &members));
        }
        MemberCommand::Add { node, peer, client, witness: true, copies, ask } => {
            let mut asked = Asked::new(ask)?;
            asked.add(*node, Some(peer), client.as_deref())?;
            let members = asked.change(|members| witnessing(members, *node, *copies))?;
            println!("replica {node} votes as a witness, by configuration {}", members.id);
            println!("{}", copies_told(&members));
        }
        MemberCommand::Copies { copies, ask } => {
            let members = Asked::new(ask)?.change(|members| {
                let (next, copies) = (members.clone(), Some(*copies));
                let target = Target { members: next, copies, ..Target::default() };
                (members.copies != *copies.as_ref().unwrap_or(&0)).then_some(target)
            })?;
            println!("{}, by configuration {}", copies_told(&members), members.id);
        }
        MemberCommand::Add { node, peer, client, ask, .. } => {
            Asked::new(ask)?.add(*node, Some(peer), client.as_deref())?;
            println!("it receives the log and does not vote: `quorate member promote {node}`");
        }
        MemberCommand::Promote { node, ask } => {
            let mut asked = Asked::new(ask)?;
            asked.add(*node, None, None)?;
            let members = asked.change(|members| promoted(members, None, *node))?;
            println!("replica {node} votes, by configuration {}", members.id);
        }
        MemberCommand::Remove { node, ask } => {
            let members = Asked::new(ask)?.change(|members| {
                let mut next = members.clone();
                next.voters.retain(|voter| voter != node);
                next.learners.retain(|learner| learner != node);
                next.witnesses.retain(|witness| witness != node);
                (next != *members).then_some(Target { members: next, ..Target::default() })
            })?;
            safe(&members, *node);
        }
        MemberCommand::Replace { old, new, peer, client, ask } => {
            let mut asked = Asked::new(ask)?;
            if old == new {
                readmit(&mut asked, *new)?;
                return Ok(ExitCode::SUCCESS);
            }
            asked.add(*new, peer.as_deref(), client.as_deref())?;
            let members = asked.change(|members| promoted(members, Some(*old), *new))?;
            println!("replica {new} votes in the place of {old}");
            safe(&members, *old);
        }
        MemberCommand::Ensure { file, ask } => ensure(file, ask)?,
        MemberCommand::Move { node, peer, client, ask } => {
            let place = (*node, peer.clone(), client.clone().unwrap_or_default());
            let members = Asked::new(ask)?.change(|members| moved(members, &place))?;
            println!("all look for replica {node} at {peer}, by configuration {}", members.id);
        }
        MemberCommand::Quorums { elect, choose, ask } => {
            let quorums = ((*elect, *choose) != (0, 0)).then_some((*elect, *choose));
            let members = Asked::new(ask)?.change(|members| {
                let next = MembersReport { quorums, ..members.clone() };
                (next != *members).then_some(Target { members: next, ..Target::default() })
            })?;
            println!("in force by configuration {}", members.id);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is missing of the members that `file` names is added, one after the other.
fn ensure(file: &Path, ask: &AskArgs) -> Result<()> {
    let wanted = Config::read(file)?.members;
    let named = !ask.addr.is_empty() || ask.config.is_some() || ask.dir.is_some();
    let mut asked = if named { Asked::new(ask)? } else { Asked::of(file, ask)? };
    let mut changed = 0;
    for MemberConfig { node, peer, client } in &wanted {
        let (_, _, members) = asked.settled()?;
        if members.witnesses.contains(node) {
            continue;
        }
        if !members.voters.contains(node) {
            asked.add(*node, Some(peer), Some(client))?;
            let members = asked.change(|members| promoted(members, None, *node))?;
            println!("replica {node} votes, by configuration {}", members.id);
            changed += 1;
            continue;
        }
        // Without an address in the configuration each looks where its own file says.
        let stands = members.addresses.iter().find(|at| at.node == *node);
        if stands.is_some_and(|at| (&at.peer, &at.client) != (peer, client)) {
            let place = (*node, peer.clone(), client.clone());
            let members = asked.change(|members| moved(members, &place))?;
            println!("all look for replica {node} at {peer}, by configuration {}", members.id);
            changed += 1;
        }
    }
    let (_, _, members) = asked.settled()?;
    let is_wanted = |node: &&u16| !wanted.iter().any(|member| member.node == **node);
    for node in members.voters.iter().chain(&members.learners).filter(is_wanted) {
        println!("replica {node} is a member that {} does not name: it stays", file.display());
    }
    if changed == 0 {
        println!("nothing to do: all {} members are there", wanted.len());
    }
    Ok(())
}

/// A member at another place, if it is not there already.
fn moved(members: &MembersReport, place: &(u16, String, String)) -> Option<Target> {
    let stands = |at: &crate::report::AddressReport| {
        (at.node, &at.peer, &at.client) == (place.0, &place.1, &place.2)
    };
    let address = Some(place.clone());
    let target = Target { members: members.clone(), address, ..Target::default() };
    (!members.addresses.iter().any(stands)).then_some(target)
}

/// `new` as a voter, `old` no member.
fn promoted(members: &MembersReport, old: Option<u16>, new: u16) -> Option<Target> {
    let mut next = members.clone();
    // A witness comes in the place of a witness.
    let list = match old.is_some_and(|old| members.witnesses.contains(&old)) {
        true => &mut next.witnesses,
        false => &mut next.voters,
    };
    list.retain(|voter| Some(*voter) != old && *voter != new);
    list.push(new);
    list.sort_unstable();
    next.learners.retain(|learner| Some(*learner) != old && *learner != new);
    (next != *members).then_some(Target { members: next, ..Target::default() })
}

/// `new` as a witness.
fn witnessing(members: &MembersReport, new: u16, copies: Option<u16>) -> Option<Target> {
    let mut next = members.clone();
    next.learners.retain(|learner| *learner != new);
    if !next.witnesses.contains(&new) {
        next.witnesses.push(new);
        next.witnesses.sort_unstable();
    }
    let news = next != *members || copies.is_some_and(|copies| copies != members.copies);
    news.then_some(Target { members: next, copies, ..Target::default() })
}

fn copies_told(members: &MembersReport) -> String {
    match members.copies {
        1 => "what is written counts when one voter and enough others have voted for it: a voter that is \
              the only one left may hold the only copy"
            .to_owned(),
        copies => format!("what is written counts when {copies} voters hold it"),
    }
}

/// A replica with a new disk votes again.
fn readmit(asked: &mut Asked, node: u16) -> Result<()> {
    // It may have been started a moment ago.
    asked.renewed()?;
    let (members, votes) = loop {
        asked.caught_up(node)?;
        let (_, report, members) = asked.settled()?;
        let peer = report.peers.iter().find(|peer| peer.node == node && !peer.outdated);
        if let Some(votes) = peer.map(|peer| peer.votes).or((report.node == node).then_some(true)) {
            break (members, votes);
        }
    };
    if votes {
        println!("replica {node} votes: nothing to do");
        return Ok(());
    }
    if !members.voters.contains(&node) && !members.witnesses.contains(&node) {
        bail!("replica {node} is no voter: `quorate member promote {node}`");
    }
    let before = members.id;
    let members = asked.change(|members| {
        let readmit = Some(node);
        let target = Target { members: members.clone(), readmit, ..Target::default() };
        (members.id == before).then_some(target)
    })?;
    println!("replica {node} votes with the disk that it has now, by configuration {}", members.id);
    Ok(())
}

fn safe(members: &MembersReport, node: u16) {
    println!(
        "configuration {} is settled. Safe now: replica {node} is needed by nobody, stop it and keep or \
         delete its data as you like",
        members.id
    );
}

fn table(address: &str, report: &Report, members: &MembersReport) -> String {
    let state = if members.settled { "settled" } else { "under way" };
    let mut text =
        format!("configuration {} ({state}), as the leader at {address} has it\n", members.id);
    if let Some((elect, choose)) = members.quorums {
        text.push_str(&format!("{elect} promises elect, {choose} votes choose\n"));
    }
    if !members.witnesses.is_empty() {
        text.push_str(&format!("{}\n", copies_told(members)));
    }
    text.push_str("node  kind     peer address           client address         behind\n");
    let kinds = [
        (&members.voters, "voter"),
        (&members.witnesses, "witness"),
        (&members.learners, "learner"),
    ];
    for (nodes, kind) in kinds {
        for node in nodes {
            let place = members.addresses.iter().find(|at| at.node == *node).cloned();
            let place = place.unwrap_or_default();
            let peer = report.peers.iter().find(|peer| peer.node == *node);
            let behind = match peer {
                _ if report.node == *node => "leads".to_owned(),
                Some(peer) if !peer.data_up => "no link".to_owned(),
                Some(peer) => peer.lag.map_or_else(
                    || "-".to_owned(),
                    |lag| known_behind(report, peer, lag).to_string(),
                ),
                None => "-".to_owned(),
            };
            let unsure =
                |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            let (peer, client) = (unsure(&place.peer), unsure(&place.client));
            text.push_str(&format!("{node:<5} {kind:<8} {peer:<22} {client:<22} {behind}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_as_it_is_written() {
        let members = MembersReport {
            voters: vec![1, 2, 4],
            learners: vec![5],
            witnesses: vec![6],
            copies: 2,
            quorums: Some((3, 1)),
            ..MembersReport::default()
        };
        let address = Some((4, "a:1".to_owned(), "a:2".to_owned()));
        let readmit = Some(2);
        let target = Target { members, readmit, address, copies: Some(1) };
        let change = parse(&target.text()).unwrap();
        assert_eq!((&change.witnesses[..], change.copies), (&[NodeId(6)][..], Some(1)));
        assert_eq!(change.voters, [NodeId(1), NodeId(2), NodeId(4)]);
        assert_eq!((change.learners, change.readmit), (vec![NodeId(5)], vec![NodeId(2)]));
        assert_eq!(change.quorums, Some(QuorumSizes { phase_one: 3, phase_two: 1 }));
        assert_eq!((&*change.addresses[0].peer, &*change.addresses[0].client), ("a:1", "a:2"));
        for wrong in ["", "voters=", "voters=x", "voters=1 quorums=2", "voters=1 size=3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_replacement_keeps_the_others() {
        let members =
            MembersReport { voters: vec![1, 2, 3], learners: vec![4], ..MembersReport::default() };
        let next = promoted(&members, Some(2), 4).unwrap().members;
        assert_eq!((&next.voters[..], next.learners.len()), (&[1, 3, 4][..], 0));
        assert!(promoted(&next, Some(2), 4).is_none(), "it is done already");
    }
}
