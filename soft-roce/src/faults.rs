//! `quorate-soft-roce run --fault 'SECONDS VERB …'`: what happens to hosts and network while a command runs.

use anyhow::{Result, bail};
use quorate_soft_roce::{Fault, Lab, Traffic};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A fault and when it happens, after the start of the command.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Planned {
    at: Duration,
    text: String,
    act: Act,
}

/// What happens.
#[derive(Clone, PartialEq, Debug)]
enum Act {
    Kill(u16),
    Restart(u16),
    Pause(u16),
    Resume(u16),
    Interface(u16, bool),
    Device(u16, bool),
    /// Nothing, or the arguments of tc-netem(8).
    Netem(u16, Option<String>),
    /// From a host, to a host; whether RDMA alone.
    Cut(u16, u16, bool),
    Loss(u16, u16, f64),
    FailPair(u16, u16),
    Heal,
}

/// What may be asked for, for the error.
pub(crate) const VERBS: &str = "kill H, restart H, pause H, resume H, interface-down H, interface-up H, \
     device-down H, device-up H, netem H ARGUMENTS (none ends it), cut FROM TO, cut-rdma FROM TO, \
     loss FROM TO SHARE, fail-pair FROM TO, heal";

/// Reads `SECONDS VERB ARGUMENTS`.
pub(crate) fn planned(text: &str) -> Result<Planned, String> {
    let wrong = || format!("{text:?} is no fault: SECONDS and one of {VERBS}");
    let mut words = text.split_whitespace();
    let at = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
    let at = Duration::try_from_secs_f64(at).map_err(|_| wrong())?;
    let verb = words.next().ok_or_else(wrong)?;
    let mut host = || words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong);
    let act = match verb {
        "kill" => Act::Kill(host()?),
        "restart" => Act::Restart(host()?),
        "pause" => Act::Pause(host()?),
        "resume" => Act::Resume(host()?),
        "interface-down" => Act::Interface(host()?, false),
        "interface-up" => Act::Interface(host()?, true),
        "device-down" => Act::Device(host()?, false),
        "device-up" => Act::Device(host()?, true),
        "netem" => {
            let host = host()?;
            let rest = words.by_ref().collect::<Vec<_>>().join(" ");
            Act::Netem(host, Some(rest).filter(|rest| !rest.is_empty()))
        }
        "cut" => Act::Cut(host()?, host()?, false),
        "cut-rdma" => Act::Cut(host()?, host()?, true),
        "loss" => {
            let (from, to) = (host()?, host()?);
            let share = words.next().and_then(|word| word.parse().ok());
            let share = share.filter(|share| (0.0..=1.0).contains(share)).ok_or_else(wrong)?;
            Act::Loss(from, to, share)
        }
        "fail-pair" => Act::FailPair(host()?, host()?),
        "heal" => Act::Heal,
        _ => return Err(wrong()),
    };
    if words.next().is_some() {
        return Err(wrong());
    }
    Ok(Planned { at, text: text.to_owned(), act })
}

impl Planned {
    fn hosts(&self) -> Vec<u16> {
        match &self.act {
            Act::Kill(host)
            | Act::Restart(host)
            | Act::Pause(host)
            | Act::Resume(host)
            | Act::Interface(host, _)
            | Act::Device(host, _)
            | Act::Netem(host, _) => vec![*host],
            Act::Cut(from, to, _) | Act::Loss(from, to, _) | Act::FailPair(from, to) => {
                vec![*from, *to]
            }
            Act::Heal => Vec::new(),
        }
    }
}

/// The faults that are still to come.
#[derive(Debug)]
pub(crate) struct Plan {
    coming: VecDeque<Planned>,
    begin: Instant,
}

/// What became of a host that the command runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Power {
    Cut(u16),
    Back(u16),
}

