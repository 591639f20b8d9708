//! The table of commands, and what a request becomes: a command of the store, or something that
//! the front end does itself.

use super::parse;
use crate::kv::{Args, Command};
use std::borrow::Cow;

/// The text of an error reply, its prefix included.
pub type ErrorText = Cow<'static, str>;

/// Turns the arguments of a request (the name first) into a command of the store.
type Parse = for<'a> fn(Args<'a>) -> Result<Command<'a>, ErrorText>;

/// What the front end does itself, without the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the Redis commands")]
pub enum Local {
    Auth,
    Client,
    Cluster,
    Command,
    Config,
    Echo,
    Hello,
    Info,
    Ping,
    Quorate,
    ReadOnly,
    ReadWrite,
    Select,
    Time,
    Unwatch,
    Wait,
}

impl Local {
    /// Whether the commands before it in the same batch must be executed first: the reply depends
    /// on what they do, or they would be executed in another manner after it.
    pub fn is_barrier(self) -> bool {
        use Local::{Info, Quorate, ReadOnly, ReadWrite, Wait};
        matches!(self, Info | Quorate | Wait | ReadOnly | ReadWrite)
    }
}

/// Commands that act on the transaction or the connection, and are never queued by `MULTI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the Redis commands")]
pub enum Control {
    Discard,
    Exec,
    Multi,
    Quit,
    Reset,
    Watch,
}

/// How a command is handled.
#[derive(Clone, Copy, Debug)]
pub enum Handler {
    /// By the store.
    Store(Parse),
    /// By the front end.
    Local(Local),
    /// By the front end, at once even inside `MULTI`.
    Control(Control),
}

/// One command as the table describes it.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// In lower case.
    pub name: &'static str,
    /// The name as the table is sorted and searched by.
    key: u128,
    /// The number of arguments, the name included; negative: at least so many.
    pub arity: i32,
    /// The flags of `COMMAND`.
    pub flags: &'static [&'static str],
    /// The positions of the keys: the first, the last (negative: from the end), the step.
    pub keys: [i64; 3],
    /// How it is handled.
    pub handler: Handler,
}

/// The subcommands of a command, each with its arity; none if it has no subcommands.
pub fn subcommands(name: &str) -> &'static [(&'static str, i32)] {
    match name {
        "client" => &[
            ("getname", 2),
            ("help", 2),
            ("id", 2),
            ("info", 2),
            ("list", -2),
            ("no-evict", 3),
            ("no-touch", 3),
            ("reply", 3),
            ("setinfo", 4),
            ("setname", 3),
        ],
        "command" => {
            &[("count", 2), ("docs", -2), ("getkeys", -4), ("help", 2), ("info", -2), ("list", -2)]
        }
        "config" => &[("get", -3), ("help", 2), ("resetstat", 2), ("set", -4)],
        "quorate" => &[
            ("checkpoint", 2),
            ("help", 2),
            ("members", 3),
            ("read", 3),
            ("slot", 2),
            ("status", 2),
            ("transfer", -2),
        ],
        _ => &[],
    }
}

/// Finds the command of a request and checks the number of its arguments, subcommands included;
/// or the error, worded as in Redis 7.0.
pub fn resolve(args: Args<'_>) -> Result<&'static Spec, ErrorText> {
    let spec = args.get(0).and_then(lookup).ok_or_else(|| unknown_command(args))?;
    if !accepts(spec.arity, args.len()) {
        return Err(wrong_arity(spec.name));
    }
    let (known, Some(word)) = (subcommands(spec.name), args.get(1)) else {
        return Ok(spec);
    };
    match known.iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes())) {
        _ if known.is_empty() => Ok(spec),
        Some((_, arity)) if accepts(*arity, args.len()) => Ok(spec),
        Some((name, _)) => Err(wrong_arity(&format!("{}|{name}", spec.name))),
        None => {
            let word = String::from_utf8_lossy(&word[..word.len().min(QUOTED_BYTES)]);
            let container = spec.name.to_ascii_uppercase();
            Err(format!("ERR unknown subcommand '{word}'. Try {container} HELP.").into())
        }
    }
}

/// How much of a request is quoted in an error.
const QUOTED_BYTES: usize = 128;

/// Whether a request with so many arguments, the name included, fits the arity.
pub fn accepts(arity: i32, arguments: usize) -> bool {
    let least = arity.unsigned_abs() as usize;
    if arity < 0 { arguments >= least } else { arguments == least }
}

