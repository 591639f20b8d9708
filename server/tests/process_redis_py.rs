//! redis-py, the client that most Python programs use, against all three replicas.

mod process;

use process::Cluster;
use std::process::Command;

/// What the script answers if Python lacks the module.
const NO_MODULE: i32 = 77;

#[test]
fn redis_py_pipelines_transactions_watches_and_expiry_work_at_every_replica() {
    let cluster = Cluster::start("redis-py", "file");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/redis_py.py");
    let Ok(output) = Command::new("python3").arg(script).args(cluster.addresses()).output() else {
        println!("skipped: python3 is not installed");
        return;
    };
    if output.status.code() == Some(NO_MODULE) {
        println!("skipped: Python has no module redis");
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim() == "ok", "{said}{complained}");
    cluster.converged();
}
