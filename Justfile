# Bare `just` lists the recipes.
default:
    @just --list

# Formatting, lints, and the crates without their default features.
check:
    .ci/run check

# The whole test suite, as the README gives it.
test:
    cargo test --workspace

# The test suite with the epoll driver.
test-epoll:
    TORU_TEST_DRIVER=epoll cargo test --workspace

# The Python SDK's tests.
test-python:
    python3 -m unittest discover -s plugin-api/python/tests

# Each fuzz target for so many seconds; needs a nightly compiler and `cargo install cargo-fuzz`.
fuzz seconds="60":
    #!/usr/bin/env bash
    set -euo pipefail
    for manifest in http plugin-api; do
      for target in "$manifest"/fuzz/fuzz_targets/*.rs; do
        name=$(basename "$target" .rs)
        (cd "$manifest" && cargo +nightly fuzz run "$name" -- -max_total_time={{seconds}} -timeout=10)
      done
    done

# The Node SDK's tests.
test-node:
    node --test plugin-api/node/test/*.test.js

# Micro-benchmarks: the pure parts, JSON readers and runtimes side by side, messages a second of the Rust SDK.
bench *flags:
    cargo bench -p toru-benches {{flags}}

# Instructions of the pure hot functions, beside those kept in benches/counts.txt; needs valgrind.
bench-counts *flags:
    cargo build --profile fast -p toru-benches --bins
    python3 benches/counts.py {{flags}}

# A thousand SIGKILLs under eight writers; 50 are in the suite.
kills:
    TORU_TEST_KILLS=1000 cargo test -p toru-tests --test it -- --nocapture --exact store::nothing_that_eight_writers_were_acknowledged_is_lost_to_sigkills

# A thousand restarts, disables and kills of twenty plugins at once; looks for zombies, orphans, sockets, descriptors.
cycles:
    cargo test -p toru-tests --test it -- --nocapture --exact crashes::a_thousand_starts_stops_and_kills_leave_nothing

# Durable values and reads a second: the disk, bare SQLite, the store, and the whole path from a plugin and over HTTP.
bench-kv:
    cargo bench -p toru-runtime --bench kv

# The example plugins, served from a temporary folder.
demo:
    cargo run --release -- demo

# The daemon, with flags: just serve --listen 127.0.0.1:0
serve *flags:
    cargo run --release -- serve {{flags}}

# The live view of a running daemon: just console --control-socket PATH
console *flags:
    cargo run --release -p toru-console -- {{flags}}

# Many idle plugins: start, cost at rest, stop.
bench-plugins *flags:
    cargo build --release --workspace --bins
    python3 benches/load/plugins.py {{flags}}

# A Python plugin behind Toru, beside the same application under uvicorn behind nginx. Needs wrk and nginx.
bench-python *flags:
    cargo build --release --workspace --bins
    python3 benches/load/python.py {{flags}}

# What the console sends to its terminal with 100 plugins, at rest and busy.
bench-console *flags:
    cargo build --profile fast --workspace --bins
    python3 benches/load/console.py --bin target/fast {{flags}}

# The pictures of the console in the README, from a real run under tmux.
picture:
    cargo build --workspace --bins
    console/picture.py

# What an open connection at rest costs.
bench-idle *flags:
    cargo build --release --workspace --bins
    python3 benches/load/idle.py {{flags}}

# What a new client waits while ten thousand connect at once, most of them beyond the descriptors.
bench-crowd *flags:
    cargo build --release --workspace --bins
    python3 benches/load/crowd.py {{flags}}

# Beside nginx, HAProxy and Caddy on this machine; the rows are kept in benches/runs. Needs wrk. Shorter: just bench-peers --quick
bench-peers *flags:
    cargo build --release --workspace --bins
    python3 benches/load/peers.py {{flags}}

# The latency of one plugin beside another that is slow or flooded. Needs wrk.
bench-fairness *flags:
    cargo build --release --workspace --bins
    python3 benches/load/fairness.py {{flags}}

# A thousand requests in flight to one plugin.
bench-flight *flags:
    cargo build --release --workspace --bins
    python3 benches/load/flight.py {{flags}}

# Ten minutes of load of mixed sizes: is memory flat? Needs wrk.
bench-soak *flags:
    cargo build --release --workspace --bins
    python3 benches/load/soak.py {{flags}}

# CPU of a request as workers, plugins and connections grow. Needs wrk.
bench-scaling *flags:
    cargo build --release --workspace --bins
    python3 benches/load/scaling.py {{flags}}

# Which functions run in a daemon at rest, for the linker to put side by side (runtime/order.ld). Two minutes.
order *flags:
    cargo build --release --workspace --bins
    python3 benches/load/order.py {{flags}}

# Everything that has to pass before a change lands.
ci:
    .ci/run
