//! The commands that the front end answers itself.

use super::backend::{Backend, Freshness};
use super::commands::{Local, Spec, accepts, lookup, subcommands, table, wrong_arity};
use super::session::{ReplyMode, Session};
use super::writer::{Protocol, Writer};
use crate::kv::{Args, glob, parse_integer};
use bytes::BytesMut;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// The version of Redis whose behaviour this is; clients choose features by it.
const REDIS_VERSION: &str = "7.0.15";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

/// Executes a local command: changes the session, and appends exactly one reply (none for
/// `CLIENT REPLY OFF` and `SKIP`).
pub(super) fn run<B: Backend>(
    session: &mut Session,
    local: Local,
    args: Args<'_>,
    backend: &B,
    out: &mut BytesMut,
) {
    let mut writer = Writer::new(out, session.protocol);
    let container = match local {
        Local::Client => "client",
        Local::Command => "command",
        Local::Config => "config",
        Local::Quorate => "quorate",
        _ => "",
    };
    if !container.is_empty() && args.get(1).is_some_and(|word| is(word, "help")) {
        return help(container, &mut writer);
    }
    match local {
        Local::Ping => match args.len() {
            1 => writer.simple("PONG"),
            2 => writer.bulk(args.at(1)),
            _ => writer.error(&wrong_arity("ping")),
        },
        Local::Echo => writer.bulk(args.at(1)),
        Local::Select => match parse_integer(args.at(1)) {
            Some(0) => writer.ok(),
            Some(index) if i32::try_from(index).is_err() => writer
                .error("ERR value is out of range, value must between -2147483648 and 2147483647"),
            Some(_) => writer.error("ERR DB index is out of range"),
            None => writer.error(NOT_AN_INTEGER),
        },
        Local::Auth if args.len() > 3 => writer.error("ERR syntax error"),
        Local::Auth => writer.error(
            "ERR AUTH <password> called without any password configured for the default user. \
             Are you sure your configuration is correct?",
        ),
        Local::Hello => hello(session, args, out),
        Local::Client => client(session, args, out),
        Local::Cluster => writer.error("ERR This instance has cluster support disabled"),
        Local::Command => command(args, &mut writer),
        Local::Config => config(session, args, &mut writer),
        Local::Info => {
            let text = info(session, args.from(1), &backend.info());
            writer.verbatim(&text);
        }
        Local::Quorate => quorate(session, args, backend, &mut writer),
        Local::ReadOnly => {
            session.freshness = Freshness::Stale;
            writer.ok();
        }
        Local::ReadWrite => {
            session.freshness = Freshness::Linearizable;
            writer.ok();
        }
        Local::Time => time(&mut writer),
        Local::Unwatch => {
            session.unwatch();
            writer.ok();
        }
        Local::Wait => wait(args, backend.acknowledged_replicas(), &mut writer),
    }
}

/// `QUORATE STATUS`, `QUORATE SLOT`, `QUORATE READ LINEARIZABLE|STALE|slot`, `QUORATE TRANSFER [node]`.
fn quorate<B: Backend>(
    session: &mut Session,
    args: Args<'_>,
    backend: &B,
    writer: &mut Writer<'_>,
) {
    match args.at(1) {
        word if is(word, "slot") => {
            writer.int(i64::try_from(backend.applied_slot()).unwrap_or(i64::MAX));
        }
        word if is(word, "checkpoint") => match backend.begin_checkpoint() {
            Ok(()) => writer.ok(),
            Err(text) => writer.error(&format!("ERR {text}")),
        },
        word if is(word, "read") => {
            session.freshness = match args.at(2) {
                word if is(word, "linearizable") => Freshness::Linearizable,
                word if is(word, "stale") => Freshness::Stale,
                word => match parse_integer(word).and_then(|slot| u64::try_from(slot).ok()) {
                    Some(slot) => Freshness::AtLeast(slot),
                    None => {
                        return writer.error(
                            "ERR QUORATE READ takes LINEARIZABLE, STALE, or a slot from QUORATE SLOT",
                        );
                    }
                },
            };
            writer.ok();
        }
        word if is(word, "transfer") => {
            let to = match args.get(2).map(parse_integer) {
                None => None,
                Some(number) => match number.and_then(|number| u16::try_from(number).ok()) {
                    Some(node) if args.len() == 3 => Some(node),
                    _ => return writer.error("ERR QUORATE TRANSFER takes the number of a replica"),
                },
            };
            match backend.transfer(to) {
                Ok(()) => writer.ok(),
                Err(why) => writer.error(&format!("ERR {why}")),
            }
        }
        word if is(word, "members") => {
            let what = String::from_utf8_lossy(args.at(2));
            match backend.change_members(&what) {
                Ok(slot) => writer.int(i64::try_from(slot).unwrap_or(i64::MAX)),
                Err(error) => writer.error(&error),
            }
        }
        _ => writer.bulk(backend.status_json().as_bytes()),
    }
}

