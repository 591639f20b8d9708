//! Batches, transactions, and clients that misbehave.

use super::*;

#[tokio::test]
async fn pipeline_of_reads_is_one_read_and_mixed_pipeline_is_one_write() {
    let backend = Single::new(1);
    let mut c = Client::connect(&backend);
    c.send(b"GET a\r\nPING\r\nEXISTS a\r\n").await;
    c.expect("$-1\r\n+PONG\r\n:0\r\n").await;
    assert_eq!(backend.take_calls(), (0, 1));
    c.send(b"SET a 1\r\nGET a\r\nfoo\r\nINCR a\r\nGET\r\nGET a\r\n").await;
    c.expect("+OK\r\n$1\r\n1\r\n").await;
    c.expect("-ERR unknown command 'foo', with args beginning with: \r\n:2\r\n").await;
    c.expect("-ERR wrong number of arguments for 'get' command\r\n$1\r\n2\r\n").await;
    assert_eq!(backend.take_calls(), (1, 0));
}

#[tokio::test]
async fn pipeline_longer_than_a_batch_is_answered_in_order() {
    let backend = Single::new(1);
    let settings = Settings { max_batch_commands: 10, ..Settings::default() };
    let mut c = Client::connect_with(&backend, settings, 1 << 20);
    c.send("INCR n\r\n".repeat(95).as_bytes()).await;
    let expected: String = (1..=95).map(|n| format!(":{n}\r\n")).collect();
    c.expect(&expected).await;
    assert!(backend.take_calls().0 >= 10);

    let settings = Settings { max_batch_bytes: 100, ..Settings::default() };
    let mut c = Client::connect_with(&backend, settings, 1 << 20);
    c.send(format!("SET k {}\r\n", "x".repeat(60)).repeat(5).as_bytes()).await;
    c.expect(&"+OK\r\n".repeat(5)).await;
    assert_eq!(backend.take_calls().0, 5);
}

#[tokio::test]
async fn transaction_is_one_command_with_local_replies_inside() {
    let backend = Single::new(1);
    let mut c = Client::connect(&backend);
    c.send(b"MULTI\r\nSET k 1\r\nPING\r\nSET k v FOO\r\nINCR k\r\nCLIENT SETNAME x\r\nEXEC\r\n")
        .await;
    c.expect("+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n").await;
    c.expect("*5\r\n+OK\r\n+PONG\r\n-ERR syntax error\r\n:2\r\n+OK\r\n").await;
    assert_eq!(backend.take_calls(), (1, 0));
    c.check("CLIENT GETNAME", "$1\r\nx\r\n").await;
    // Nothing but reads: no need of the log. Nothing at all: an empty array.
    c.send(b"MULTI\r\nGET k\r\nEXEC\r\nMULTI\r\nEXEC\r\n").await;
    c.expect("+OK\r\n+QUEUED\r\n*1\r\n$1\r\n2\r\n+OK\r\n*0\r\n").await;
    assert_eq!(backend.take_calls(), (0, 1));
}

#[tokio::test]
async fn transaction_that_could_not_be_queued_is_refused_whole() {
    let mut c = Client::connect(&Single::new(1));
    let abort = "-EXECABORT Transaction discarded because of previous errors.\r\n";
    c.check("EXEC", "-ERR EXEC without MULTI\r\n").await;
    c.check("DISCARD", "-ERR DISCARD without MULTI\r\n").await;
    c.send(b"MULTI\r\nSET k 1\r\nDISCARD\r\nGET k\r\n").await;
    c.expect("+OK\r\n+QUEUED\r\n+OK\r\n$-1\r\n").await;
    c.send(b"MULTI\r\nSET k 1\r\nGET\r\nEXEC\r\n").await;
    c.expect("+OK\r\n+QUEUED\r\n-ERR wrong number of arguments for 'get' command\r\n").await;
    c.expect(abort).await;
    c.send(b"MULTI\r\nnosuch\r\nSET k 1\r\nEXEC\r\n").await;
    c.expect("+OK\r\n-ERR unknown command 'nosuch', with args beginning with: \r\n").await;
    c.expect("+QUEUED\r\n").await;
    c.expect(abort).await;
    c.send(b"MULTI\r\nMULTI\r\nWATCH k\r\nSET k 2\r\nEXEC\r\n").await;
    c.expect("+OK\r\n-ERR MULTI calls can not be nested\r\n").await;
    c.expect("-ERR WATCH inside MULTI is not allowed\r\n+QUEUED\r\n*1\r\n+OK\r\n").await;
    c.check("GET k", "$1\r\n2\r\n").await;
}