/// Finds a command by its name, in any case.
pub fn lookup(name: &[u8]) -> Option<&'static Spec> {
    let key = pack(name)?;
    let index = TABLE.binary_search_by_key(&key, |spec| spec.key).ok()?;
    // Names that differ in zeros at their end have the same key.
    Some(&TABLE[index]).filter(|spec| spec.name.len() == name.len())
}

/// A name in lower case as one number, in the order of names: the search compares numbers, which
/// halves its time.
const fn pack(name: &[u8]) -> Option<u128> {
    const MAX_NAME_BYTES: usize = size_of::<u128>();
    if name.len() > MAX_NAME_BYTES {
        return None;
    }
    let mut bytes = [0u8; MAX_NAME_BYTES];
    let mut at = 0;
    while at < name.len() {
        bytes[at] = name[at].to_ascii_lowercase();
        at += 1;
    }
    Some(u128::from_be_bytes(bytes))
}

/// The error for a command that is not in the table, worded as in Redis 7.0.
fn unknown_command(args: Args<'_>) -> ErrorText {
    let quote = |bytes: &[u8], limit: usize| {
        // Redis quotes C strings, which end at a zero.
        let end = bytes.iter().take(limit).position(|byte| *byte == 0);
        let end = end.unwrap_or(bytes.len().min(limit));
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    let name = quote(args.get(0).unwrap_or(b""), QUOTED_BYTES);
    let mut quoted = String::new();
    for arg in args.from(1).iter() {
        if quoted.len() >= QUOTED_BYTES {
            break;
        }
        let room = QUOTED_BYTES - quoted.len();
        quoted.push_str(&format!("'{}' ", quote(arg, room)));
    }
    format!("ERR unknown command '{name}', with args beginning with: {quoted}").into()
}

/// The error for a wrong number of arguments.
pub fn wrong_arity(name: &str) -> ErrorText {
    format!("ERR wrong number of arguments for '{name}' command").into()
}

/// All commands, sorted by name.
pub fn table() -> &'static [Spec] {
    TABLE
}

const READ: &[&str] = &["readonly", "fast"];
const SLOW_READ: &[&str] = &["readonly"];
const WRITE: &[&str] = &["write", "denyoom", "fast"];
const SLOW_WRITE: &[&str] = &["write", "denyoom"];
const REMOVE: &[&str] = &["write", "fast"];
const LOCAL: &[&str] = &["loading", "stale", "fast"];
const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];

const NO_KEY: [i64; 3] = [0, 0, 0];
const ONE_KEY: [i64; 3] = [1, 1, 1];
const TWO_KEYS: [i64; 3] = [1, 2, 1];
const ALL_KEYS: [i64; 3] = [1, -1, 1];
const PAIRS: [i64; 3] = [1, -1, 2];

/// The key of a name in the table, evaluated by the compiler.
const fn key(name: &str) -> u128 {
    match pack(name.as_bytes()) {
        Some(key) => key,
        None => panic!("names in the table have at most 16 bytes"),
    }
}

const fn store(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    keys: [i64; 3],
    parse: Parse,
) -> Spec {
    Spec { name, key: key(name), arity, flags, keys, handler: Handler::Store(parse) }
}

const fn local(name: &'static str, arity: i32, local: Local) -> Spec {
    let handler = Handler::Local(local);
    Spec { name, key: key(name), arity, flags: LOCAL, keys: NO_KEY, handler }
}

const fn admin(name: &'static str, arity: i32, local: Local) -> Spec {
    let handler = Handler::Local(local);
    Spec { name, key: key(name), arity, flags: ADMIN, keys: NO_KEY, handler }
}

const fn control(name: &'static str, arity: i32, keys: [i64; 3], control: Control) -> Spec {
    let handler = Handler::Control(control);
    Spec { name, key: key(name), arity, flags: LOCAL, keys, handler }
}

