//! Lines of the log on their way: a bounded queue and the one thread that writes them.
//!
//! Whoever logs hands a line over and goes on: a reader of standard error that stalls (a full pipe) must stop nobody, the
//! control thread least of all. Full: the line is lost and counted; once lines flow again, how many is said. Called by
//! [`super::install`] and by `main` at the end of the process.

use std::io::{self, Write};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::sync::{Arc, AtomicU64, Ordering, spawn_background};

/// Lines on their way at most; a burst of this size is some two megabytes.
pub(super) const LINES_MAX: usize = 4_096;

/// The end of the process waits for its last lines at most so long.
pub const FLUSH_MAX: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Dropped once everything before it is written.
    Flush(flume::Sender<()>),
}

/// The loggers' end of the queue.
#[derive(Clone)]
pub(super) struct Lines {
    queue: flume::Sender<Item>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes to `out`; `say` tells how many lines were dropped, by logging it.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        say: impl Fn(&Lines, u64) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, lines) = flume::bounded(LINES_MAX);
        let this = Self { queue, dropped: Arc::default() };
        let own = this.clone();
        spawn_background("log", move || write_all(out, &lines, &own, say))?;
        Ok(this)
    }

    /// Lines lost because the queue was full, or because they could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was logged before is written, for at most `most`; false: it was not.
    pub(super) fn flush(&self, most: Duration) -> bool {
        let (done, written) = flume::bounded::<()>(1);
        // A full queue has half of the time to move at all.
        self.queue.send_timeout(Item::Flush(done), most / 2).is_ok()
            && matches!(written.recv_timeout(most / 2), Err(flume::RecvTimeoutError::Disconnected))
    }
}

/// One write is one line: the formatter hands over whole ones.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

/// Never ends: it holds an end of the queue itself, to say what was dropped.
fn write_all(mut out: impl Write, lines: &flume::Receiver<Item>, own: &Lines, say: impl Fn(&Lines, u64)) {
    let (mut said, mut flows) = (0, true);
    while let Ok(item) = lines.recv() {
        // Whoever flushes is told after what there is to say of the dropped is said.
        let _done = match item {
            Item::Line(line) => {
                flows = out.write_all(&line).is_ok();
                if !flows {
                    own.dropped.fetch_add(1, Ordering::Relaxed);
                }
                None
            }
            Item::Flush(done) => Some(done),
        };
        let dropped = own.dropped();
        // Nobody is left to be told while the log cannot be written.
        if flows && dropped > said && lines.is_empty() {
            say(own, dropped - said);
            said = dropped;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe whose reader takes a write only when the test says so.
    struct Pipe {
        taken: flume::Sender<Vec<u8>>,
        may: flume::Receiver<()>,
    }

    impl Write for Pipe {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Once the test has let go of its end, everything flows.
            let _ = self.may.recv();
            self.taken.send(line.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_stops_nobody_and_what_was_dropped_is_counted_and_said_once() {
        let (taken, read) = flume::bounded(2 * LINES_MAX);
        let (reader, may) = flume::bounded::<()>(1);
        let say = |lines: &Lines, dropped: u64| drop(lines.clone().write_all(format!("dropped {dropped}").as_bytes()));
        let mut lines = Lines::start(Pipe { taken, may }, say).unwrap();
        // One is perhaps in the pipe's hands, the queue holds its fill, the rest is lost.
        for number in 0..LINES_MAX + 101 {
            lines.write_all(format!("{number}").as_bytes()).unwrap();
        }
        let dropped = lines.dropped();
        assert!((100..=101).contains(&dropped), "{dropped}");
        assert!(!lines.flush(Duration::from_millis(2)), "it does not flow");
        drop(reader);
        assert!(lines.flush(Duration::from_secs(60)));
        // What is said of the dropped is a line like any other.
        assert!(lines.flush(Duration::from_secs(60)));
        let written: Vec<String> = read.drain().map(|line| String::from_utf8(line).unwrap()).collect();
        let kept = LINES_MAX + 101 - usize::try_from(dropped).unwrap();
        assert_eq!(written.len(), kept + 1);
        assert_eq!((&*written[0], &*written[kept]), ("0", &*format!("dropped {dropped}")));
        lines.write_all(b"last").unwrap();
        assert!(lines.flush(Duration::from_secs(60)));
        assert_eq!(read.drain().collect::<Vec<_>>(), [b"last".to_vec()], "and once");
    }

    /// A pipe whose reader is gone, and comes back.
    struct Broken(Arc<AtomicU64>, flume::Sender<Vec<u8>>);

    impl Write for Broken {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if self.0.load(Ordering::Acquire) == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.1.send(line.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_takes_are_counted_and_said_once_they_flow() {
        let (reader, (taken, read)) = (Arc::new(AtomicU64::new(0)), flume::bounded(16));
        let say = |lines: &Lines, dropped: u64| drop(lines.clone().write_all(format!("dropped {dropped}").as_bytes()));
        let mut lines = Lines::start(Broken(reader.clone(), taken), say).unwrap();
        for _ in 0..3 {
            lines.write_all(b"lost").unwrap();
            assert!(lines.flush(Duration::from_secs(60)));
        }
        assert_eq!((lines.dropped(), read.len()), (3, 0));
        reader.store(1, Ordering::Release);
        lines.write_all(b"kept").unwrap();
        assert!(lines.flush(Duration::from_secs(60)) && lines.flush(Duration::from_secs(60)));
        assert_eq!(read.drain().collect::<Vec<_>>(), [b"kept".to_vec(), b"dropped 3".to_vec()]);
    }
}