fn is(text: &[u8], word: &str) -> bool {
    text.eq_ignore_ascii_case(word.as_bytes())
}

/// `HELP` of a command with subcommands.
fn help(container: &str, writer: &mut Writer<'_>) {
    let known = subcommands(container);
    writer.array(known.len() + 1);
    let container = container.to_ascii_uppercase();
    writer.simple(&format!("{container} <subcommand> [<arg> ...]. Subcommands are:"));
    known.iter().for_each(|(name, _)| writer.simple(&name.to_ascii_uppercase()));
}

/// Every acknowledged write is on a majority already, so there is nothing to wait for.
fn wait(args: Args<'_>, replicas: u32, writer: &mut Writer<'_>) {
    let (Some(_), Some(timeout)) = (parse_integer(args.at(1)), parse_integer(args.at(2))) else {
        return writer.error(NOT_AN_INTEGER);
    };
    if timeout < 0 {
        return writer.error("ERR timeout is negative");
    }
    writer.int(i64::from(replicas));
}

fn time(writer: &mut Writer<'_>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    writer.array(2);
    writer.bulk(now.as_secs().to_string().as_bytes());
    writer.bulk(now.subsec_micros().to_string().as_bytes());
}

/// `HELLO [protover [AUTH user password] [SETNAME name]]`.
fn hello(session: &mut Session, args: Args<'_>, out: &mut BytesMut) {
    let mut writer = Writer::new(out, session.protocol);
    let mut protocol = session.protocol;
    if let Some(version) = args.get(1) {
        protocol = match parse_integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return writer.error("NOPROTO unsupported protocol version"),
            None => {
                let text = "ERR Protocol version is not an integer or out of range";
                return writer.error(text);
            }
        };
    }
    let mut name = None;
    let mut at = 2;
    while let Some(option) = args.get(at) {
        if is(option, "setname") && at + 1 < args.len() {
            name = Some(args.at(at + 1));
            at += 2;
        } else if is(option, "auth") && at + 2 < args.len() {
            return writer.error("ERR AUTH is refused: this server has no passwords");
        } else {
            let option = String::from_utf8_lossy(option);
            return writer.error(&format!("ERR Syntax error in HELLO option '{option}'"));
        }
    }
    if let Some(name) = name {
        if !is_valid_name(name) {
            return writer.error(INVALID_NAME);
        }
        session.name = name.to_vec();
    }
    session.protocol = protocol;
    let mut writer = Writer::new(out, protocol);
    writer.map(7);
    for (key, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        writer.bulk(key.as_bytes());
        writer.bulk(value.as_bytes());
    }
    writer.bulk(b"proto");
    writer.int(if protocol == Protocol::Resp3 { 3 } else { 2 });
    writer.bulk(b"id");
    writer.int(session.id as i64);
    for (key, value) in [("mode", "standalone"), ("role", "master")] {
        writer.bulk(key.as_bytes());
        writer.bulk(value.as_bytes());
    }
    writer.bulk(b"modules");
    writer.array(0);
}

const INVALID_NAME: &str =
    "ERR Client names cannot contain spaces, newlines or special characters.";
/// The longest name of a connection or library that is kept.
const MAX_NAME_BYTES: usize = 1_024;

