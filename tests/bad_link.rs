//! `bad-link ADDRESS SERVER`: a TCP proxy that simulates a slow, lossy link to one server, for
//! `scripts/bench-pull`. Runs until its stdin closes, then prints its counters as JSON.
//!
//! Data is delayed by half a round trip in each direction, independent of the amount in flight. Opening a
//! connection costs one round trip. A connection sends like TCP: ten segments at first, one more byte per
//! acknowledged byte, and at most a window per round trip. All connections share the bandwidth of the link.
//!
//! A percentage of the exchanges is reset (RST, not FIN). Clients reuse connections to different degrees, so
//! a percentage of the connections would favor clients that open few of them. Instead, an *exchange* begins
//! when the client sends after the server has sent, and a long response is divided into *spans* of bytes,
//! each of which can be reset as well. A doomed span breaks at a random segment. If it breaks before the
//! first one, it looks like a connection that a middlebox has dropped. The length of a response follows from
//! its header (HTTP/1 without TLS).

use std::collections::VecDeque;
use std::io::{self, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::net::sockopt::set_socket_linger;

/// Bytes per segment, the unit of loss.
const SEGMENT: u64 = 1460;
/// Initial congestion window in bytes (RFC 6928).
const FIRST_WINDOW: usize = 10 * 1460;
/// Maximum number of bytes that are read and sent on the link at once.
const CHUNK: usize = 64 << 10;
/// Maximum queue of the link, like the buffer of a router.
const BUFFER: Duration = Duration::from_millis(10);

/// A slow, lossy link to one server.
#[derive(Parser)]
struct Args {
    /// Address to listen on
    address: String,
    /// Server to forward to
    server: String,
    /// Round-trip time in milliseconds
    #[arg(long, default_value_t = 50)]
    rtt: u64,
    /// Bandwidth of all connections together, in Mbit/s per direction
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Maximum window of a connection in KiB. The default is the maximum that Linux advertises by default
    #[arg(long, default_value_t = 3072)]
    window: usize,
    /// Percentage of exchanges, and of spans of long ones, to reset
    #[arg(long, default_value_t = 0.0)]
    resets: f64,
    /// Span in MiB
    #[arg(long, default_value_t = 64)]
    span: u64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    exchanges: AtomicU64,
    resets: AtomicU64,
    /// Bytes sent to clients.
    bytes: AtomicU64,
}

struct Link {
    args: Args,
    up: Bandwidth,
    down: Bandwidth,
    counters: Counters,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(&args.address)?;
    let (up, down) = (Bandwidth::new(args.rate), Bandwidth::new(args.rate));
    // Its threads run until the process ends.
    let link: &Link = Box::leak(Box::new(Link { args, up, down, counters: Counters::default() }));
    thread::spawn(move || {
        for client in listener.incoming() {
            let number = link.counters.connections.fetch_add(1, Relaxed);
            thread::spawn(move || match client.and_then(|client| Connection::new(link, client, number)) {
                Ok(connection) => connection.run(),
                Err(error) => eprintln!("connection {number}: {error}"),
            });
        }
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    let Counters { connections, exchanges, resets, bytes } = &link.counters;
    println!(
        r#"{{"connections":{},"exchanges":{},"resets":{},"bytes":{}}}"#,
        connections.load(Relaxed),
        exchanges.load(Relaxed),
        resets.load(Relaxed),
        bytes.load(Relaxed)
    );
    Ok(())
}

/// Bandwidth of the link in one direction, shared by all connections.
struct Bandwidth {
    bytes_per_second: f64,
    /// Time at which all queued bytes are sent.
    idle_at: Mutex<Instant>,
}

impl Bandwidth {
    fn new(megabits: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let bytes_per_second = megabits as f64 * 125_000.0;
        Self { bytes_per_second, idle_at: Mutex::new(Instant::now()) }
    }

    /// Queues `bytes`, waiting while the queue is full, and returns the time at which they are sent.
    fn send(&self, bytes: usize) -> Instant {
        #[expect(clippy::cast_precision_loss, reason = "at most a chunk")]
        let duration = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        loop {
            let wait = {
                let mut idle_at = lock(&self.idle_at);
                let now = Instant::now();
                let wait = idle_at.saturating_duration_since(now).saturating_sub(BUFFER);
                if wait.is_zero() {
                    *idle_at = (*idle_at).max(now) + duration;
                    return *idle_at;
                }
                wait
            };
            thread::sleep(wait);
        }
    }
}

struct Connection<'a> {
    link: &'a Link,
    client: TcpStream,
    server: TcpStream,
    up: Direction,
    down: Direction,
    resets: Mutex<ResetSchedule>,
    aborted: AtomicBool,
}

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    state: Mutex<InFlight>,
    changed: Condvar,
}

#[derive(Default)]
struct InFlight {
    /// Sent data with its time of arrival. An empty chunk ends the stream.
    sent: VecDeque<(Instant, Vec<u8>)>,
    /// Lengths of delivered chunks with the time at which their acknowledgment arrives.
    delivered: VecDeque<(Instant, usize)>,
    /// Bytes sent and not acknowledged yet.
    unacknowledged: usize,
    /// Maximum of `unacknowledged`, in bytes.
    window: usize,
}

impl<'a> Connection<'a> {
    fn new(link: &'a Link, client: TcpStream, number: u64) -> io::Result<Self> {
        let server = TcpStream::connect(&link.args.server)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let resets = Mutex::new(ResetSchedule::new(&link.args, number));
        let (up, down) = (Direction::default(), Direction::default());
        Ok(Self { link, client, server, up, down, resets, aborted: AtomicBool::new(false) })
    }

    /// Forwards both directions until both have ended. Dropping the sockets then closes or resets the
    /// connection. Errors abort it, which both ends notice, so none is returned.
    fn run(self) {
        let opened = Instant::now() + Duration::from_millis(self.link.args.rtt);
        let this = &self;
        thread::scope(|scope| {
            let end = |result: io::Result<()>| {
                if result.is_err() {
                    this.abort();
                }
            };
            scope.spawn(move || end(this.receive(&this.client, &this.up, &this.link.up, Some(opened))));
            scope.spawn(move || end(this.receive(&this.server, &this.down, &this.link.down, None)));
            scope.spawn(move || end(this.deliver(&this.server, &this.up, false)));
            scope.spawn(move || end(this.deliver(&this.client, &this.down, true)));
        });
    }

    /// Reads from one end and queues the data on the link.
    fn receive(
        &self,
        mut from: &TcpStream,
        direction: &Direction,
        bandwidth: &Bandwidth,
        opened: Option<Instant>,
    ) -> io::Result<()> {
        let max_window = self.link.args.window << 10;
        let latency = Duration::from_millis(self.link.args.rtt) / 2;
        let mut buffer = vec![0; CHUNK];
        lock(&direction.state).window = FIRST_WINDOW.min(max_window);
        loop {
            let free = self.wait_for_window(direction, max_window)?;
            let read = from.read(&mut buffer[..free.min(CHUNK)])?;
            let from_client = opened.is_some();
            if from_client && read > 0 && lock(&self.resets).client_sent() {
                self.link.counters.exchanges.fetch_add(1, Relaxed);
            }
            let arrives = opened.map_or(Instant::now(), |opened| opened.max(Instant::now()));
            let arrives = arrives.max(bandwidth.send(read)) + latency;
            let mut state = lock(&direction.state);
            state.unacknowledged += read;
            state.sent.push_back((arrives, buffer[..read].to_vec()));
            direction.changed.notify_all();
            if read == 0 {
                return Ok(());
            }
        }
    }

    /// Waits until the window has space, and returns how many bytes fit.
    fn wait_for_window(&self, direction: &Direction, max_window: usize) -> io::Result<usize> {
        let mut state = lock(&direction.state);
        loop {
            if self.aborted.load(Relaxed) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let now = Instant::now();
            while let Some((_, bytes)) =
                state.delivered.front().copied().filter(|(acked_at, _)| *acked_at <= now)
            {
                state.delivered.pop_front();
                state.unacknowledged -= bytes;
                state.window = (state.window + bytes).min(max_window);
            }
            if state.unacknowledged < state.window {
                return Ok(state.window - state.unacknowledged);
            }
            let wait =
                state.delivered.front().map_or(Duration::from_secs(1), |(acked_at, _)| *acked_at - now);
            state = direction.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes the data in flight to the other end when it arrives.
    fn deliver(&self, mut to: &TcpStream, direction: &Direction, is_response: bool) -> io::Result<()> {
        let latency = Duration::from_millis(self.link.args.rtt) / 2;
        loop {
            let (arrives, bytes) = {
                let mut state = lock(&direction.state);
                loop {
                    if self.aborted.load(Relaxed) {
                        return Ok(());
                    }
                    if let Some(next) = state.sent.pop_front() {
                        break next;
                    }
                    state = direction.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            thread::sleep(arrives.saturating_duration_since(Instant::now()));
            if bytes.is_empty() {
                return to.shutdown(Shutdown::Write);
            }
            let passed = if is_response { lock(&self.resets).server_sent(&bytes) } else { bytes.len() };
            to.write_all(&bytes[..passed])?;
            if is_response {
                self.link.counters.bytes.fetch_add(passed as u64, Relaxed);
            }
            if passed < bytes.len() {
                return self.reset();
            }
            lock(&direction.state).delivered.push_back((Instant::now() + latency, bytes.len()));
            direction.changed.notify_all();
        }
    }

    /// Resets the connection of the client: closing a socket with a linger time of zero sends RST.
    fn reset(&self) -> io::Result<()> {
        if !self.aborted.load(Relaxed) {
            self.link.counters.resets.fetch_add(1, Relaxed);
            set_socket_linger(&self.client, Some(Duration::ZERO))?;
        }
        self.abort();
        Ok(())
    }

    /// Ends all threads of this connection.
    fn abort(&self) {
        self.aborted.store(true, Relaxed);
        let _ = self.client.shutdown(Shutdown::Read); // may be shut down already
        let _ = self.server.shutdown(Shutdown::Both); // as above
        for direction in [&self.up, &self.down] {
            // The lock ensures that no thread is between its check of `aborted` and its wait.
            drop(lock(&direction.state));
            direction.changed.notify_all();
        }
    }
}

/// The points at which a connection is reset.
struct ResetSchedule {
    state: u64,
    resets: f64,
    span: u64,
    /// True if the server has sent last, or nothing was sent.
    is_idle: bool,
    /// Bytes left of this exchange after this span.
    after_span: u64,
    /// Bytes left of this span.
    left: u64,
    /// Value of `left` at which the connection is reset. `None`: this span passes.
    reset_at: Option<u64>,
}

impl ResetSchedule {
    fn new(args: &Args, number: u64) -> Self {
        let state = args.seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(number << 20);
        let (resets, span) = (args.resets, args.span << 20);
        Self { state, resets, span, is_idle: true, after_span: 0, left: 0, reset_at: None }
    }

    /// Records that the client sent data. Returns true if this begins an exchange.
    fn client_sent(&mut self) -> bool {
        std::mem::take(&mut self.is_idle)
    }

    /// Records that the server sent these bytes. Returns how many of them pass.
    fn server_sent(&mut self, bytes: &[u8]) -> usize {
        if !std::mem::replace(&mut self.is_idle, true) {
            self.after_span = response_len(bytes);
            self.begin_span();
        }
        let mut passed = 0;
        while passed < bytes.len() {
            if self.left == 0 {
                // More bytes than the header states count as another span.
                self.after_span = if self.after_span == 0 { self.span } else { self.after_span };
                self.begin_span();
            }
            let next = ((bytes.len() - passed) as u64).min(self.left);
            if let Some(reset_at) = self.reset_at.filter(|reset_at| self.left - next <= *reset_at) {
                return passed + usize::try_from(self.left - reset_at).expect("within the sent bytes");
            }
            self.left -= next;
            passed += usize::try_from(next).expect("at most what was sent");
        }
        passed
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "any segment of the span will do"
    )]
    fn begin_span(&mut self) {
        self.left = self.after_span.min(self.span);
        self.after_span -= self.left;
        let is_doomed = self.random() * 100.0 < self.resets;
        let segment = (self.random() * self.left.div_ceil(SEGMENT) as f64) as u64;
        self.reset_at = is_doomed.then_some(self.left - segment * SEGMENT);
    }

    /// Returns a number in [0, 1) (splitmix64).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn random(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Returns the length of the response that begins with these bytes.
fn response_len(begin: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(begin);
    let (header, _) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let fields = header.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body = lengths.next().and_then(|(_, length)| length.trim().parse().ok()).unwrap_or(0);
    header.len() as u64 + 4 + body
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
