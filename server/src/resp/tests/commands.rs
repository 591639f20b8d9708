//! What each family of commands answers, byte by byte. The expectations are Redis 7.0's.

use super::*;

const NOT_INT: &str = "-ERR value is not an integer or out of range\r\n";
const SYNTAX: &str = "-ERR syntax error\r\n";

#[tokio::test]
async fn set_with_each_option() {
    let backend = Single::new(1_000_000);
    let mut c = Client::connect(&backend);
    c.check("SET k v", "+OK\r\n").await;
    c.check("SET k w NX", "$-1\r\n").await;
    c.check("SET k w NX GET", "$1\r\nv\r\n").await;
    c.check("set k w xx get", "$1\r\nv\r\n").await;
    c.check("SET absent w XX", "$-1\r\n").await;
    c.check("SET absent w XX GET", "$-1\r\n").await;
    c.check("SET k x EX 10", "+OK\r\n").await;
    c.check("PTTL k", ":10000\r\n").await;
    c.check("SET k y KEEPTTL", "+OK\r\n").await;
    c.check("TTL k", ":10\r\n").await;
    c.check("SET k y", "+OK\r\n").await;
    c.check("TTL k", ":-1\r\n").await;
    c.check("SET k z PXAT 1000500", "+OK\r\n").await;
    c.check("PTTL k", ":500\r\n").await;
    c.check("SET k z EXAT 900", "+OK\r\n").await;
    c.check("GET k", "$-1\r\n").await;
    c.check("SET k 1 IFEQ 2", "$-1\r\n").await;
    c.check("SET k 1", "+OK\r\n").await;
    c.check("SET k 2 IFEQ 1", "+OK\r\n").await;
    c.check("SET k 3 IFEQ 1 GET", "$1\r\n2\r\n").await;
    c.check("GET k", "$1\r\n2\r\n").await;
    for bad in
        ["NX XX", "EX", "EX 1 PX 1", "EX 1 KEEPTTL", "KEEPTTL EX 1", "FOO", "IFEQ", "NX IFEQ 1"]
    {
        c.check(&format!("SET k v {bad}"), SYNTAX).await;
    }
    c.check("SET k v EX x", NOT_INT).await;
    for bad in ["EX 0", "PX -1", "EX 9223372036854775807", "PX 9223372036854775807"] {
        let expected = "-ERR invalid expire time in 'set' command\r\n";
        c.check(&format!("SET k v {bad}"), expected).await;
    }
    c.check("SETEX k 0 v", "-ERR invalid expire time in 'setex' command\r\n").await;
    c.check("PSETEX k 5 v", "+OK\r\n").await;
    backend.set_time(1_000_005);
    c.check("SETNX k v", ":1\r\n").await;
    c.check("SETNX k v", ":0\r\n").await;
    c.check("GETSET k w", "$1\r\nv\r\n").await;
    c.check("GETDEL k", "$1\r\nw\r\n").await;
    c.check("GETDEL k", "$-1\r\n").await;
}

#[tokio::test]
async fn getex_changes_the_deadline_alone() {
    let mut c = Client::connect(&Single::new(1_000));
    c.check("SET k v", "+OK\r\n").await;
    c.check("GETEX k PX 700", "$1\r\nv\r\n").await;
    c.check("PTTL k", ":700\r\n").await;
    c.check("GETEX k PERSIST", "$1\r\nv\r\n").await;
    c.check("PTTL k", ":-1\r\n").await;
    c.check("GETEX k PERSIST EX 1", SYNTAX).await;
    c.check("GETEX k EX 0", "-ERR invalid expire time in 'getex' command\r\n").await;
    c.check("GETEX k PXAT 1", "$1\r\nv\r\n").await;
    c.check("EXISTS k", ":0\r\n").await;
}

#[tokio::test]
async fn counters() {
    let mut c = Client::connect(&Single::new(1));
    c.check("INCR n", ":1\r\n").await;
    c.check("INCRBY n 41", ":42\r\n").await;
    c.check("DECRBY n 2", ":40\r\n").await;
    c.check("DECR n", ":39\r\n").await;
    c.check("DECRBY n -9223372036854775808", "-ERR decrement would overflow\r\n").await;
    let overflow = "-ERR increment or decrement would overflow\r\n";
    c.check("INCRBY n 9223372036854775807", overflow).await;
    c.check("INCRBY n 1.5", NOT_INT).await;
    c.check("SET s 01", "+OK\r\n").await;
    c.check("INCR s", NOT_INT).await;
    c.check("SET f 10.50", "+OK\r\n").await;
    c.check("INCRBYFLOAT f 0.1", "$4\r\n10.6\r\n").await;
    c.check("INCRBYFLOAT f -5e3", "$7\r\n-4989.4\r\n").await;
    c.check("INCRBYFLOAT f x", "-ERR value is not a valid float\r\n").await;
    c.check("INCRBYFLOAT f inf", "-ERR increment would produce NaN or Infinity\r\n").await;
}

