//! Appends to the Rust crate `walrus-rust`, as the benchmarks of this project append to their other peers.
//!
//!     walrus-peer append|batch  none|each  THREADS  COUNT  ENTRY_BYTES
//!
//! Prints entries per second, one number. The log goes to the folder that `WALRUS_DATA_DIR` names. Each thread has a
//! topic of its own. `batch` appends in batches of 1,000.

use std::env;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use walrus_rust::{disable_fd_backend, FsyncSchedule, ReadConsistency, Walrus};

const BATCH_ENTRIES: usize = 1000;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [mode, sync, threads, count, entry_bytes] = arguments.as_slice() else {
        return Err(Error::new(ErrorKind::InvalidInput, "usage: append|batch none|each THREADS COUNT ENTRY_BYTES"));
    };
    let number = |text: &String| text.parse::<usize>().map_err(|error| Error::new(ErrorKind::InvalidInput, error));
    let (threads, count, entry_bytes) = (number(threads)?, number(count)?, number(entry_bytes)?);
    let batched = mode == "batch";
    let schedule = if sync == "each" { FsyncSchedule::SyncEach } else { FsyncSchedule::NoFsync };

    disable_fd_backend(); // the mapped one; io_uring is often refused in containers
    let log = Arc::new(Walrus::with_consistency_and_schedule(ReadConsistency::StrictlyAtOnce, schedule)?);
    let barrier = Arc::new(Barrier::new(threads + 1));
    let workers: Vec<_> = (0..threads)
        .map(|worker| {
            let (log, barrier) = (log.clone(), barrier.clone());
            thread::spawn(move || -> Result<()> {
                let topic = format!("topic-{worker}");
                let entry = vec![b'x'; entry_bytes];
                let batch = vec![entry.as_slice(); BATCH_ENTRIES];
                barrier.wait();
                if batched {
                    for _ in 0..count / threads / BATCH_ENTRIES {
                        log.batch_append_for_topic(&topic, &batch)?;
                    }
                } else {
                    for _ in 0..count / threads {
                        log.append_for_topic(&topic, &entry)?;
                    }
                }
                Ok(())
            })
        })
        .collect();
    barrier.wait();
    let start = Instant::now();
    for worker in workers {
        worker.join().map_err(|_| Error::other("a thread failed"))??;
    }
    println!("{}", count as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