#[tokio::test]
async fn watched_key_that_another_client_modified_prevents_the_transaction() {
    let backend = Single::new(1);
    let (mut a, mut b) = (Client::connect(&backend), Client::connect(&backend));
    a.check("WATCH k l", "+OK\r\n").await;
    b.check("SET k theirs", "+OK\r\n").await;
    a.send(b"MULTI\r\nSET k mine\r\nEXEC\r\n").await;
    a.expect("+OK\r\n+QUEUED\r\n*-1\r\n").await;
    // The watch is used up.
    a.send(b"MULTI\r\nSET k mine\r\nEXEC\r\n").await;
    a.expect("+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n").await;
    for forget in ["UNWATCH", "MULTI\r\nDISCARD"] {
        a.send(format!("WATCH k\r\nSET k x\r\n{forget}\r\nMULTI\r\nGET k\r\nEXEC\r\n").as_bytes())
            .await;
        let multi = if forget == "UNWATCH" { "" } else { "+OK\r\n" };
        a.expect(&format!("+OK\r\n+OK\r\n{multi}+OK\r\n+OK\r\n+QUEUED\r\n*1\r\n$1\r\nx\r\n")).await;
    }
    // One's own write counts as well, and so does an expiry.
    a.send(b"WATCH k\r\nSET k x\r\nMULTI\r\nGET k\r\nEXEC\r\n").await;
    a.expect("+OK\r\n+OK\r\n+OK\r\n+QUEUED\r\n*-1\r\n").await;
    a.check("SET k x PX 10", "+OK\r\n").await;
    a.check("WATCH k", "+OK\r\n").await;
    backend.set_time(11);
    a.send(b"MULTI\r\nGET k\r\nEXEC\r\n").await;
    a.expect("+OK\r\n+QUEUED\r\n*-1\r\n").await;
}

#[tokio::test]
async fn failure_of_the_backend_answers_every_command_and_keeps_the_connection() {
    let backend = Single::new(1);
    let mut c = Client::connect(&backend);
    let leader = Some("10.0.0.2:6379".to_owned());
    let cases = [
        (SubmitError::Busy, "TRYAGAIN"),
        (SubmitError::NoLeader, "CLUSTERDOWN"),
        (SubmitError::NotLeader { leader }, "MOVED 0 10.0.0.2:6379"),
        (SubmitError::NotLeader { leader: None }, "CLUSTERDOWN"),
        (SubmitError::Unknown("the leader changed".to_owned()), "UNKNOWN"),
        (SubmitError::Rejected("no".to_owned()), "ERR rejected"),
        (SubmitError::TooLarge { bytes: 2, limit: 1 }, "ERR command of 2 bytes"),
        (SubmitError::ShuttingDown, "CLUSTERDOWN"),
    ];
    for (failure, prefix) in cases {
        let line = format!("-{failure}\r\n");
        assert!(line[1..].starts_with(prefix), "{line}");
        backend.fail_with(Some(failure));
        c.send(b"SET k v\r\nPING\r\nGET k\r\nMULTI\r\nINCR n\r\nEXEC\r\nWATCH k\r\n").await;
        c.expect(&format!("{line}+PONG\r\n{line}+OK\r\n+QUEUED\r\n{line}{line}")).await;
    }
    backend.fail_with(None);
    c.check("EXISTS k n", ":0\r\n").await;
}

#[tokio::test]
async fn protocol_error_is_told_and_closes() {
    let backend = Single::new(1);
    for (input, error) in [
        ("*1\r\n:", "expected '$', got ':'"),
        ("*99999999\r\n", "invalid multibulk length"),
        ("*1\r\n$99999999\r\n", "invalid bulk length"),
        ("set 'a\r\n", "unbalanced quotes in request"),
    ] {
        let mut c = Client::connect(&backend);
        c.send(format!("SET k v\r\n{input}PING\r\n").as_bytes()).await;
        let got = c.read_to_end().await;
        let expected = format!("+OK\r\n-ERR Protocol error: {error}\r\n");
        assert_eq!(String::from_utf8_lossy(&got), expected);
        c.ended().await.expect("closed in an orderly way");
    }
    let mut c = Client::connect(&backend);
    c.send(b"PING\r\nQUIT\r\nPING\r\n").await;
    assert_eq!(c.read_to_end().await, b"+PONG\r\n+OK\r\n");
}

