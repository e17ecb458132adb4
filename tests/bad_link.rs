//! `bad-link ADDRESS SERVER`: a TCP proxy that is a long, narrow and unreliable line to one server, for
//! `scripts/bench-pull`. Works until its stdin closes, and then tells as JSON what it has carried.
//!
//! Latency is a delay line: what comes in goes out half a round trip later, however much is on its way. So is opening
//! a connection, which costs one round trip. A connection sends as TCP does: ten segments at first, one byte more for
//! every byte that is acknowledged, and never more than a window in a round trip. All connections share one line.
//!
//! A share of the connections is reset (RST, not FIN). Clients keep connections open, some for all that they fetch, so
//! this share alone would only say how many connections a client opens. Therefore everything that could be a
//! connection counts as one: every *exchange*, which begins when the client speaks after the server has, and within a
//! long one every further *span* of bytes. What is doomed breaks at a random segment of the answer, or of the span;
//! before the first one, it looks like a connection that a middlebox has forgotten. The length of an answer is what
//! its head says (HTTP/1, without TLS).

use std::collections::VecDeque;
use std::io::{self, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::net::sockopt::set_socket_linger;

/// What arrives at once or not at all.
const SEGMENT: u64 = 1460;
/// What a connection may send before anything is acknowledged (RFC 6928).
const FIRST_WINDOW: usize = 10 * 1460;
/// What is read, and takes its turn on the line, at once.
const CHUNK: usize = 64 << 10;
/// How much may wait for the line, as in the buffer of a router.
const BUFFER: Duration = Duration::from_millis(10);

/// A long, narrow and unreliable line to one server.
#[derive(Parser)]
struct Args {
    /// Listen here
    address: String,
    /// Pass everything on to this server
    server: String,
    /// A round trip takes this many milliseconds
    #[arg(long, default_value_t = 50)]
    rtt: u64,
    /// All connections together get this many Mbit/s in each direction
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// The most that is on its way of one connection, in KiB. The default is what Linux advertises at most, unless
    /// it is told otherwise
    #[arg(long, default_value_t = 3072)]
    window: usize,
    /// Reset so many exchanges of a hundred, and so many spans of long ones
    #[arg(long, default_value_t = 0.0)]
    resets: f64,
    /// A span is so many MiB
    #[arg(long, default_value_t = 64)]
    span: u64,
    /// Where chance begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Default)]
struct Carried {
    connections: AtomicU64,
    exchanges: AtomicU64,
    resets: AtomicU64,
    /// Bytes that clients were sent.
    bytes: AtomicU64,
}

struct Link {
    args: Args,
    up: Line,
    down: Line,
    carried: Carried,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(&args.address)?;
    let (up, down) = (Line::new(args.rate), Line::new(args.rate));
    // The proxy has its threads until the process ends.
    let link: &Link = Box::leak(Box::new(Link { args, up, down, carried: Carried::default() }));
    thread::spawn(move || {
        for client in listener.incoming() {
            let number = link.carried.connections.fetch_add(1, Relaxed);
            thread::spawn(move || match client.and_then(|client| Connection::new(link, client, number)) {
                Ok(connection) => connection.run(),
                Err(error) => eprintln!("connection {number}: {error}"),
            });
        }
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    let Carried { connections, exchanges, resets, bytes } = &link.carried;
    println!(
        r#"{{"connections":{},"exchanges":{},"resets":{},"bytes":{}}}"#,
        connections.load(Relaxed),
        exchanges.load(Relaxed),
        resets.load(Relaxed),
        bytes.load(Relaxed)
    );
    Ok(())
}

/// What all connections share in one direction.
struct Line {
    bytes_per_second: f64,
    /// When it has sent what it was given.
    free: Mutex<Instant>,
}

impl Line {
    fn new(megabits: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let bytes_per_second = megabits as f64 * 125_000.0;
        Self { bytes_per_second, free: Mutex::new(Instant::now()) }
    }

    /// Sends so many bytes, and says when the last one is on its way.
    fn send(&self, bytes: usize) -> Instant {
        #[expect(clippy::cast_precision_loss, reason = "at most a chunk")]
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        loop {
            let wait = {
                let mut free = lock(&self.free);
                let now = Instant::now();
                let wait = free.saturating_duration_since(now).saturating_sub(BUFFER);
                if wait.is_zero() {
                    *free = (*free).max(now) + takes;
                    return *free;
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
    up: Way,
    down: Way,
    fate: Mutex<Fate>,
    broken: AtomicBool,
}

/// One direction of a connection: what is on its way.
#[derive(Default)]
struct Way {
    state: Mutex<OnTheWay>,
    changed: Condvar,
}

#[derive(Default)]
struct OnTheWay {
    /// What has been sent, and when it arrives. The last one is empty.
    sent: VecDeque<(Instant, Vec<u8>)>,
    /// What has arrived, and when the sender hears of it.
    arrived: VecDeque<(Instant, usize)>,
    /// Bytes that were sent, and that the sender has not heard of.
    unacknowledged: usize,
    /// How many bytes these may be.
    window: usize,
}

impl<'a> Connection<'a> {
    fn new(link: &'a Link, client: TcpStream, number: u64) -> io::Result<Self> {
        let server = TcpStream::connect(&link.args.server)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let fate = Mutex::new(Fate::new(&link.args, number));
        let (up, down) = (Way::default(), Way::default());
        Ok(Self { link, client, server, up, down, fate, broken: AtomicBool::new(false) })
    }

    /// Carries both directions until both have ended. After that the sockets are closed, and with them, if it was
    /// so decided, the connection is reset. What happens to it the ends see: no error leaves this.
    fn run(self) {
        let opened = Instant::now() + Duration::from_millis(self.link.args.rtt);
        let this = &self;
        thread::scope(|scope| {
            let end = |result: io::Result<()>| {
                if result.is_err() {
                    this.abort();
                }
            };
            scope.spawn(move || end(this.take_in(&this.client, &this.up, &this.link.up, Some(opened))));
            scope.spawn(move || end(this.take_in(&this.server, &this.down, &this.link.down, None)));
            scope.spawn(move || end(this.give_out(&this.server, &this.up, false)));
            scope.spawn(move || end(this.give_out(&this.client, &this.down, true)));
        });
    }

    /// Reads from one end and sends it on its way.
    fn take_in(
        &self,
        mut from: &TcpStream,
        way: &Way,
        line: &Line,
        opened: Option<Instant>,
    ) -> io::Result<()> {
        let most = self.link.args.window << 10;
        let latency = Duration::from_millis(self.link.args.rtt) / 2;
        let mut buffer = vec![0; CHUNK];
        lock(&way.state).window = FIRST_WINDOW.min(most);
        loop {
            let room = self.room(way, most)?;
            let read = from.read(&mut buffer[..room.min(CHUNK)])?;
            let from_client = opened.is_some();
            if from_client && read > 0 && lock(&self.fate).asked() {
                self.link.carried.exchanges.fetch_add(1, Relaxed);
            }
            let arrives = opened.map_or(Instant::now(), |opened| opened.max(Instant::now()));
            let arrives = arrives.max(line.send(read)) + latency;
            let mut state = lock(&way.state);
            state.unacknowledged += read;
            state.sent.push_back((arrives, buffer[..read].to_vec()));
            way.changed.notify_all();
            if read == 0 {
                return Ok(());
            }
        }
    }

    /// Waits until something may be sent, and says how many bytes.
    fn room(&self, way: &Way, most: usize) -> io::Result<usize> {
        let mut state = lock(&way.state);
        loop {
            if self.broken.load(Relaxed) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let now = Instant::now();
            while let Some((_, bytes)) = state.arrived.front().copied().filter(|(heard, _)| *heard <= now) {
                state.arrived.pop_front();
                state.unacknowledged -= bytes;
                state.window = (state.window + bytes).min(most);
            }
            if state.unacknowledged < state.window {
                return Ok(state.window - state.unacknowledged);
            }
            let wait = state.arrived.front().map_or(Duration::from_secs(1), |(heard, _)| *heard - now);
            state = way.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets arrive at the other end what is on its way.
    fn give_out(&self, mut to: &TcpStream, way: &Way, is_answer: bool) -> io::Result<()> {
        let latency = Duration::from_millis(self.link.args.rtt) / 2;
        loop {
            let (arrives, bytes) = {
                let mut state = lock(&way.state);
                loop {
                    if self.broken.load(Relaxed) {
                        return Ok(());
                    }
                    if let Some(next) = state.sent.pop_front() {
                        break next;
                    }
                    state = way.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            thread::sleep(arrives.saturating_duration_since(Instant::now()));
            if bytes.is_empty() {
                return to.shutdown(Shutdown::Write);
            }
            let whole = if is_answer { lock(&self.fate).answered(&bytes) } else { bytes.len() };
            to.write_all(&bytes[..whole])?;
            if is_answer {
                self.link.carried.bytes.fetch_add(whole as u64, Relaxed);
            }
            if whole < bytes.len() {
                return self.reset();
            }
            lock(&way.state).arrived.push_back((Instant::now() + latency, bytes.len()));
            way.changed.notify_all();
        }
    }

    /// Has the client see that the connection is reset: a socket that does not linger says RST when it is closed.
    fn reset(&self) -> io::Result<()> {
        if !self.broken.load(Relaxed) {
            self.link.carried.resets.fetch_add(1, Relaxed);
            set_socket_linger(&self.client, Some(Duration::ZERO))?;
        }
        self.abort();
        Ok(())
    }

    /// Has all threads of this connection end.
    fn abort(&self) {
        self.broken.store(true, Relaxed);
        let _ = self.client.shutdown(Shutdown::Read); // has ended before
        let _ = self.server.shutdown(Shutdown::Both); // as above
        for way in [&self.up, &self.down] {
            // So that nobody is between looking and waiting.
            drop(lock(&way.state));
            way.changed.notify_all();
        }
    }
}

/// When a connection is reset.
struct Fate {
    random: u64,
    resets: f64,
    span: u64,
    /// Whether the server has spoken last, or nobody has.
    answered: bool,
    /// Bytes that follow in this exchange after this span.
    rest: u64,
    /// Bytes that follow in this span.
    left: u64,
    /// How many of these are still there when the connection ends.
    doomed: Option<u64>,
}

impl Fate {
    fn new(args: &Args, number: u64) -> Self {
        let random = args.seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(number << 20);
        let (resets, span) = (args.resets, args.span << 20);
        Self { random, resets, span, answered: true, rest: 0, left: 0, doomed: None }
    }

    /// The client has spoken; says whether an exchange begins with that.
    fn asked(&mut self) -> bool {
        std::mem::take(&mut self.answered)
    }

    /// The server has sent these bytes; says how many of them arrive.
    fn answered(&mut self, bytes: &[u8]) -> usize {
        if !std::mem::replace(&mut self.answered, true) {
            self.rest = answer_len(bytes);
            self.begin();
        }
        let mut passed = 0;
        while passed < bytes.len() {
            if self.left == 0 {
                // More than the head has told: as if it were a span.
                self.rest = if self.rest == 0 { self.span } else { self.rest };
                self.begin();
            }
            let next = ((bytes.len() - passed) as u64).min(self.left);
            if let Some(doomed) = self.doomed.filter(|doomed| self.left - next <= *doomed) {
                return passed + usize::try_from(self.left - doomed).expect("within what was sent");
            }
            self.left -= next;
            passed += usize::try_from(next).expect("at most what was sent");
        }
        passed
    }

    /// Begins a span.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "any segment of the span will do"
    )]
    fn begin(&mut self) {
        self.left = self.rest.min(self.span);
        self.rest -= self.left;
        let is_doomed = self.chance() * 100.0 < self.resets;
        let segment = (self.chance() * self.left.div_ceil(SEGMENT) as f64) as u64;
        self.doomed = is_doomed.then_some(self.left - segment * SEGMENT);
    }

    /// A number from 0 to 1 (splitmix64).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// How long an answer is that begins with these bytes.
fn answer_len(begin: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(begin);
    let (head, _) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body = lengths.next().and_then(|(_, length)| length.trim().parse().ok()).unwrap_or(0);
    head.len() as u64 + 4 + body
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
