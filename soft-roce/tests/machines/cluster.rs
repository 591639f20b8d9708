//! A cluster of three replicas on three hosts, or on one.

use crate::shared::client::Client;
use crate::{PATIENCE, REPLICAS, client_port};
use anyhow::{Context, Result};
use quorate_server::admin;
use quorate_server::report::Report;
use quorate_soft_roce::{Host, Lab, Program, Running};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

/// Lines of a replica's log that a failed test shows.
const TOLD_LINES: usize = 60;

/// Three replicas: one on each host of a lab, or all on its only one. Dropping it ends them; their
/// data stays until the lab ends.
pub(crate) struct Cluster<'a> {
    pub(crate) lab: &'a Lab,
    name: String,
    pub(crate) transport: &'static str,
    pub(crate) durability: &'static str,
    pub(crate) followers: &'static str,
    running: BTreeMap<u16, Running>,
}

impl<'a> Cluster<'a> {
    /// Runs `test` on a new cluster; one that fails leaves behind what its replicas say.
    pub(crate) fn with(
        lab: &'a Lab,
        transport: &'static str,
        durability: &'static str,
        test: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        Self::over(lab, transport, durability, "active", test)
    }

    /// The same over RDMA, with logs in memory, and followers that are `active` or `passive`.
    pub(crate) fn in_memory(
        lab: &'a Lab,
        followers: &'static str,
        test: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        Self::over(lab, "rdma", "memory", followers, test)
    }

