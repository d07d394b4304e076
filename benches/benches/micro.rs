//! The pure parts of a request's way, and what else could read JSON.
//!
//! `cargo bench -p toru-benches --bench micro`; `cargo test` runs each once.

use std::borrow::Cow;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use serde::Deserialize;
use toru_benches::{answer_frame, cases};
use toru_plugin_api::from_plugin::{PluginMessage, PluginMessageReader};

fn all_cases(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a request's way");
    for mut case in cases() {
        group.throughput(match case.bytes {
            0 => Throughput::Elements(1),
            bytes => Throughput::Bytes(bytes),
        });
        group.bench_function(&case.name, |bench| bench.iter(|| (case.run)()));
    }
    group.finish();
}

/// An answer as serde reads it, borrowed where that is possible.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    payload: Answer<'a>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    status: u16,
    #[serde(borrow)]
    body: Cow<'a, str>,
}

/// The same frames, read by what the core uses and by what it could use.
fn json(criterion: &mut Criterion) {
    for size in [30, 1024, 16 * 1024] {
        let frame = answer_frame(size)[4..].to_vec();
        // As from a plugin without an SDK: one space more, and it is read as any JSON.
        let mut spaced = frame.clone();
        let colon = memchr::memchr(b':', &spaced).expect("an object");
        spaced.insert(colon + 1, b' ');
        let mut group = criterion.benchmark_group(format!("json: answer of {size} bytes"));
        group.throughput(Throughput::Bytes(frame.len() as u64));
        let mut reader = PluginMessageReader::new();
        for (name, frame) in
            [("by position, as the core reads it", &frame), ("simd-json, in the core", &spaced)]
        {
            // It rewrites what it reads, so each run needs a copy, which is not counted.
            group.bench_function(name, |bench| {
                bench.iter_batched_ref(
                    || frame.clone(),
                    |frame| {
                        reader.read(frame, |message| match message {
                            PluginMessage::HttpResponse { response: Ok(response), .. } => {
                                black_box((response.status, response.body.len()))
                            }
                            other => panic!("{other:?}"),
                        })
                    },
                    BatchSize::SmallInput,
                );
            });
        }
        let mut buffers = simd_json::Buffers::new(frame.len());
        group.bench_function("simd-json, its tape", |bench| {
            bench.iter_batched_ref(
                || frame.clone(),
                |frame| {
                    let mut tape = simd_json::Tape(Vec::new());
                    simd_json::fill_tape(frame, &mut buffers, &mut tape).expect("valid");
                    black_box(tape.0.len())
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function("serde_json", |bench| {
            bench.iter(|| {
                let message: Message<'_> = serde_json::from_slice(black_box(&frame)).expect("valid");
                black_box((message.payload.status, message.payload.body.len()))
            });
        });
        group.bench_function("sonic-rs", |bench| {
            bench.iter(|| {
                let message: Message<'_> = sonic_rs::from_slice(black_box(&frame)).expect("valid");
                black_box((message.payload.status, message.payload.body.len()))
            });
        });
        group.finish();
    }
}

criterion_group!(micro, all_cases, json);
criterion_main!(micro);