fn is_valid_name(name: &[u8]) -> bool {
    name.len() <= MAX_NAME_BYTES && name.iter().all(u8::is_ascii_graphic)
}

fn client(session: &mut Session, args: Args<'_>, out: &mut BytesMut) {
    let mut writer = Writer::new(out, session.protocol);
    let word = String::from_utf8_lossy(args.at(1)).to_ascii_lowercase();
    match word.as_str() {
        "id" => writer.int(session.id as i64),
        "getname" if session.name.is_empty() => writer.nil(),
        "getname" => writer.bulk(&session.name),
        "setname" if is_valid_name(args.at(2)) => {
            session.name = args.at(2).to_vec();
            writer.ok();
        }
        "setname" => writer.error(INVALID_NAME),
        "setinfo" => set_info(session, args, &mut writer),
        // Other connections are not listed: each one knows itself alone.
        "info" | "list" => writer.verbatim(&client_line(session)),
        "reply" => set_reply_mode(session, args.at(2), &mut writer),
        _ if is(args.at(2), "on") || is(args.at(2), "off") => writer.ok(),
        _ => writer.error("ERR syntax error"),
    }
}

fn set_info(session: &mut Session, args: Args<'_>, writer: &mut Writer<'_>) {
    let index = match args.at(2) {
        word if is(word, "lib-name") => 0,
        word if is(word, "lib-ver") => 1,
        word => {
            let word = String::from_utf8_lossy(word);
            return writer.error(&format!("ERR Unrecognized option '{word}'"));
        }
    };
    if !is_valid_name(args.at(3)) {
        let word = String::from_utf8_lossy(args.at(2)).to_ascii_lowercase();
        let text = "cannot contain spaces, newlines or special characters.";
        return writer.error(&format!("ERR {word} {text}"));
    }
    session.library[index] = args.at(3).to_vec();
    writer.ok();
}

fn set_reply_mode(session: &mut Session, word: &[u8], writer: &mut Writer<'_>) {
    if is(word, "on") {
        session.reply_mode = ReplyMode::On;
        writer.ok();
    } else if is(word, "off") {
        session.reply_mode = ReplyMode::Off;
    } else if is(word, "skip") {
        if session.reply_mode != ReplyMode::Off {
            session.reply_mode = ReplyMode::SkipNext;
        }
    } else {
        writer.error("ERR syntax error");
    }
}

fn client_line(session: &Session) -> String {
    let peer = session.peer.map_or_else(|| "?:0".to_owned(), |peer| peer.to_string());
    format!(
        "id={} addr={peer} name={} age={} idle=0 flags={} db=0 multi={} cmd=client resp={} \
         lib-name={} lib-ver={}\n",
        session.id,
        String::from_utf8_lossy(&session.name),
        session.since.elapsed().as_secs(),
        if session.freshness == Freshness::Stale { "r" } else { "N" },
        session.multi_len(),
        if session.protocol == Protocol::Resp3 { 3 } else { 2 },
        String::from_utf8_lossy(&session.library[0]),
        String::from_utf8_lossy(&session.library[1]),
    )
}

fn command(args: Args<'_>, writer: &mut Writer<'_>) {
    let all = || table().iter();
    match args.get(1) {
        None => {
            writer.array(table().len());
            all().for_each(|spec| command_info(spec, writer));
        }
        Some(word) if is(word, "count") => writer.int(table().len() as i64),
        Some(word) if is(word, "docs") => writer.map(0),
        Some(word) if is(word, "list") => {
            writer.array(table().len());
            all().for_each(|spec| writer.bulk(spec.name.as_bytes()));
        }
        Some(word) if is(word, "info") => {
            writer.array(args.len() - 2);
            for name in args.from(2).iter() {
                match lookup(name) {
                    Some(spec) => command_info(spec, writer),
                    None => writer.nil_array(),
                }
            }
        }
        Some(_) => command_keys(args.from(2), writer),
    }
}

