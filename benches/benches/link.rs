//! One link, three runtimes: frames go over a pair of Unix sockets to an echo and back, both on one thread.
//!
//! `cargo bench -p toru-benches --bench link`; `cargo test` runs each once.
//! monoio is what the core runs on, with io_uring and with epoll; tokio and tokio-uring are what it could. Each as it is
//! without settings, and without a direct send, which the core tries first.

use std::hint::black_box;
use std::os::unix::net::UnixStream as StdStream;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// A request of wrk's as a frame, and one with 16 KiB.
const FRAME_BYTES: [usize; 2] = [300, 16 * 1024];

fn pair() -> (StdStream, StdStream) {
    let pair = StdStream::pair().expect("two sockets");
    for stream in [&pair.0, &pair.1] {
        stream.set_nonblocking(true).expect("a socket");
    }
    pair
}

/// Defines a function that sends `$count` frames there and back, each after the last, on monoio or tokio-uring, whose
/// calls take buffers and give them back.
macro_rules! owned_buffers {
    ($name:ident, $stream:expr, $spawn:path, $read:ident, $write:ident) => {
        pub async fn $name(size: usize, count: u64) -> Duration {
            let (near, far) = pair();
            $spawn(async move {
                let mut far = $stream(far);
                let mut buffer = Vec::with_capacity(size);
                loop {
                    let (read, got) = far.$read(buffer).await;
                    if read.expect("it reads") == 0 {
                        return;
                    }
                    let (wrote, mut got) = far.$write(got).await;
                    wrote.expect("it writes");
                    got.clear();
                    buffer = got;
                }
            });
            let mut near = $stream(near);
            let mut frame = vec![b'x'; size];
            let mut buffer = Vec::with_capacity(size);
            let began = Instant::now();
            for _ in 0..count {
                let (wrote, sent) = near.$write(frame).await;
                wrote.expect("it writes");
                frame = sent;
                let mut left = size;
                while left > 0 {
                    buffer.clear();
                    let (read, got) = near.$read(buffer).await;
                    left -= read.expect("it reads");
                    buffer = got;
                }
                black_box(&buffer);
            }
            began.elapsed()
        }
    };
}

mod on_monoio {
    use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
    use monoio::net::UnixStream;

    use super::*;

    fn stream(stream: StdStream) -> UnixStream {
        UnixStream::from_std(stream).expect("a socket")
    }

    owned_buffers!(exchange, stream, monoio::spawn, read, write_all);
}

mod on_tokio_uring {
    use tokio_uring::net::UnixStream;

    use super::*;

    struct Stream(UnixStream);

    impl Stream {
        async fn read(&mut self, buffer: Vec<u8>) -> (std::io::Result<usize>, Vec<u8>) {
            self.0.read(buffer).await
        }

        async fn write_all(&mut self, buffer: Vec<u8>) -> (std::io::Result<()>, Vec<u8>) {
            self.0.write_all(buffer).await
        }
    }

    fn stream(stream: StdStream) -> Stream {
        // Its operations wait in the ring, not in a readiness queue.
        stream.set_nonblocking(false).expect("a socket");
        Stream(UnixStream::from_std(stream))
    }

    owned_buffers!(exchange, stream, tokio_uring::spawn, read, write_all);
}

async fn on_tokio(size: usize, count: u64) -> Duration {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    let (near, far) = pair();
    let (mut near, mut far) =
        (UnixStream::from_std(near).expect("a socket"), UnixStream::from_std(far).expect("a socket"));
    tokio::task::spawn_local(async move {
        let mut buffer = vec![0; size];
        loop {
            let count = far.read(&mut buffer).await.expect("it reads");
            if count == 0 {
                return;
            }
            far.write_all(&buffer[..count]).await.expect("it writes");
        }
    });
    let (frame, mut buffer) = (vec![b'x'; size], vec![0; size]);
    let began = Instant::now();
    for _ in 0..count {
        near.write_all(&frame).await.expect("it writes");
        near.read_exact(&mut buffer).await.expect("it reads");
        black_box(&buffer);
    }
    began.elapsed()
}

fn link(criterion: &mut Criterion) {
    let has_io_uring = io_uring::IoUring::new(8).is_ok();
    if !has_io_uring {
        println!("skipped: io_uring is not to be had here");
    }
    for size in FRAME_BYTES {
        let mut group = criterion.benchmark_group(format!("link: {size} bytes there and back"));
        group.throughput(Throughput::Bytes(size as u64 * 2));
        if has_io_uring {
            group.bench_function("monoio, io_uring", |bench| {
                let mut runtime =
                    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().expect("a runtime");
                bench.iter_custom(|count| runtime.block_on(on_monoio::exchange(size, count)));
            });
            group.bench_function("tokio-uring", |bench| {
                bench.iter_custom(|count| tokio_uring::start(on_tokio_uring::exchange(size, count)));
            });
        }
        group.bench_function("monoio, epoll", |bench| {
            let mut runtime =
                monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().expect("a runtime");
            bench.iter_custom(|count| runtime.block_on(on_monoio::exchange(size, count)));
        });
        group.bench_function("tokio", |bench| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
            let local = tokio::task::LocalSet::new();
            bench.iter_custom(|count| local.block_on(&runtime, on_tokio(size, count)));
        });
        group.finish();
    }
}

criterion_group!(links, link);
criterion_main!(links);