#[tokio::test]
async fn value_of_millions_of_bytes_comes_back_and_a_longer_one_is_refused() {
    let mut c = Client::connect(&Single::new(1));
    let value = "v".repeat((8 << 20) - 100);
    let request = format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n{value}\r\n", value.len());
    c.send(request.as_bytes()).await;
    c.expect("+OK\r\n").await;
    c.send(b"GET big\r\n").await;
    c.expect(&format!("${}\r\n{value}\r\n", value.len())).await;
    let value = "v".repeat(8 << 20);
    let request = format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n{value}\r\n", value.len());
    c.send(request.as_bytes()).await;
    c.expect("-ERR command of 8388624 bytes exceeds the limit of 8388608 bytes\r\n").await;
    c.check("STRLEN big", ":8388508\r\n").await;
}

#[tokio::test]
async fn transaction_that_grows_too_long_is_refused_and_frees_its_memory() {
    let settings = Settings { max_command_bytes: 1_000, ..Settings::default() };
    let mut c = Client::connect_with(&Single::new(1), settings, 1 << 20);
    let set = format!("SET k {}\r\n", "x".repeat(600));
    c.send(format!("MULTI\r\n{set}{set}PING\r\nEXEC\r\n").as_bytes()).await;
    let refused = "-ERR transaction exceeds the limit of 1000 bytes\r\n";
    c.expect(&format!("+OK\r\n+QUEUED\r\n{refused}{refused}")).await;
    c.expect("-EXECABORT Transaction discarded because of previous errors.\r\n").await;
    c.check("EXISTS k", ":0\r\n").await;
}

#[tokio::test]
async fn client_that_never_reads_is_closed_and_not_read_from_meanwhile() {
    let backend = Single::new(1);
    let write_timeout = Duration::from_millis(50);
    let settings = Settings { write_timeout, ..Settings::default() };
    let mut c = Client::connect_with(&backend, settings, 4_096);
    // The pipe holds one small piece of each direction; replies are far longer than requests.
    let set = format!("SET k {}\r\n", "v".repeat(2_000));
    c.send(set.as_bytes()).await;
    c.expect("+OK\r\n").await;
    let mut sent = 0;
    while c.stream.write_all(b"GET k\r\n").await.is_ok() {
        sent += 1;
        assert!(sent < 10_000, "the connection goes on reading");
    }
    let error = c.ended().await.expect_err("the client was too slow");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn silent_client_is_closed_only_when_configured() {
    let idle_timeout = Some(Duration::from_millis(50));
    let settings = Settings { idle_timeout, ..Settings::default() };
    let mut quick = Client::connect_with(&Single::new(1), settings, 4_096);
    let mut patient = Client::connect(&Single::new(1));
    assert_eq!(quick.read_to_end().await, b"");
    let error = quick.ended().await.expect_err("closed for silence");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    patient.check("PING", "+PONG\r\n").await;
}

#[tokio::test]
async fn shutdown_ends_idle_connections() {
    let mut c = Client::connect(&Single::new(1));
    c.check("PING", "+PONG\r\n").await;
    c.stop.send(true).expect("the connection listens");
    assert_eq!(c.read_to_end().await, b"");
    c.ended().await.expect("ended in an orderly way");
}

#[tokio::test]
async fn listener_refuses_one_client_too_many_and_drains_at_shutdown() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let settings = Arc::new(Settings { max_clients: 2, ..Settings::default() });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shared = Arc::<Shared>::default();
    let server =
        tokio::spawn(serve(listener, Single::new(1), settings, Arc::clone(&shared), async {
            let _ = stopped.await;
        }));
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = tokio::net::TcpStream::connect(address).await.expect("accepted");
        client.write_all(b"PING\r\n").await.expect("open");
        let mut reply = [0; 7];
        client.read_exact(&mut reply).await.expect("answered");
        clients.push(client);
    }
    let mut refused = tokio::net::TcpStream::connect(address).await.expect("accepted");
    let mut text = String::new();
    refused.read_to_string(&mut text).await.expect("closed");
    assert_eq!(text, "-ERR max number of clients reached\r\n");
    assert_eq!(shared.rejected.load(Ordering::SeqCst), 1);
    stop.send(()).expect("the server runs");
    timeout(DEADLINE, server).await.expect("drains in time").expect("does not panic");
    assert_eq!(shared.connected.load(Ordering::SeqCst), 0);
    let mut rest = Vec::new();
    clients[0].read_to_end(&mut rest).await.expect("closed");
    assert!(rest.is_empty());
}