#[rustfmt::skip]
static TABLE: &[Spec] = &[
    store("append", 3, WRITE, ONE_KEY, parse::append),
    local("auth", -2, Local::Auth),
    admin("client", -2, Local::Client),
    admin("cluster", -2, Local::Cluster),
    local("command", -1, Local::Command),
    admin("config", -2, Local::Config),
    store("dbsize", 1, READ, NO_KEY, parse::dbsize),
    store("decr", 2, WRITE, ONE_KEY, parse::decr),
    store("decrby", 3, WRITE, ONE_KEY, parse::decrby),
    store("del", -2, REMOVE, ALL_KEYS, parse::del),
    control("discard", 1, NO_KEY, Control::Discard),
    local("echo", 2, Local::Echo),
    control("exec", 1, NO_KEY, Control::Exec),
    store("exists", -2, READ, ALL_KEYS, parse::exists),
    store("expire", -3, REMOVE, ONE_KEY, parse::expire),
    store("expireat", -3, REMOVE, ONE_KEY, parse::expireat),
    store("expiretime", 2, READ, ONE_KEY, parse::expiretime),
    store("flushall", -1, REMOVE, NO_KEY, parse::flush),
    store("flushdb", -1, REMOVE, NO_KEY, parse::flush),
    store("get", 2, READ, ONE_KEY, parse::get),
    store("getdel", 2, REMOVE, ONE_KEY, parse::getdel),
    store("getex", -2, REMOVE, ONE_KEY, parse::getex),
    store("getrange", 4, SLOW_READ, ONE_KEY, parse::getrange),
    store("getset", 3, WRITE, ONE_KEY, parse::getset),
    local("hello", -1, Local::Hello),
    store("incr", 2, WRITE, ONE_KEY, parse::incr),
    store("incrby", 3, WRITE, ONE_KEY, parse::incrby),
    store("incrbyfloat", 3, WRITE, ONE_KEY, parse::incrbyfloat),
    local("info", -1, Local::Info),
    store("keys", 2, SLOW_READ, NO_KEY, parse::keys),
    store("mget", -2, READ, ALL_KEYS, parse::mget),
    store("mset", -3, SLOW_WRITE, PAIRS, parse::mset),
    store("msetnx", -3, SLOW_WRITE, PAIRS, parse::msetnx),
    control("multi", 1, NO_KEY, Control::Multi),
    store("persist", 2, REMOVE, ONE_KEY, parse::persist),
    store("pexpire", -3, REMOVE, ONE_KEY, parse::pexpire),
    store("pexpireat", -3, REMOVE, ONE_KEY, parse::pexpireat),
    store("pexpiretime", 2, READ, ONE_KEY, parse::pexpiretime),
    local("ping", -1, Local::Ping),
    store("psetex", 4, SLOW_WRITE, ONE_KEY, parse::psetex),
    store("pttl", 2, READ, ONE_KEY, parse::pttl),
    control("quit", -1, NO_KEY, Control::Quit),
    admin("quorate", -2, Local::Quorate),
    store("randomkey", 1, SLOW_READ, NO_KEY, parse::randomkey),
    local("readonly", 1, Local::ReadOnly),
    local("readwrite", 1, Local::ReadWrite),
    store("rename", 3, REMOVE, TWO_KEYS, parse::rename),
    store("renamenx", 3, REMOVE, TWO_KEYS, parse::renamenx),
    control("reset", 1, NO_KEY, Control::Reset),
    store("scan", -2, SLOW_READ, NO_KEY, parse::scan),
    local("select", 2, Local::Select),
    store("set", -3, SLOW_WRITE, ONE_KEY, parse::set),
    store("setex", 4, SLOW_WRITE, ONE_KEY, parse::setex),
    store("setnx", 3, WRITE, ONE_KEY, parse::setnx),
    store("setrange", 4, SLOW_WRITE, ONE_KEY, parse::setrange),
    store("strlen", 2, READ, ONE_KEY, parse::strlen),
    store("substr", 4, SLOW_READ, ONE_KEY, parse::getrange),
    local("time", 1, Local::Time),
    store("touch", -2, READ, ALL_KEYS, parse::exists),
    store("ttl", 2, READ, ONE_KEY, parse::ttl),
    store("type", 2, READ, ONE_KEY, parse::key_type),
    store("unlink", -2, REMOVE, ALL_KEYS, parse::del),
    local("unwatch", 1, Local::Unwatch),
    local("wait", 3, Local::Wait),
    control("watch", -2, ALL_KEYS, Control::Watch),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        assert!(TABLE.is_sorted_by(|a, b| a.name < b.name));
        for spec in TABLE {
            let found = lookup(spec.name.to_ascii_uppercase().as_bytes()).expect("in the table");
            assert_eq!(found.name, spec.name);
        }
        assert!(lookup(b"nosuch").is_none());
        assert!(lookup(b"get\0").is_none());
        assert!(lookup(b"").is_none());
        assert!(lookup(&[b'x'; 1_000]).is_none());
    }
}
