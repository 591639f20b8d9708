//! The search of one partition.
//!
//! A *configuration* is the set of operations linearized so far and the state that they lead to.
//! From one, the *wall* is the earliest return whose operation is not linearized; only operations
//! called before the wall may come next. When everything that returned is linearized, the
//! partition is linearizable; when the operation at the wall can come neither next nor after
//! others, the configuration is dead and the last step is taken back.
//!
//! Branches that are skipped, and why nothing is lost:
//!
//! - *Seen before.* A configuration with the same answered operations and the same state, reached
//!   with the same unknown operations used up or fewer of them, was or is being explored. Whatever
//!   completes this one completes that one.
//! - *A read that fits* is taken at once, without alternatives: any order that places it later
//!   also works with it moved here. (Not so a write of the value that is there already: placed
//!   later it may change the state. The comparison with the definition in `tests/` found that.)
//! - *An unknown operation that would change nothing* is left: never is as good.
//! - *Twins*: of unknown operations that ask the same, the one called first is used first.
//!
//! Unknown operations are tried last, so one that never happened costs nothing until the search
//! is in trouble.

use std::collections::{HashMap, HashSet};
use std::mem;

use crate::fingerprint::{self, AsIs};
use crate::history::Operation;
use crate::model::{Model, OperationOf};

/// Configurations that the search of one partition remembers before it gives up: at 16 bytes and
/// the table's slack, about 256 MiB at the worst.
pub const DEFAULT_CONFIGURATIONS: usize = 1 << 23;

/// Heap bytes of states on the way back (one for each step taken) before the search gives up.
pub const DEFAULT_STATE_BYTES: usize = 1 << 30;

/// What the search of one partition may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Configurations remembered.
    pub configurations: usize,
    /// Bytes of states kept, by [`Model::heap_bytes`].
    pub state_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { configurations: DEFAULT_CONFIGURATIONS, state_bytes: DEFAULT_STATE_BYTES }
    }
}

/// How a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<S> {
    /// All that returned was linearized; the state then.
    Linearized(S),
    /// No order exists. The operation (by index) whose return no configuration got past.
    Stuck(usize),
    /// A limit ran out; its name.
    GaveUp(&'static str),
}

/// Searches `operations` (in order of call) of one partition from `initial`.
///
/// With `avoid`, an end in that state does not count: `Stuck` then means that no other end exists.
pub(crate) fn search<M: Model>(
    model: &M,
    initial: M::State,
    operations: &[OperationOf<M>],
    avoid: Option<&M::State>,
    limits: &Limits,
) -> Outcome<M::State> {
    Search::new(model, initial, operations, limits).run(avoid)
}

/// Index of a node in the list of events; 0 is the head, times grow with the index.
type Node = u32;

const HEAD: Node = 0;

struct Search<'a, M: Model> {
    model: &'a M,
    operations: &'a [OperationOf<M>],
    limits: &'a Limits,
    events: Events,
    unknown: Unknown,
    /// Which operations are reads, by [`Model::is_read`].
    reads: Vec<bool>,
    /// Answered operations not linearized yet.
    remaining: usize,
    /// Fingerprint of the set of answered operations that are linearized.
    linearized: u128,
    state: M::State,
    state_bytes: usize,
    steps: Vec<Step<M::State>>,
    seen: Seen,
    /// The latest wall met: the node of the return.
    furthest: Node,
}

/// One linearized operation, and what is needed to take it back.
struct Step<S> {
    choice: Choice,
    /// The state before.
    before: S,
    /// Where to go on after taking it back; `None` when there is no alternative to it.
    resume: Option<Cursor>,
}

#[derive(Clone, Copy)]
enum Choice {
    Answered(usize),
    /// Index in [`Unknown::operations`].
    Unknown(usize),
}

/// The order in which the alternatives of a configuration are tried.
#[derive(Clone, Copy)]
enum Cursor {
    /// First a read that fits, else the operation at the wall.
    Start,
    /// Then the other answered operations, from this node on.
    Answered(Node),
    /// Then the unknown ones, from this index on.
    Unknown(usize),
}

impl<'a, M: Model> Search<'a, M> {
    fn new(
        model: &'a M,
        initial: M::State,
        operations: &'a [OperationOf<M>],
        limits: &'a Limits,
    ) -> Self {
        let events = Events::new(operations);
        let unknown = Unknown::new(operations, &events);
        Search {
            model,
            operations,
            limits,
            remaining: operations.len() - unknown.operations.len(),
            events,
            unknown,
            reads: (operations.iter().map(|o| model.is_read(&o.input, o.output()))).collect(),
            linearized: 0,
            state: initial,
            state_bytes: 0,
            steps: Vec::new(),
            seen: Seen::default(),
            furthest: HEAD,
        }
    }

