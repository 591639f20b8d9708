//! Where tests and benchmarks of the core alone begin.

/// Three voters of the core in the crate `$core`, which have nothing in their logs: a list of its `Paxos`.
/// The time-out of the first one is the first to end.
///
/// A macro, since the core is compiled more than once, and each has types of its own.
#[macro_export]
macro_rules! three_cores {
    ($core:ident) => {{
        use $core::{
            Ballot, Configuration, Configurations, Incarnation, Member, Nanos, NodeId, Paxos,
            Restored, Settings, Slot,
        };
        let member = |node| Member { node: NodeId(node), incarnation: Incarnation(node.into()) };
        let founding = Configuration::of_voters(1, (1..=3).map(member).collect());
        let start = |node: u16| {
            let mut settings = Settings::new(NodeId(node), Incarnation(node.into()));
            settings.election_timeout_min = Nanos::from_millis(200 * u64::from(node));
            settings.election_timeout_max = Nanos::from_millis(200 * u64::from(node) + 10);
            let restored = Restored {
                promised: Ballot::ZERO,
                commit_slot: Slot::ZERO,
                log_first: Slot(1),
                accepted: Vec::new(),
                configurations: Configurations::new(founding.clone()),
                remembers: true,
            };
            Paxos::new(settings, restored, Nanos(0))
        };
        (1..=3).map(start).collect::<Vec<Paxos>>()
    }};
}
