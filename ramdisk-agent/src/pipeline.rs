//! The bounded, ordered pipeline beneath capture, restore, verify and read-back.
//!
//! A feeder takes jobs from an iterator; for each it puts a reply channel on the *order* queue and the job on the *work* queue;
//! workers answer into the reply; the sink, on the caller's thread, walks the order queue. So results arrive in the order of
//! the jobs without a reorder map, at most `depth` jobs are alive even behind one slow one, and the first error in the order of
//! the stream is the one that is returned, whether the iterator, a worker or the sink made it. Nothing is detached: when
//! [`run`] returns, every thread has ended.

use std::thread::Builder;

use agent_api::ErrorKind;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, Result};

/// Runs `jobs` through `workers` into `sink`.
///
/// Each worker is a closure with its own state (compression context, buffers); there is one thread for each. `depth` is the
/// number of jobs that may be under way or waiting for the sink, and at least the number of workers: with one worker and a depth of
/// one, a job is through the sink before the next begins, all on the caller's thread. Where the system has no more threads to give, fewer
/// workers do; without any the run fails.
pub fn run<J, R, W>(
    jobs: impl Iterator<Item = Result<J>> + Send,
    workers: Vec<W>,
    depth: usize,
    mut sink: impl FnMut(R) -> Result<()>,
) -> Result<()>
where
    J: Send,
    R: Send,
    W: FnMut(J) -> Result<R> + Send,
{
    if depth <= 1 && workers.len() == 1 {
        return one_by_one(jobs, workers, sink);
    }
    let depth = depth.max(workers.len()).max(1);
    let (order_in, order_out) = bounded::<Receiver<Result<R>>>(depth);
    let (work_in, work_out) = bounded::<(J, Sender<Result<R>>)>(depth);
    std::thread::scope(|scope| {
        let feeder = move || feed(jobs, &order_in, &work_in);
        // It ends when nobody takes what it has.
        let feeder = Builder::new().spawn_scoped(scope, feeder).map_err(no_thread)?;
        let mut threads = Vec::with_capacity(workers.len() + 1);
        for mut work in workers {
            let work_out = work_out.clone();
            let work = move || {
                for (job, reply) in work_out {
                    // Nobody listens after an error further up the stream: the answer is not wanted then.
                    let _ = reply.send(work(job));
                }
            };
            match Builder::new().spawn_scoped(scope, work) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(no_thread(error)),
                Err(_) => break,
            }
        }
        drop(work_out);
        threads.push(feeder);
        let result = drain(order_out, &mut sink);
        // Joined one by one, so that the scope does not raise a panic again: it has printed its message and is an error here.
        let ended: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        if ended.iter().any(std::result::Result::is_err) {
            result.and(Err(panic_error()))
        } else {
            result
        }
    })
}

/// Every job through the only worker and the sink before the next.
fn one_by_one<J, R, W: FnMut(J) -> Result<R>>(
    jobs: impl Iterator<Item = Result<J>>,
    mut workers: Vec<W>,
    mut sink: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let work = &mut workers[0];
    for job in jobs {
        sink(work(job?)?)?;
    }
    Ok(())
}

/// Walks the order queue. Takes it by value: dropping it early is what stops the feeder, and so the workers.
fn drain<R>(
    order: Receiver<Receiver<Result<R>>>,
    sink: &mut impl FnMut(R) -> Result<()>,
) -> Result<()> {
    for reply in order {
        sink(reply.recv().unwrap_or_else(|_| Err(panic_error()))?)?;
    }
    Ok(())
}

fn panic_error() -> Error {
    Error::new(ErrorKind::Internal, "a thread of the pipeline panicked; its message is above")
}

fn no_thread(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, "starting a thread, of which this system allows no more")
        .because(error)
}

fn feed<J, R>(
    jobs: impl Iterator<Item = Result<J>>,
    order: &Sender<Receiver<Result<R>>>,
    work: &Sender<(J, Sender<Result<R>>)>,
) {
    for job in jobs {
        let (reply, answer) = bounded(1);
        if order.send(answer).is_err() {
            return;
        }
        match job {
            // All workers gone means that all panicked: the sink sees the dropped reply.
            Ok(job) => {
                if work.send((job, reply)).is_err() {
                    return;
                }
            }
            Err(error) => {
                // The sink may have stopped at an earlier error.
                let _ = reply.send(Err(error));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn workers<F: Fn(u64) -> Result<u64> + Send + Copy>(n: usize, f: F) -> Vec<F> {
        vec![f; n]
    }

    #[test]
    fn results_come_in_order_whatever_the_workers_take() {
        let mut seen = Vec::new();
        let slow_even = |job: u64| {
            if job.is_multiple_of(2) {
                std::thread::sleep(Duration::from_micros(300));
            }
            Ok(job * 10)
        };
        run((0..200).map(Ok), workers(4, slow_even), 8, |r| {
            seen.push(r);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, (0..200).map(|i| i * 10).collect::<Vec<_>>());
        seen.clear();
        run((0..200).map(Ok), workers(1, slow_even), 1, |r| {
            seen.push(r);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, (0..200).map(|i| i * 10).collect::<Vec<_>>());
    }

    #[test]
    fn at_most_depth_jobs_are_alive_behind_a_slow_one() {
        let taken = AtomicUsize::new(0);
        let done = AtomicUsize::new(0);
        let most = AtomicUsize::new(0);
        let jobs = (0..100_u64).inspect(|_| {
            let alive = taken.fetch_add(1, Ordering::SeqCst) + 1 - done.load(Ordering::SeqCst);
            most.fetch_max(alive, Ordering::SeqCst);
        });
        run(jobs.map(Ok), workers(3, Ok), 6, |_| {
            std::thread::sleep(Duration::from_micros(200));
            done.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        // Six on the order queue, one at the sink, one in the feeder's hand.
        assert!(most.load(Ordering::SeqCst) <= 8, "{most:?} alive");
    }

    #[test]
    fn the_first_error_in_stream_order_wins() {
        let failing = |job: u64| {
            if job >= 10 { Err(Error::new(ErrorKind::Disk, format!("job {job}"))) } else { Ok(job) }
        };
        let mut seen = 0;
        let error = run((0..100).map(Ok), workers(4, failing), 8, |_| {
            seen += 1;
            Ok(())
        })
        .unwrap_err();
        assert_eq!((seen, error.to_string().as_str()), (10, "job 10"));
    }

    #[test]
    fn errors_of_the_source_and_of_the_sink_end_the_run() {
        let jobs = (0..5)
            .map(|i| if i == 3 { Err(Error::new(ErrorKind::Store, "source")) } else { Ok(i) });
        let error = run(jobs, workers(2, Ok), 4, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        let error = run((0..1_000_000).map(Ok), workers(2, Ok), 4, |job| {
            if job == 7 { Err(Error::new(ErrorKind::NoSpace, "sink")) } else { Ok(()) }
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn a_panicking_worker_is_an_error_and_not_a_hang() {
        let boom = |job| if job == 5 { panic!("boom") } else { Ok(job) };
        let error = run((0..50).map(Ok), workers(2, boom), 4, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
}