    fn run(mut self, avoid: Option<&M::State>) -> Outcome<M::State> {
        let mut cursor = Cursor::Start;
        loop {
            if self.remaining == 0 && avoid != Some(&self.state) {
                return Outcome::Linearized(self.state);
            }
            if self.seen.configurations > self.limits.configurations {
                return Outcome::GaveUp("configurations");
            }
            if self.state_bytes > self.limits.state_bytes {
                return Outcome::GaveUp("state_bytes");
            }
            cursor = if self.remaining > 0 && self.advance(cursor) {
                Cursor::Start
            } else {
                match self.retreat() {
                    Some(resume) => resume,
                    None => return Outcome::Stuck(self.events.operation[self.furthest as usize]),
                }
            };
        }
    }

    /// Linearizes one more operation; false when no alternative is left here.
    fn advance(&mut self, mut cursor: Cursor) -> bool {
        let wall = self.events.wall();
        self.furthest = self.furthest.max(wall);
        let at_wall = self.events.operation[wall as usize];
        if let Cursor::Start = cursor {
            if let Some(index) = self.fitting_read(wall) {
                let state = self.state.clone();
                // Seen already means dead: what lies behind this step lies behind that one.
                return self.take(Choice::Answered(index), state, None);
            }
            cursor = Cursor::Answered(self.events.next[HEAD as usize]);
            if self.try_answered(at_wall, cursor) {
                return true;
            }
        }
        if let Cursor::Answered(mut node) = cursor {
            while node != wall {
                let index = self.events.operation[node as usize];
                node = self.events.next[node as usize];
                if index != at_wall && self.try_answered(index, Cursor::Answered(node)) {
                    return true;
                }
            }
            cursor = Cursor::Unknown(0);
        }
        if let Cursor::Unknown(from) = cursor {
            for at in from..self.unknown.called_before(wall) {
                if self.try_unknown(at) {
                    return true;
                }
            }
        }
        false
    }

    /// A read that may come next and whose answer fits the state.
    fn fitting_read(&self, wall: Node) -> Option<usize> {
        let mut node = self.events.next[HEAD as usize];
        while node != wall {
            let index = self.events.operation[node as usize];
            if self.reads[index] && self.step(index).is_some() {
                return Some(index);
            }
            node = self.events.next[node as usize];
        }
        None
    }

    fn step(&self, index: usize) -> Option<M::State> {
        let operation = &self.operations[index];
        self.model.step(&self.state, &operation.input, operation.output())
    }

    fn try_answered(&mut self, index: usize, resume: Cursor) -> bool {
        match self.step(index) {
            Some(state) => self.take(Choice::Answered(index), state, Some(resume)),
            None => false,
        }
    }

    fn try_unknown(&mut self, at: usize) -> bool {
        if self.unknown.is_used(at)
            || self.unknown.twin[at].is_some_and(|t| !self.unknown.is_used(t))
        {
            return false;
        }
        match self.step(self.unknown.operations[at]) {
            Some(state) if state != self.state => {
                self.take(Choice::Unknown(at), state, Some(Cursor::Unknown(at + 1)))
            }
            _ => false,
        }
    }

    /// Makes the step unless it leads to a configuration that need not be explored.
    fn take(&mut self, choice: Choice, after: M::State, resume: Option<Cursor>) -> bool {
        self.mark(choice, true);
        // Sum and not exclusive or: the two halves come from unlike functions, but a sum costs the
        // same and keeps a set that equals a state's fingerprint from cancelling it.
        let key = self.linearized.wrapping_add(fingerprint::of(&after));
        if !self.seen.insert(key, &self.unknown.used) {
            self.mark(choice, false);
            return false;
        }
        self.state_bytes += self.model.heap_bytes(&self.state);
        let before = mem::replace(&mut self.state, after);
        self.steps.push(Step { choice, before, resume });
        true
    }

    /// Takes steps back until one has an alternative; where to look for it.
    fn retreat(&mut self) -> Option<Cursor> {
        while let Some(step) = self.steps.pop() {
            self.state = step.before;
            self.state_bytes -= self.model.heap_bytes(&self.state);
            self.mark(step.choice, false);
            if step.resume.is_some() {
                return step.resume;
            }
        }
        None
    }

    fn mark(&mut self, choice: Choice, linearized: bool) {
        match choice {
            Choice::Unknown(at) => self.unknown.used[at / 64] ^= 1 << (at % 64),
            Choice::Answered(index) => {
                self.linearized ^= fingerprint::member(index as u32);
                if linearized {
                    self.events.lift(index);
                    self.remaining -= 1;
                } else {
                    self.events.put_back(index);
                    self.remaining += 1;
                }
            }
        }
    }
}

/// Calls and returns of the answered operations in order of time, those of linearized operations
/// lifted out of the list. Putting back in the reverse order of lifting restores it (Knuth's
/// dancing links).
struct Events {
    next: Vec<Node>,
    previous: Vec<Node>,
    /// The operation of each node.
    operation: Vec<usize>,
    is_return: Vec<bool>,
    /// The node of each operation's call (also of the unknown ones, though not in the list).
    call: Vec<Node>,
    /// The node of each operation's return; `HEAD` where there is none.
    ret: Vec<Node>,
}