#[tokio::test]
async fn parts_of_values() {
    let mut c = Client::connect(&Single::new(1));
    c.check("APPEND k Hello", ":5\r\n").await;
    c.check("APPEND k World", ":10\r\n").await;
    c.check("STRLEN k", ":10\r\n").await;
    c.check("GETRANGE k -5 -1", "$5\r\nWorld\r\n").await;
    c.check("SUBSTR k 2 1", "$0\r\n\r\n").await;
    c.check("SETRANGE k 12 !", ":13\r\n").await;
    c.check("GET k", "$13\r\nHelloWorld\0\0!\r\n").await;
    c.check("SETRANGE k -1 x", "-ERR offset is out of range\r\n").await;
    c.check("SETRANGE absent 5 \"\"", ":0\r\n").await;
    let long = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n";
    c.check("SETRANGE k 999999999 x", long).await;
}

#[tokio::test]
async fn many_keys_at_once() {
    let mut c = Client::connect(&Single::new(1));
    c.check("MSET a 1 b 2", "+OK\r\n").await;
    c.check("MGET a x b", "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n2\r\n").await;
    c.check("MSETNX c 3 a 9", ":0\r\n").await;
    c.check("EXISTS a a c", ":2\r\n").await;
    c.check("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command\r\n").await;
    c.check("DBSIZE", ":2\r\n").await;
    c.check("TOUCH a b c", ":2\r\n").await;
    c.check("TYPE a", "+string\r\n").await;
    c.check("TYPE c", "+none\r\n").await;
    c.check("KEYS [b-z]", "*1\r\n$1\r\nb\r\n").await;
    c.check("SCAN 0 MATCH b COUNT 100000", "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nb\r\n").await;
    c.check("SCAN 0 COUNT 100000 TYPE hash", "*2\r\n$1\r\n0\r\n*0\r\n").await;
    c.check("SCAN x", "-ERR invalid cursor\r\n").await;
    c.check("SCAN 0 COUNT 0", SYNTAX).await;
    c.check("DEL a a b", ":2\r\n").await;
    c.check("RANDOMKEY", "$-1\r\n").await;
    c.check("FLUSHALL SYNC", "+OK\r\n").await;
    c.check("FLUSHDB NOW", SYNTAX).await;
}

#[tokio::test]
async fn deadlines() {
    let backend = Single::new(10_000);
    let mut c = Client::connect(&backend);
    c.check("SET k v", "+OK\r\n").await;
    c.check("EXPIRE k 10 XX", ":0\r\n").await;
    c.check("EXPIRE k 10 GT", ":0\r\n").await;
    c.check("EXPIRE k 10 LT", ":1\r\n").await;
    c.check("EXPIRE k 20 NX", ":0\r\n").await;
    c.check("PEXPIRE k 20000 GT", ":1\r\n").await;
    c.check("PEXPIRETIME k", ":30000\r\n").await;
    c.check("EXPIREAT k 25 LT", ":1\r\n").await;
    c.check("EXPIRETIME k", ":25\r\n").await;
    c.check("PERSIST k", ":1\r\n").await;
    c.check("PERSIST k", ":0\r\n").await;
    c.check("TTL absent", ":-2\r\n").await;
    let text = "-ERR NX and XX, GT or LT options at the same time are not compatible\r\n";
    c.check("EXPIRE k 1 NX GT", text).await;
    let text = "-ERR GT and LT options at the same time are not compatible\r\n";
    c.check("EXPIRE k 1 LT GT", text).await;
    c.check("EXPIRE k 1 Foo", "-ERR Unsupported option Foo\r\n").await;
    let text = "-ERR invalid expire time in 'expire' command\r\n";
    c.check("EXPIRE k 9223372036854775807", text).await;
    let text = "-ERR invalid expire time in 'pexpire' command\r\n";
    c.check("PEXPIRE k 9223372036854775807", text).await;
    c.check("PEXPIREAT k 1", ":1\r\n").await;
    c.check("EXISTS k", ":0\r\n").await;
    c.check("SET k v PX 100", "+OK\r\n").await;
    c.check("RENAME k l", "+OK\r\n").await;
    c.check("PTTL l", ":100\r\n").await;
    c.check("RENAME k l", "-ERR no such key\r\n").await;
    c.check("SET m v", "+OK\r\n").await;
    c.check("RENAMENX m l", ":0\r\n").await;
    backend.set_time(10_100);
    c.check("RENAMENX m l", ":1\r\n").await;
}

