//! A run of the checker, and what it prints.

use crate::bounds::Bounds;
use crate::cluster::{Cluster, State};
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Within which bounds.
    pub bounds: Bounds,
    /// Different states.
    pub states: usize,
    /// Events that were tried.
    pub events: usize,
    /// The longest run of events.
    pub depth: usize,
    /// Nothing was left out.
    pub exhaustive: bool,
    /// How long it took.
    pub took: Duration,
    /// What does not hold, each with the events that led there.
    pub broken: Vec<(String, Vec<String>)>,
    /// What should happen somewhere, and does not.
    pub absent: Vec<String>,
}

/// Looks at every state within `bounds`, with so many threads; stops at the first thing that is wrong, or
/// after `limit`.
#[must_use]
pub fn run(bounds: &Bounds, threads: usize, limit: Option<Duration>) -> Outcome {
    let model = Cluster { bounds: bounds.clone() };
    let start = Instant::now();
    let mut builder = model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures);
    if let Some(limit) = limit {
        builder = builder.timeout(limit);
    }
    let checker = builder.spawn_dfs().join();
    let took = start.elapsed();
    let (mut broken, mut absent) = (Vec::new(), Vec::new());
    for property in (Cluster { bounds: bounds.clone() }).properties() {
        let found = checker.discovery(property.name);
        match property.expectation {
            stateright::Expectation::Always => {
                if let Some(path) = found {
                    let last = format!("{:?}", path.last_state());
                    let events = path.into_actions().into_iter();
                    let mut events: Vec<String> =
                        events.map(|event| format!("{event:?}")).collect();
                    events.push(last);
                    broken.push((property.name.to_owned(), events));
                }
            }
            _ if found.is_none() => absent.push(property.name.to_owned()),
            _ => {}
        }
    }
    Outcome {
        bounds: bounds.clone(),
        states: checker.unique_state_count(),
        events: checker.state_count(),
        depth: checker.max_depth(),
        exhaustive: broken.is_empty() && limit.is_none_or(|limit| took < limit),
        took,
        broken,
        absent,
    }
}

/// Looks for two schedules within `bounds` that lead to what counts as one state and go on to different ones:
/// what comes of the second would never be looked at. Returns the events of both, and what differs.
#[must_use]
pub fn unlike(bounds: &Bounds) -> Option<String> {
    let model = Cluster { bounds: bounds.clone() };
    let mut seen: BTreeMap<u64, (Trail, BTreeSet<(String, u64)>)> = BTreeMap::new();
    let first = model.init_states().into_iter().map(|state| (state, Trail::default()));
    let mut open: Vec<(State, Trail)> = first.collect();
    while let Some((state, trail)) = open.pop() {
        let mut actions = Vec::new();
        model.actions(&state, &mut actions);
        let next: Vec<(String, State)> = actions
            .into_iter()
            .filter_map(|action| Some((format!("{action:?}"), model.next_state(&state, action)?)))
            .filter(|(_, next)| model.within_boundary(next))
            .collect();
        let leads = next.iter().map(|(action, next)| (action.clone(), next.digest())).collect();
        let digest = state.digest();
        match seen.get(&digest) {
            Some((before, held)) if *held != leads => {
                let differ: Vec<_> = held.symmetric_difference(&leads).collect();
                return Some(format!("{before}\n\n{trail}\n\n{differ:#?}"));
            }
            Some(_) => {}
            None => {
                seen.insert(digest, (trail.clone(), leads));
                open.extend(next.into_iter().map(|(event, next)| (next, trail.then(event))));
            }
        }
    }
    None
}

/// The events that led to a state.
#[derive(Clone, Default)]
struct Trail(Option<Rc<(Trail, String)>>);

impl Trail {
    fn then(&self, event: String) -> Self {
        Self(Some(Rc::new((self.clone(), event))))
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last) = &self.0 else { return Ok(()) };
        write!(f, "{}\n    {}", last.0, last.1)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.bounds)?;
        let how = if self.exhaustive { "exhaustive" } else { "not exhaustive" };
        write!(
            f,
            "  {how}: {} states, {} events, {} deep, {:.1} s",
            self.states,
            self.events,
            self.depth,
            self.took.as_secs_f64()
        )?;
        for what in &self.absent {
            write!(f, "\n  never: {what}")?;
        }
        for (what, events) in &self.broken {
            write!(f, "\n  broken: {what}")?;
            for event in events {
                write!(f, "\n    {}", event.replace('\n', "\n    "))?;
            }
        }
        Ok(())
    }
}