impl Plan {
    /// Begins now.
    pub(crate) fn new(faults: &[Planned], hosts: u16) -> Result<Self> {
        let mut sorted = faults.to_vec();
        sorted.sort_by_key(|planned| planned.at);
        for planned in &sorted {
            if planned.hosts().iter().any(|host| *host == 0 || *host > hosts) {
                bail!("{:?}: there are hosts 1 to {hosts}", planned.text);
            }
            let network =
                matches!(planned.act, Act::Cut(..) | Act::Loss(..) | Act::FailPair(..) | Act::Heal);
            if network && hosts == 1 {
                bail!("{:?}: one host has no network: --hosts 2 and more", planned.text);
            }
        }
        Ok(Self { coming: sorted.into(), begin: Instant::now() })
    }

    /// Lets the next fault happen that is due.
    pub(crate) fn act(&mut self, lab: &Lab, say: impl Fn(&str)) -> Result<Option<Power>> {
        let due = |planned: &Planned| planned.at <= self.begin.elapsed();
        if !self.coming.front().is_some_and(due) {
            return Ok(None);
        }
        let Some(planned) = self.coming.pop_front() else { return Ok(None) };
        say(&planned.text);
        let mut power = None;
        match planned.act {
            Act::Kill(host) => {
                lab.host(host).kill();
                power = Some(Power::Cut(host));
            }
            Act::Restart(host) => {
                lab.restart(host)?;
                power = Some(Power::Back(host));
            }
            Act::Pause(host) => lab.host(host).pause()?,
            Act::Resume(host) => lab.host(host).resume()?,
            Act::Interface(host, up) => lab.host(host).interface(up)?,
            Act::Device(host, present) => lab.host(host).device(present)?,
            Act::Netem(host, arguments) => lab.host(host).netem(arguments.as_deref())?,
            Act::Cut(from, to, rdma) => {
                let traffic = if rdma { Traffic::Rdma } else { Traffic::All };
                lab.network().set(from, to, traffic, Fault { cut: true, ..Fault::default() });
            }
            Act::Loss(from, to, loss) => {
                let fault = Fault { loss, ..Fault::default() };
                lab.network().set(from, to, Traffic::All, fault);
            }
            Act::FailPair(from, to) => lab.network().fail_pair(from, to),
            Act::Heal => lab.network().heal(),
        }
        Ok(power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        let act = |text: &str| planned(text).unwrap().act;
        assert_eq!(planned("2.5 heal").unwrap().at, Duration::from_millis(2500));
        assert_eq!(act("0 interface-down 3"), Act::Interface(3, false));
        assert_eq!(act("1 cut-rdma 1 2"), Act::Cut(1, 2, true));
        assert_eq!(act("1 loss 2 1 0.25"), Act::Loss(2, 1, 0.25));
        assert_eq!(
            act("1 netem 1 delay 5ms loss 1%"),
            Act::Netem(1, Some("delay 5ms loss 1%".into()))
        );
        assert_eq!(act("9 netem 1"), Act::Netem(1, None));
        for wrong in
            ["", "1", "kill 1", "1 kil 1", "1 kill", "1 kill 1 2", "-1 heal", "1 loss 1 2 3"]
        {
            let error = planned(wrong).unwrap_err();
            assert!(error.contains("fail-pair FROM TO"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_fault_of_a_host_that_is_not_there_is_refused_before_the_command_starts() {
        let plan = |text: &str, hosts| Plan::new(&[planned(text).unwrap()], hosts);
        assert!(plan("1 kill 3", 3).is_ok());
        assert!(plan("1 kill 4", 3).unwrap_err().to_string().contains("hosts 1 to 3"));
        assert!(plan("1 heal", 1).unwrap_err().to_string().contains("--hosts 2"));
        let mut two =
            Plan::new(&[planned("9 heal").unwrap(), planned("3 kill 1").unwrap()], 2).unwrap();
        assert_eq!(two.coming.pop_front().unwrap().act, Act::Kill(1), "in the order of time");
    }
}