#[tokio::test]
async fn errors_of_the_table() {
    let mut c = Client::connect(&Single::new(1));
    c.check("GET", "-ERR wrong number of arguments for 'get' command\r\n").await;
    let text = "-ERR unknown command 'foo', with args beginning with: 'a' 'b' \r\n";
    c.check("foo a b", text).await;
    c.check("foo", "-ERR unknown command 'foo', with args beginning with: \r\n").await;
    let text = "-ERR unknown subcommand 'foo'. Try CLIENT HELP.\r\n";
    c.check("CLIENT foo", text).await;
}

#[tokio::test]
async fn commands_of_the_connection() {
    let backend = Single::new(1);
    let mut c = Client::connect(&backend);
    c.check("PING", "+PONG\r\n").await;
    c.check("PING hi", "$2\r\nhi\r\n").await;
    c.check("SELECT 0", "+OK\r\n").await;
    c.check("SELECT 1", "-ERR DB index is out of range\r\n").await;
    c.check("CLIENT GETNAME", "$-1\r\n").await;
    c.check("CLIENT SETNAME me", "+OK\r\n").await;
    c.check("CLIENT GETNAME", "$2\r\nme\r\n").await;
    c.check("CLIENT SETINFO LIB-NAME x", "+OK\r\n").await;
    c.check("CLIENT ID", ":1\r\n").await;
    c.check("CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n").await;
    c.check("CONFIG GET appendonl?", "*2\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n").await;
    c.check("WAIT 1 0", ":1\r\n").await;
    c.check("QUORATE STATUS", "$17\r\n{\"role\":\"leader\"}\r\n").await;
    c.check("INFO replication", "$28\r\n# Replication\r\nrole:master\r\n\r\n").await;
    c.check("COMMAND COUNT", &format!(":{}\r\n", super::super::commands::table().len())).await;
    c.check("COMMAND GETKEYS MSET a 1 b 2", "*2\r\n$1\r\na\r\n$1\r\nb\r\n").await;
    c.check("HELLO 4", "-NOPROTO unsupported protocol version\r\n").await;
    c.send(b"HELLO 3\r\n").await;
    c.expect("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n").await;
    c.expect("$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n").await;
    c.expect("$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n").await;
    c.expect("$7\r\nmodules\r\n*0\r\n").await;
    c.check("GET nope", "_\r\n").await;
    c.check("CONFIG GET save", "%1\r\n$4\r\nsave\r\n$0\r\n\r\n").await;
    c.check("RESET", "+RESET\r\n").await;
    c.check("GET nope", "$-1\r\n").await;
    c.check("READONLY", "+OK\r\n").await;
    c.check("GET nope", "$-1\r\n").await;
    assert_eq!(backend.0.stale_reads.load(Ordering::SeqCst), 1);
    c.check("READWRITE", "+OK\r\n").await;
    c.check("GET nope", "$-1\r\n").await;
    assert_eq!(backend.0.stale_reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_says_how_fresh_its_reads_must_be() {
    let backend = Single::new(1);
    let mut c = Client::connect(&backend);
    c.check("QUORATE SLOT", ":17\r\n").await;
    c.check("GET nope", "$-1\r\n").await;
    c.check("QUORATE READ 17", "+OK\r\n").await;
    c.check("GET nope", "$-1\r\n").await;
    c.check("QUORATE READ stale", "+OK\r\n").await;
    c.check("GET nope", "$-1\r\n").await;
    c.check("QUORATE READ LINEARIZABLE", "+OK\r\n").await;
    c.check("GET nope", "$-1\r\n").await;
    let refused = "-ERR QUORATE READ takes LINEARIZABLE, STALE, or a slot from QUORATE SLOT\r\n";
    c.check("QUORATE READ -1", refused).await;
    c.check("QUORATE READ soon", refused).await;
    c.check("QUORATE TRANSFER 2", "-ERR there is one replica\r\n").await;
    let takes = "-ERR QUORATE TRANSFER takes the number of a replica\r\n";
    c.check("QUORATE TRANSFER x", takes).await;
    let asked = backend.0.freshness.lock().expect("not poisoned").clone();
    let linear = Freshness::Linearizable;
    assert_eq!(asked, [linear, Freshness::AtLeast(17), Freshness::Stale, linear]);
}

#[tokio::test]
async fn replies_that_are_not_wanted_are_not_sent() {
    let mut c = Client::connect(&Single::new(1));
    c.send(b"CLIENT REPLY OFF\r\nSET k v\r\nPING\r\nfoo\r\nCLIENT REPLY ON\r\n").await;
    c.expect("+OK\r\n").await;
    c.send(b"CLIENT REPLY SKIP\r\nGET k\r\nGET k\r\n").await;
    c.expect("$1\r\nv\r\n").await;
    c.send(b"CLIENT REPLY SKIP\r\nPING\r\nPING\r\n").await;
    c.check("PING", "+PONG\r\n+PONG\r\n").await;
}