impl Events {
    fn new<I, O>(operations: &[Operation<I, O>]) -> Self {
        // At equal times calls come first: the two then overlap, the reading that accuses less.
        let mut order = Vec::with_capacity(2 * operations.len());
        for (index, operation) in operations.iter().enumerate() {
            order.push((operation.call, false, index));
            if let Some(ret) = &operation.ret {
                order.push((ret.at, true, index));
            }
        }
        order.sort_unstable();
        let nodes = order.len() + 1;
        let mut events = Events {
            next: vec![HEAD; nodes],
            previous: vec![HEAD; nodes],
            operation: vec![0; nodes],
            is_return: vec![false; nodes],
            call: vec![HEAD; operations.len()],
            ret: vec![HEAD; operations.len()],
        };
        let mut last = HEAD;
        for (node, &(_, is_return, index)) in (1..).zip(&order) {
            events.operation[node as usize] = index;
            events.is_return[node as usize] = is_return;
            let place = if is_return { &mut events.ret } else { &mut events.call };
            place[index] = node;
            if operations[index].ret.is_some() {
                events.next[last as usize] = node;
                events.previous[node as usize] = last;
                last = node;
            }
        }
        events.next[last as usize] = HEAD;
        events.previous[HEAD as usize] = last;
        events
    }

    /// The earliest return in the list. There is one while an answered operation remains.
    fn wall(&self) -> Node {
        let mut node = self.next[HEAD as usize];
        while !self.is_return[node as usize] {
            debug_assert_ne!(node, HEAD, "a wall is asked for while an operation remains");
            node = self.next[node as usize];
        }
        node
    }

    fn lift(&mut self, index: usize) {
        for node in [self.call[index], self.ret[index]] {
            let (before, after) = (self.previous[node as usize], self.next[node as usize]);
            self.next[before as usize] = after;
            self.previous[after as usize] = before;
        }
    }

    fn put_back(&mut self, index: usize) {
        for node in [self.ret[index], self.call[index]] {
            let (before, after) = (self.previous[node as usize], self.next[node as usize]);
            self.next[before as usize] = node;
            self.previous[after as usize] = node;
        }
    }
}

/// The operations without an answer, in order of call.
struct Unknown {
    operations: Vec<usize>,
    call: Vec<Node>,
    /// The latest earlier one that asks the same.
    twin: Vec<Option<usize>>,
    /// One bit for each: whether it is linearized.
    used: Box<[u64]>,
}

impl Unknown {
    fn new<I: PartialEq, O>(operations: &[Operation<I, O>], events: &Events) -> Self {
        let mut unknown: Vec<usize> =
            (0..operations.len()).filter(|&index| operations[index].ret.is_none()).collect();
        unknown.sort_by_key(|&index| events.call[index]);
        let asks = |at: usize| &operations[unknown[at]].input;
        let twin =
            (0..unknown.len()).map(|at| (0..at).rev().find(|&e| asks(e) == asks(at))).collect();
        Unknown {
            call: unknown.iter().map(|&index| events.call[index]).collect(),
            twin,
            used: vec![0; unknown.len().div_ceil(64)].into(),
            operations: unknown,
        }
    }

    /// How many were called before the event at `wall`.
    fn called_before(&self, wall: Node) -> usize {
        self.call.partition_point(|&call| call < wall)
    }

    fn is_used(&self, at: usize) -> bool {
        self.used[at / 64] >> (at % 64) & 1 == 1
    }
}

/// Configurations visited, by the fingerprint of the answered operations linearized and the state.
#[derive(Default)]
struct Seen {
    /// Those reached without any unknown operation: they stand for all the others.
    plain: HashSet<u128, AsIs>,
    /// The sets of unknown operations used otherwise, none of them a superset of another.
    costly: HashMap<u128, Vec<Box<[u64]>>, AsIs>,
    configurations: usize,
}

impl Seen {
    /// Remembers a configuration; false when one at least as good is known.
    fn insert(&mut self, key: u128, used: &[u64]) -> bool {
        if self.plain.contains(&key) {
            return false;
        }
        if used.iter().all(|&word| word == 0) {
            self.configurations += 1;
            return self.plain.insert(key);
        }
        let known = self.costly.entry(key).or_default();
        if known.iter().any(|other| is_subset(other, used)) {
            return false;
        }
        let before = known.len();
        known.retain(|other| !is_subset(used, other));
        known.push(used.into());
        self.configurations = self.configurations + known.len() - before;
        true
    }
}

fn is_subset(inner: &[u64], outer: &[u64]) -> bool {
    inner.iter().zip(outer).all(|(inner, outer)| inner & !outer == 0)
}