/// The ten elements that Redis 7 gives for a command.
fn command_info(spec: &Spec, writer: &mut Writer<'_>) {
    writer.array(10);
    writer.bulk(spec.name.as_bytes());
    writer.int(i64::from(spec.arity));
    writer.set(spec.flags.len());
    spec.flags.iter().for_each(|flag| writer.simple(flag));
    spec.keys.iter().for_each(|position| writer.int(*position));
    // Categories of access control, tips, key specifications, subcommands.
    writer.set(0);
    (0..3).for_each(|_| writer.array(0));
}

fn command_keys(args: Args<'_>, writer: &mut Writer<'_>) {
    let Some(spec) = args.get(0).and_then(lookup) else {
        return writer.error("ERR Invalid command specified");
    };
    if !accepts(spec.arity, args.len()) {
        return writer.error("ERR Invalid number of arguments specified for command");
    }
    let [first, last, step] = spec.keys;
    if first == 0 {
        return writer.error("ERR The command has no key arguments");
    }
    let last = if last < 0 { args.len() as i64 + last } else { last };
    let keys = (first..=last).step_by(step.max(1) as usize);
    let keys: Vec<&[u8]> = keys.filter_map(|at| args.get(at as usize)).collect();
    writer.array(keys.len());
    keys.iter().for_each(|key| writer.bulk(key));
}

/// The settings of Redis that tools ask for, as far as they mean something here.
fn config(session: &Session, args: Args<'_>, writer: &mut Writer<'_>) {
    let settings = &session.settings;
    let word = args.at(1);
    if is(word, "resetstat") {
        return writer.ok();
    }
    if is(word, "set") {
        return writer.error(
            "ERR CONFIG SET is not supported: settings are read from the configuration when the \
             server starts",
        );
    }
    let idle_seconds = settings.idle_timeout.map_or(0, |timeout| timeout.as_secs());
    let known = [
        ("appendfsync", "always".to_owned()),
        ("appendonly", "yes".to_owned()),
        ("databases", "1".to_owned()),
        ("maxclients", settings.max_clients.to_string()),
        ("maxmemory", "0".to_owned()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("proto-max-bulk-len", settings.max_bulk_bytes.to_string()),
        ("save", String::new()),
        ("timeout", idle_seconds.to_string()),
    ];
    let wanted: Vec<_> = known
        .iter()
        .filter(|(name, _)| {
            args.from(2).iter().any(|pattern| glob::matches(pattern, name.as_bytes(), true))
        })
        .collect();
    writer.map(wanted.len());
    for (name, value) in wanted {
        writer.bulk(name.as_bytes());
        writer.bulk(value.as_bytes());
    }
}

/// The sections that were asked for: the front end's own, then the backend's.
fn info(session: &Session, wanted: Args<'_>, backend: &str) -> String {
    let shared = &session.shared;
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write!(
        text,
        "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\n\
         quorate_version:{}\r\nos:{} {}\r\narch_bits:{}\r\nprocess_id:{}\r\n\
         uptime_in_seconds:{}\r\n\r\n\
         # Clients\r\nconnected_clients:{}\r\nmaxclients:{}\r\n\r\n\
         # Stats\r\ntotal_connections_received:{}\r\ntotal_commands_processed:{}\r\n\
         rejected_connections:{}\r\n\r\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        usize::BITS,
        std::process::id(),
        shared.since.elapsed().as_secs(),
        shared.connected.load(Ordering::Relaxed),
        session.settings.max_clients,
        shared.accepted.load(Ordering::Relaxed),
        shared.commands.load(Ordering::Relaxed),
        shared.rejected.load(Ordering::Relaxed),
    );
    text.push_str(backend);
    let everything = |word: &[u8]| ["all", "everything", "default"].iter().any(|w| is(word, w));
    if wanted.is_empty() || wanted.iter().any(everything) {
        return text;
    }
    let mut chosen = String::new();
    let mut keep = false;
    for line in text.split_inclusive("\r\n") {
        if let Some(section) = line.strip_prefix("# ") {
            keep = wanted.iter().any(|word| is(word, section.trim_end()));
        }
        if keep {
            chosen.push_str(line);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_are_refused() {
        assert!(is_valid_name(b"worker-1"));
        assert!(!is_valid_name(b"worker 1"));
        assert!(!is_valid_name(&[b'x'; MAX_NAME_BYTES + 1]));
    }
}
