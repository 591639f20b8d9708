//! What the protocol costs: three cores in one thread, for each command.
//!
//! `cargo bench -p quorate-benches --bench core`
//!
//! What the contracts cost: the same with `-- --save-baseline off`, then with `--features contracts` and
//! `-- --baseline off`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quorate_benches::CorePump;

fn three_cores(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("three cores, one thread");
    for (commands, bytes) in [(1, 16), (16, 16), (64, 16), (64, 1024)] {
        const BATCHES: u64 = 256;
        group.throughput(Throughput::Elements(BATCHES * commands as u64));
        let id = BenchmarkId::new(format!("{bytes} B"), format!("{commands} a batch"));
        let mut pump = CorePump::new();
        group.bench_function(id, |bencher| {
            bencher.iter(|| pump.run(BATCHES, commands, bytes));
        });
    }
    group.finish();
}

criterion_group!(benches, three_cores);
criterion_main!(benches);
