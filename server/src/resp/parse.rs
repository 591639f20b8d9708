//! The grammar of each command: arguments of a request to a command of the store.
//!
//! The arguments begin with the name; their number has been checked against the table. Errors, and
//! their order, are those of Redis 7.0.

use super::commands::{ErrorText, wrong_arity};
use crate::kv::{
    Args, Command, Condition, ExpireOptions, Expiry, Items, SetForm, TtlForm, parse_integer,
};
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};

const NOT_AN_INTEGER: ErrorText = Cow::Borrowed("ERR value is not an integer or out of range");
const SYNTAX_ERROR: ErrorText = Cow::Borrowed("ERR syntax error");
/// How many keys `SCAN` looks at when it is not told.
const DEFAULT_SCAN_COUNT: u64 = 10;

type Parsed<'a> = Result<Command<'a>, ErrorText>;

fn integer(text: &[u8]) -> Result<i64, ErrorText> {
    parse_integer(text).ok_or(NOT_AN_INTEGER)
}

fn is(text: &[u8], word: &str) -> bool {
    text.eq_ignore_ascii_case(word.as_bytes())
}

fn invalid_expiry(name: &str) -> ErrorText {
    format!("ERR invalid expire time in '{name}' command").into()
}

pub(super) fn get(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Get { key: args.at(1) })
}

pub(super) fn strlen(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Strlen { key: args.at(1) })
}

pub(super) fn getrange(args: Args<'_>) -> Parsed<'_> {
    let (start, end) = (integer(args.at(2))?, integer(args.at(3))?);
    Ok(Command::GetRange { key: args.at(1), start, end })
}

pub(super) fn mget(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::MGet { keys: Items::Args(args.from(1)) })
}

pub(super) fn exists(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Exists { keys: Items::Args(args.from(1)) })
}