    fn over(
        lab: &'a Lab,
        transport: &'static str,
        durability: &'static str,
        followers: &'static str,
        test: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{transport}-{durability}-{followers}-{number}");
        let running = BTreeMap::new();
        let mut cluster = Self { lab, name, transport, durability, followers, running };
        let result = catch_unwind(AssertUnwindSafe(|| {
            cluster.start()?;
            test(&mut cluster)
        }));
        if !matches!(result, Ok(Ok(()))) {
            cluster.tell();
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn start(&mut self) -> Result<()> {
        for number in 1..=REPLICAS {
            let file = self.lab.share().join(self.file(number, "toml"));
            std::fs::write(file, self.config(number, number))?;
            self.start_replica(number)?;
        }
        self.leader();
        Ok(())
    }

    /// Where a replica runs.
    pub(crate) fn host(&self, number: u16) -> &'a Host {
        self.lab.host(if self.lab.hosts().len() == 1 { 1 } else { number })
    }

    /// Where its log is, or would be.
    pub(crate) fn directory(&self, number: u16) -> String {
        let place = if self.durability == "dax" { "pmem" } else { "disk" };
        format!("/quorate/{place}/{}-{number}", self.name)
    }

    fn file(&self, number: u16, extension: &str) -> String {
        format!("{}-{number}.{extension}", self.name)
    }

    /// The configuration of replica `node` in the place of the founder `number`: it joins, unless it is
    /// that founder. Timers are long: machines pause when this one is busy. Clients come over an interface
    /// of their own.
    fn config(&self, number: u16, node: u16) -> String {
        let Self { transport, durability, followers, .. } = self;
        let directory = self.directory(node);
        let port = client_port(number);
        let join = node != number;
        let mut text = format!(
            "[replica]\n\
             node = {node}\n\
             join = {join}\n\
             directory = \"{directory}\"\n\
             durability = \"{durability}\"\n\
             transport = \"{transport}\"\n\
             followers = \"{followers}\"\n\
             segment_bytes = 16777216\n\
             [client]\n\
             listen = \"0.0.0.0:{port}\"\n\
             value_bytes_max = 1048576\n\
             threads = 1\n\
             [timers]\n\
             heartbeat_ms = 100\n\
             election_timeout_min_ms = 1000\n\
             election_timeout_max_ms = 2000\n\
             [rdma]\n\
             stall_ms = 4000\n\
             [limits]\n\
             ring_bytes = 4194304\n"
        );
        for founder in 1..=REPLICAS {
            let member = if founder == number { node } else { founder };
            let (peer, client) = self.inside(founder, member);
            text += &format!(
                "[[member]]\n\
                 node = {member}\n\
                 peer = \"{peer}\"\n\
                 client = \"{client}\"\n"
            );
        }
        text
    }

    /// Where the others reach replica `node` in the place of the founder `number`: as a peer, as clients.
    fn inside(&self, number: u16, node: u16) -> (String, String) {
        let address = self.host(number).address();
        (format!("{address}:{}", 7100 + node), format!("{address}:{}", client_port(number)))
    }

    /// Starts replica `node` where the founder `number` was, which does not run any more, and has it
    /// replace that one as a member.
    pub(crate) fn replace(&mut self, number: u16, node: u16) -> Result<()> {
        let file = self.lab.share().join(self.file(number, "toml"));
        std::fs::write(file, self.config(number, node))?;
        self.start_replica(number)?;
        let (peer, client) = self.inside(number, node);
        self.member(number, &["replace", &number.to_string(), &node.to_string(), &peer, &client])
    }

    pub(crate) fn start_replica(&mut self, number: u16) -> Result<()> {
        let line = format!(
            "exec '{}' serve --config /quorate/share/{} >>/quorate/share/{} 2>&1",
            crate::built("quorate")?.display(),
            self.file(number, "toml"),
            self.file(number, "log"),
        );
        self.running.insert(number, self.host(number).spawn(&Program::shell(line))?);
        Ok(())
    }

    pub(crate) fn address(&self, number: u16) -> String {
        self.host(number).forwarded(client_port(number)).to_string()
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        (1..=REPLICAS).map(|number| self.address(number)).collect()
    }

    pub(crate) fn report(&self, number: u16) -> Option<Report> {
        admin::status(&self.address(number)).ok()
    }

    pub(crate) fn wait<T>(&self, what: &str, poll: impl FnMut() -> Option<T>) -> T {
        crate::wait_for(what, PATIENCE, poll)
    }

    /// Everything that a failure may need to be understood.
    fn tell(&self) {
        for number in 1..=REPLICAS {
            eprintln!("replica {number}: {:#?}", self.report(number));
            let log = self.lab.share().join(self.file(number, "log"));
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let end = &lines[lines.len().saturating_sub(TOLD_LINES)..];
            eprintln!("its log, {} of {} lines:\n{}", end.len(), lines.len(), end.join("\n"));
        }
    }

    /// Who leads, with a majority behind it: it has just answered a write.
    pub(crate) fn leader(&self) -> u16 {
        self.wait("a leader", || {
            let leader = (1..=REPLICAS).find(|number| {
                self.report(*number).is_some_and(|report| report.role == "leader")
            })?;
            let mut client = Client::new(&self.address(leader));
            client.words("SET leader known").is_ok().then_some(leader)
        })
    }

    pub(crate) fn follower(&self) -> u16 {
        let leader = self.leader();
        (1..=REPLICAS).find(|number| *number != leader).unwrap_or(1)
    }

    /// Waits until all replicas applied the same and agree on what it was.
    pub(crate) fn converged(&self) {
        self.wait("agreement of all replicas", || {
            let reports: Option<Vec<_>> =
                (1..=REPLICAS).map(|number| self.report(number)).collect();
            let reports = reports?;
            let first = &reports[0];
            let equal = |report: &Report| report.applied_slot == first.applied_slot;
            reports.iter().all(equal).then(|| {
                assert!(reports.iter().all(|report| report.digest == first.digest), "{reports:?}");
            })
        });
    }

    /// How many links of all replicas go by RDMA, and how many by TCP, as status says.
    pub(crate) fn carriers(&self) -> Option<(usize, usize)> {
        let reports: Option<Vec<_>> = (1..=REPLICAS).map(|number| self.report(number)).collect();
        let peers: Vec<_> = reports?.into_iter().flat_map(|report| report.peers).collect();
        let up = |carrier: &str| {
            peers.iter().filter(|peer| peer.data_up && peer.carrier == carrier).count()
        };
        Some((up("rdma"), up("tcp")))
    }

    /// Waits until that is so.
    pub(crate) fn all_by(&self, wanted: (usize, usize)) {
        self.wait(&format!("links by RDMA and TCP: {wanted:?}"), || {
            self.carriers().filter(|found| *found == wanted)
        });
    }

    /// What changes when a lane or a leadership ends.
    pub(crate) fn lives(&self) -> Result<Vec<(u64, u64)>> {
        let life = |number| {
            let report =
                self.report(number).with_context(|| format!("replica {number} is silent"))?;
            let reconnects = report.peers.iter().map(|peer| peer.reconnects).sum();
            Ok((report.counters.leader_changes, reconnects))
        };
        (1..=REPLICAS).map(life).collect()
    }

    /// Cuts the power of a host.
    pub(crate) fn kill(&mut self, number: u16) {
        self.lab.host(number).kill();
        self.running.remove(&number);
    }

    /// Kills the process of a replica, and nothing else.
    pub(crate) fn end_replica(&mut self, number: u16) {
        // Its handle kills it when it goes.
        self.running.remove(&number);
        self.wait("end of the replica", || self.report(number).is_none().then_some(()));
    }

    /// Makes a replica that lost its memory a voter again, when it has caught up.
    pub(crate) fn readmit(&self, number: u16) -> Result<()> {
        let node = number.to_string();
        self.member(number, &["replace", &node, &node])?;
        self.wait("the leader's word that it votes", || {
            let peers = self.report(self.leader())?.peers;
            peers.iter().any(|peer| peer.node == number && peer.votes).then_some(())
        });
        Ok(())
    }

    /// Runs `quorate member` to its end, asking all but one replica.
    fn member(&self, all_but: u16, arguments: &[&str]) -> Result<()> {
        let others = (1..=REPLICAS).filter(|other| *other != all_but);
        let others = others.map(|other| self.address(other)).collect::<Vec<_>>().join(",");
        let mut command = std::process::Command::new(crate::built("quorate")?);
        command.arg("member").args(arguments).args(["--timeout", "200", "--addr", &others]);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "quorate member {arguments:?}: {said}");
        Ok(())
    }

    /// Gives it power again, and starts its replica.
    pub(crate) fn revive(&mut self, number: u16) -> Result<()> {
        if let Err(error) = self.lab.restart(number) {
            // That says nothing of the product.
            println!("host {number} did not come up, once more: {error:#}");
            self.lab.restart(number)?;
        }
        self.start_replica(number)?;
        self.wait("the restarted replica", || self.report(number));
        Ok(())
    }
}