pub(super) fn ttl(args: Args<'_>) -> Parsed<'_> {
    ttl_as(args, TtlForm { absolute: false, milliseconds: false })
}

pub(super) fn pttl(args: Args<'_>) -> Parsed<'_> {
    ttl_as(args, TtlForm { absolute: false, milliseconds: true })
}

pub(super) fn expiretime(args: Args<'_>) -> Parsed<'_> {
    ttl_as(args, TtlForm { absolute: true, milliseconds: false })
}

pub(super) fn pexpiretime(args: Args<'_>) -> Parsed<'_> {
    ttl_as(args, TtlForm { absolute: true, milliseconds: true })
}

fn ttl_as(args: Args<'_>, form: TtlForm) -> Parsed<'_> {
    Ok(Command::Ttl { key: args.at(1), form })
}

pub(super) fn key_type(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Type { key: args.at(1) })
}

pub(super) fn randomkey(_: Args<'_>) -> Parsed<'_> {
    // Chosen here and not by the store, which knows no chance.
    Ok(Command::RandomKey { seed: RandomState::new().hash_one(0) })
}

pub(super) fn keys(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Keys { pattern: args.at(1) })
}

pub(super) fn dbsize(_: Args<'_>) -> Parsed<'_> {
    Ok(Command::DbSize)
}

pub(super) fn scan(args: Args<'_>) -> Parsed<'_> {
    let cursor = std::str::from_utf8(args.at(1)).ok().and_then(|text| text.parse::<u64>().ok());
    let cursor = cursor.ok_or(Cow::Borrowed("ERR invalid cursor"))?;
    let (mut count, mut pattern, mut strings) = (DEFAULT_SCAN_COUNT, &b"*"[..], true);
    let mut at = 2;
    while let Some(option) = args.get(at) {
        let value = args.get(at + 1).ok_or(SYNTAX_ERROR)?;
        if is(option, "count") {
            let number = integer(value)?;
            count = u64::try_from(number).ok().filter(|n| *n > 0).ok_or(SYNTAX_ERROR)?;
        } else if is(option, "match") {
            pattern = value;
        } else if is(option, "type") {
            strings = is(value, "string");
        } else {
            return Err(SYNTAX_ERROR);
        }
        at += 2;
    }
    Ok(Command::Scan { cursor, count, pattern, strings })
}

/// A duration or time in an option, in milliseconds. It must be positive, and must not overflow;
/// that the sum with the present does not either is checked when the command is applied.
fn positive(text: &[u8], seconds: bool, name: &str) -> Result<i64, ErrorText> {
    let amount = integer(text)?;
    let unit = if seconds { 1_000 } else { 1 };
    let milliseconds = amount.checked_mul(unit).filter(|_| amount > 0);
    milliseconds.ok_or_else(|| invalid_expiry(name))
}

/// The option of `SET` and `GETEX` that says when the key expires, as written: the value is looked
/// at when all options are known.
#[derive(Clone, Copy)]
struct ExpiryOption<'a> {
    word: &'static str,
    value: &'a [u8],
}

impl<'a> ExpiryOption<'a> {
    /// Reads `EX`, `PX`, `EXAT` or `PXAT`, which may be repeated but not mixed.
    fn read(
        option: &[u8],
        value: Option<&'a [u8]>,
        earlier: Option<ExpiryOption<'a>>,
    ) -> Option<Self> {
        let word = ["ex", "px", "exat", "pxat"].into_iter().find(|word| is(option, word))?;
        if earlier.is_some_and(|earlier| earlier.word != word) {
            return None;
        }
        Some(ExpiryOption { word, value: value? })
    }

    fn expiry(&self, name: &str) -> Result<Expiry, ErrorText> {
        Ok(self.with(positive(self.value, self.word.starts_with('e'), name)?))
    }

    /// For `GETEX`, which looks at the key before it looks at the amount: what is invalid becomes
    /// a negative one, which the store refuses.
    fn unchecked_expiry(&self) -> Result<Expiry, ErrorText> {
        integer(self.value)?;
        Ok(self.with(positive(self.value, self.word.starts_with('e'), "").unwrap_or(-1)))
    }

    fn with(&self, milliseconds: i64) -> Expiry {
        let absolute = self.word.ends_with("at");
        if absolute { Expiry::At(milliseconds) } else { Expiry::In(milliseconds) }
    }
}

pub(super) fn set(args: Args<'_>) -> Parsed<'_> {
    let mut condition = Condition::Always;
    let (mut expiry, mut keep, mut get) = (None, false, false);
    let mut at = 3;
    while let Some(option) = args.get(at) {
        let free = |allowed: Condition<'_>| condition == Condition::Always || condition == allowed;
        if is(option, "nx") && free(Condition::Absent) {
            condition = Condition::Absent;
        } else if is(option, "xx") && free(Condition::Present) {
            condition = Condition::Present;
        } else if is(option, "ifeq") && condition == Condition::Always {
            at += 1;
            condition = Condition::Equals(args.get(at).ok_or(SYNTAX_ERROR)?);
        } else if is(option, "get") {
            get = true;
        } else if is(option, "keepttl") && expiry.is_none() {
            keep = true;
        } else {
            at += 1;
            let read = ExpiryOption::read(option, args.get(at), expiry).filter(|_| !keep);
            expiry = Some(read.ok_or(SYNTAX_ERROR)?);
        }
        at += 1;
    }
    let expiry = match expiry {
        Some(option) => option.expiry("set")?,
        None if keep => Expiry::Keep,
        None => Expiry::None,
    };
    let (key, value) = (args.at(1), args.at(2));
    Ok(Command::Set { key, value, condition, expiry, get, form: SetForm::Set })
}

pub(super) fn getset(args: Args<'_>) -> Parsed<'_> {
    let expiry = Expiry::None;
    let condition = Condition::Always;
    let (key, value) = (args.at(1), args.at(2));
    Ok(Command::Set { key, value, condition, expiry, get: true, form: SetForm::Set })
}

pub(super) fn setnx(args: Args<'_>) -> Parsed<'_> {
    let expiry = Expiry::None;
    let condition = Condition::Absent;
    let (key, value) = (args.at(1), args.at(2));
    Ok(Command::Set { key, value, condition, expiry, get: false, form: SetForm::SetNx })
}

pub(super) fn setex(args: Args<'_>) -> Parsed<'_> {
    set_for(args, SetForm::SetEx)
}

pub(super) fn psetex(args: Args<'_>) -> Parsed<'_> {
    set_for(args, SetForm::PSetEx)
}

fn set_for(args: Args<'_>, form: SetForm) -> Parsed<'_> {
    let duration = positive(args.at(2), form == SetForm::SetEx, form.name())?;
    let condition = Condition::Always;
    let expiry = Expiry::In(duration);
    let (key, value) = (args.at(1), args.at(3));
    Ok(Command::Set { key, value, condition, expiry, get: false, form })
}

pub(super) fn getex(args: Args<'_>) -> Parsed<'_> {
    let (mut expiry, mut persist) = (None, false);
    let mut at = 2;
    while let Some(option) = args.get(at) {
        if is(option, "persist") && expiry.is_none() {
            persist = true;
        } else {
            at += 1;
            let read = ExpiryOption::read(option, args.get(at), expiry).filter(|_| !persist);
            expiry = Some(read.ok_or(SYNTAX_ERROR)?);
        }
        at += 1;
    }
    let key = args.at(1);
    match expiry {
        Some(option) => Ok(Command::GetEx { key, expiry: option.unchecked_expiry()? }),
        None if persist => Ok(Command::GetEx { key, expiry: Expiry::None }),
        // Without an option nothing changes, so it need not go through the log.
        None => Ok(Command::Get { key }),
    }
}

pub(super) fn getdel(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::GetDel { key: args.at(1) })
}

pub(super) fn mset(args: Args<'_>) -> Parsed<'_> {
    mset_if(args, "mset", false)
}

pub(super) fn msetnx(args: Args<'_>) -> Parsed<'_> {
    mset_if(args, "msetnx", true)
}

fn mset_if<'a>(args: Args<'a>, name: &str, only_if_absent: bool) -> Parsed<'a> {
    let pairs = args.from(1);
    if !pairs.len().is_multiple_of(2) {
        return Err(wrong_arity(name));
    }
    Ok(Command::MSet { pairs: Items::Args(pairs), only_if_absent })
}

pub(super) fn del(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Del { keys: Items::Args(args.from(1)) })
}

pub(super) fn incr(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::IncrBy { key: args.at(1), by: 1 })
}

pub(super) fn decr(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::IncrBy { key: args.at(1), by: -1 })
}

pub(super) fn incrby(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::IncrBy { key: args.at(1), by: integer(args.at(2))? })
}

pub(super) fn decrby(args: Args<'_>) -> Parsed<'_> {
    let by = integer(args.at(2))?.checked_neg();
    let by = by.ok_or(Cow::Borrowed("ERR decrement would overflow"))?;
    Ok(Command::IncrBy { key: args.at(1), by })
}

pub(super) fn incrbyfloat(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::IncrByFloat { key: args.at(1), by: args.at(2) })
}

pub(super) fn append(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Append { key: args.at(1), value: args.at(2) })
}

pub(super) fn setrange(args: Args<'_>) -> Parsed<'_> {
    let offset = u64::try_from(integer(args.at(2))?);
    let offset = offset.map_err(|_| Cow::Borrowed("ERR offset is out of range"))?;
    Ok(Command::SetRange { key: args.at(1), offset, value: args.at(3) })
}

pub(super) fn expire(args: Args<'_>) -> Parsed<'_> {
    expire_as(args, "expire", true, Expiry::In)
}

pub(super) fn pexpire(args: Args<'_>) -> Parsed<'_> {
    expire_as(args, "pexpire", false, Expiry::In)
}

pub(super) fn expireat(args: Args<'_>) -> Parsed<'_> {
    expire_as(args, "expireat", true, Expiry::At)
}

pub(super) fn pexpireat(args: Args<'_>) -> Parsed<'_> {
    expire_as(args, "pexpireat", false, Expiry::At)
}

fn expire_as<'a>(
    args: Args<'a>,
    name: &str,
    seconds: bool,
    expiry: fn(i64) -> Expiry,
) -> Parsed<'a> {
    let mut options = ExpireOptions::default();
    for word in args.from(3).iter() {
        options = options.with(match word {
            word if is(word, "nx") => ExpireOptions::NX,
            word if is(word, "xx") => ExpireOptions::XX,
            word if is(word, "gt") => ExpireOptions::GT,
            word if is(word, "lt") => ExpireOptions::LT,
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(format!("ERR Unsupported option {other}").into());
            }
        });
    }
    let (gt, lt) = (options.has(ExpireOptions::GT), options.has(ExpireOptions::LT));
    if options.has(ExpireOptions::NX) && (options.has(ExpireOptions::XX) || gt || lt) {
        let text = "ERR NX and XX, GT or LT options at the same time are not compatible";
        return Err(text.into());
    }
    if gt && lt {
        return Err("ERR GT and LT options at the same time are not compatible".into());
    }
    let amount = integer(args.at(2))?;
    let unit = if seconds { 1_000 } else { 1 };
    let amount = amount.checked_mul(unit).ok_or_else(|| invalid_expiry(name))?;
    Ok(Command::Expire { key: args.at(1), expiry: expiry(amount), options, seconds })
}

pub(super) fn persist(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Persist { key: args.at(1) })
}

pub(super) fn rename(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Rename { from: args.at(1), to: args.at(2), only_if_absent: false })
}

pub(super) fn renamenx(args: Args<'_>) -> Parsed<'_> {
    Ok(Command::Rename { from: args.at(1), to: args.at(2), only_if_absent: true })
}

pub(super) fn flush(args: Args<'_>) -> Parsed<'_> {
    match args.get(1) {
        None => Ok(Command::FlushAll),
        Some(mode) if args.len() == 2 && (is(mode, "async") || is(mode, "sync")) => {
            Ok(Command::FlushAll)
        }
        Some(_) => Err(SYNTAX_ERROR),
    }
}
