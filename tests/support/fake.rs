//! [`Fake`]: an HTTP server on loopback that misbehaves in ways that no real one can be made to.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::Bytes;
use super::image::Image;

/// Content of an honest server: bytes by path, each with its media type.
#[derive(Debug, Clone, Default)]
pub struct Content(BTreeMap<String, (String, Bytes)>);

/// A received request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Path and query.
    pub path: String,
    /// Number of earlier requests for the same path.
    pub nth: usize,
    pub method: String,
    /// Body of a POST request.
    pub body: String,
    /// Time of arrival.
    pub at: Instant,
    headers: Vec<(String, String)>,
}

/// Framing of a body: how a client learns its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The true `Content-Length`.
    Length,
    /// This `Content-Length`, whatever the true length is.
    Claimed(usize),
    /// Chunked transfer encoding.
    Chunked,
    /// None: the body ends with the connection, as in HTTP/1.0.
    Close,
}

/// A response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub framing: Framing,
    /// Breaks the connection after this many bytes of the body.
    pub cut: Option<usize>,
    /// Delay after each `step` bytes of the body.
    pub pause: Duration,
    /// Bytes per `pause`; unused without one.
    pub step: usize,
    /// Stalls for 30 s after this many bytes of the body.
    pub stall: Option<usize>,
}

/// Limits the total number of body bytes sent, and counts them.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    limit: usize,
    sent: usize,
    transfers: Vec<Transfer>,
}

/// A body in transfer or at its end.
#[derive(Debug, Clone)]
pub struct Transfer {
    pub path: String,
    /// Bytes sent.
    pub sent: usize,
    /// Total bytes.
    pub len: usize,
}

impl Gate {
    /// Raises the limit to this total number of bytes.
    pub fn open(&self, limit: usize) {
        self.state.lock().expect("the lock is not poisoned").limit = limit;
        self.changed.notify_all();
    }

    /// Waits until transfers stop making progress, and returns those since the last call.
    pub fn settle(&self) -> Vec<Transfer> {
        let mut before = usize::MAX;
        loop {
            let state = self.state.lock().expect("the lock is not poisoned");
            if state.sent == before {
                break;
            }
            before = state.sent;
            drop(state);
            thread::sleep(Duration::from_millis(250));
        }
        self.transfers()
    }

    /// Returns the transfers since the last call.
    pub fn transfers(&self) -> Vec<Transfer> {
        std::mem::take(&mut self.state.lock().expect("the lock is not poisoned").transfers)
    }

    fn begin(&self, path: &str, len: usize) -> usize {
        let mut state = self.state.lock().expect("the lock is not poisoned");
        state.transfers.push(Transfer { path: path.to_owned(), sent: 0, len });
        state.transfers.len() - 1
    }

    fn pass(&self, number: usize, len: usize) {
        let mut state = self.state.lock().expect("the lock is not poisoned");
        while state.sent + len > state.limit {
            state = self.changed.wait(state).expect("the lock is not poisoned");
        }
        state.sent += len;
        if let Some(transfer) = state.transfers.get_mut(number) {
            transfer.sent += len;
        }
    }
}

/// The server. Ends when dropped.
#[derive(Debug)]
pub struct Fake {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stopped: Arc<AtomicBool>,
}

impl Content {
    /// Adds a file by its URL in a list, to be requested through [`Fake::mirror`].
    pub fn file(&mut self, url: &str, bytes: impl Into<Bytes>) {
        let (_, path) = url.split_once("://").expect("a URL");
        self.put(&format!("/{path}"), "application/octet-stream", bytes);
    }

    /// Adds an image by its reference `host/repository:tag` in a list, likewise.
    pub fn image(&mut self, reference: &str, image: &Image) {
        let (name, tag) = reference.rsplit_once(':').expect("a tag");
        for (digest, bytes) in image.parts() {
            self.blob(name, &digest, bytes);
        }
        for (descriptor, bytes) in image.manifests() {
            self.manifest(name, &descriptor.digest, &descriptor.media_type, Bytes::clone(&bytes));
        }
        self.manifest(name, tag, &image.root.media_type, Bytes::clone(&image.manifest));
    }

    /// Adds a manifest by tag or digest.
    pub fn manifest(&mut self, name: &str, reference: &str, media_type: &str, bytes: impl Into<Bytes>) {
        self.put(&format!("/v2/{name}/manifests/{reference}"), media_type, bytes);
    }

    /// Adds a config or a layer.
    pub fn blob(&mut self, name: &str, digest: &str, bytes: impl Into<Bytes>) {
        self.put(&format!("/v2/{name}/blobs/{digest}"), "application/octet-stream", bytes);
    }

    /// Adds anything else by its path.
    pub fn path(&mut self, path: &str, bytes: impl Into<Bytes>) {
        self.put(path, "application/octet-stream", bytes);
    }

    fn put(&mut self, path: &str, media_type: &str, bytes: impl Into<Bytes>) {
        self.0.insert(path.to_owned(), (media_type.to_owned(), bytes.into()));
    }

    /// Returns the response of an honest server: ranges, a strong entity tag, 404.
    pub fn respond(&self, seen: &Seen) -> Reply {
        let Some((media_type, bytes)) = self.0.get(&seen.path) else { return Reply::status(404) };
        let etag = format!("\"{}\"", &super::sha256(&bytes[..bytes.len().min(64)])[7..23]);
        let mut reply = Reply::ok(bytes).with("content-type", media_type).with("etag", &etag);
        let current = seen.header("if-range").is_none_or(|tag| tag == etag);
        if let Some((first, last)) = seen.range().filter(|_| current) {
            if first >= bytes.len() {
                return Reply::status(416).with("content-range", &format!("bytes */{}", bytes.len()));
            }
            let last = last.min(bytes.len() - 1);
            reply.status = 206;
            reply.body = bytes[first..=last].to_vec();
            reply = reply.with("content-range", &format!("bytes {first}-{last}/{}", bytes.len()));
        }
        reply
    }
}

impl Seen {
    /// Returns the value of a header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns the first and last byte of a `Range` header.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().expect("a number"), last.parse().expect("a closed range")))
    }

    /// Returns all of it as text, to be searched.
    pub fn text(&self) -> String {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        format!("{} {}\n{}\n\n{}", self.method, self.path, headers.join("\n"), self.body)
    }

    /// Returns the same request without a header.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let headers = self.headers.iter().filter(|(key, _)| key != name).cloned().collect();
        Self { headers, ..self.clone() }
    }

    /// True if it requests only the first byte, to learn the size.
    pub fn is_probe(&self) -> bool {
        self.range() == Some((0, 0))
    }

    /// True if it requests a file or a blob and is not a probe.
    pub fn is_transfer(&self) -> bool {
        !self.path.contains("/manifests/") && !self.is_probe()
    }
}

impl Reply {
    /// 200 with a body.
    pub fn ok(body: &[u8]) -> Self {
        let (headers, framing, pause) = (Vec::new(), Framing::Length, Duration::ZERO);
        Self {
            status: 200,
            headers,
            body: body.to_vec(),
            framing,
            cut: None,
            pause,
            step: 16 << 10,
            stall: None,
        }
    }

    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok(b"") }
    }

    /// 302 to `location`.
    pub fn redirect(location: &str) -> Self {
        Self::status(302).with("location", location)
    }

    /// Returns the same response with this header set.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Returns the same response without a header.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self
    }
}

impl Fake {
    /// Serves `content`, with each response changed by `twist`.
    pub fn start(content: Content, twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve("127.0.0.1:0", content, twist, None)
    }

    /// Like [`Fake::start`], at another address of this machine.
    pub fn start_at(
        address: &str,
        content: Content,
        twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(address, content, twist, None)
    }

    /// Serves `content` honestly, with files and blobs limited by a gate.
    pub fn behind(gate: &Arc<Gate>, content: Content) -> Self {
        Self::serve("127.0.0.1:0", content, |_, reply| reply, Some(Arc::clone(gate)))
    }

    fn serve(
        address: &str,
        content: Content,
        twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
        gate: Option<Arc<Gate>>,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("find a free port");
        let addr = listener.local_addr().expect("find a free port");
        let fake = Self { addr, seen: Arc::default(), stopped: Arc::default() };
        let (seen, stopped) = (Arc::clone(&fake.seen), Arc::clone(&fake.stopped));
        let respond = Arc::new(move |seen: &Seen| twist(seen, content.respond(seen)));
        thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, respond, gate) = (Arc::clone(&seen), Arc::clone(&respond), gate.clone());
                thread::spawn(move || {
                    // A client may close its connection at any time.
                    let _ = connection
                        .and_then(|connection| serve(connection, &seen, &*respond, gate.as_deref()));
                });
            }
        });
        fake
    }

    /// Serves `content` as an honest server does.
    pub fn honest(content: Content) -> Self {
        Self::start(content, |_, reply| reply)
    }

    /// `127.0.0.1:PORT`.
    pub fn addr(&self) -> String {
        self.addr.to_string()
    }

    /// Returns the arguments that route requests for `host` here: `--mirror host=URL`.
    pub fn mirror(&self, host: &str) -> [String; 2] {
        ["--mirror".to_owned(), format!("{host}=http://{}/{host}", self.addr)]
    }

    /// Returns every request so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("the lock is not poisoned").clone()
    }

    /// Returns the requests for paths that contain `part`.
    pub fn seen_of(&self, part: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path.contains(part)).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr); // wakes the listener up
    }
}

/// Serves one request per connection.
fn serve(
    connection: TcpStream,
    log: &Mutex<Vec<Seen>>,
    respond: &dyn Fn(&Seen) -> Reply,
    gate: Option<&Gate>,
) -> io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut lines = reader.by_ref().lines();
    let Some(request) = lines.next().transpose()? else { return Ok(()) };
    let mut words = request.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    let mut length = 0;
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    let seen = {
        let mut log = log.lock().expect("the lock is not poisoned");
        let nth = log.iter().filter(|seen| seen.path == path).count();
        log.push(Seen { path, nth, method, body, at: Instant::now(), headers });
        log.last().expect("the image was pushed").clone()
    };
    let reply = respond(&seen);
    // A HEAD response has no body.
    let cut = if seen.method == "HEAD" { Some(0) } else { reply.cut };
    let gate = gate.filter(|_| seen.is_transfer() && cut.is_none());
    let gate = gate.map(|gate| (gate, gate.begin(&seen.path, reply.body.len())));
    send(connection, &Reply { cut, ..reply }, gate)
}

fn send(mut connection: TcpStream, reply: &Reply, gate: Option<(&Gate, usize)>) -> io::Result<()> {
    write!(connection, "HTTP/1.1 {} Fake\r\nconnection: close\r\n", reply.status)?;
    for (name, value) in &reply.headers {
        write!(connection, "{name}: {value}\r\n")?;
    }
    match reply.framing {
        Framing::Length => write!(connection, "content-length: {}\r\n\r\n", reply.body.len())?,
        Framing::Claimed(length) => write!(connection, "content-length: {length}\r\n\r\n")?,
        Framing::Chunked => write!(connection, "transfer-encoding: chunked\r\n\r\n")?,
        Framing::Close => write!(connection, "\r\n")?,
    }
    let end = reply.cut.unwrap_or(usize::MAX).min(reply.stall.unwrap_or(usize::MAX)).min(reply.body.len());
    let body = &reply.body[..end];
    let step = if reply.pause.is_zero() && gate.is_none() { 256 << 10 } else { reply.step };
    for part in body.chunks(step) {
        if let Some((gate, number)) = gate {
            gate.pass(number, part.len());
        }
        if reply.framing == Framing::Chunked {
            write!(connection, "{:x}\r\n", part.len())?;
        }
        connection.write_all(part)?;
        if reply.framing == Framing::Chunked {
            connection.write_all(b"\r\n")?;
        }
        thread::sleep(reply.pause);
    }
    if reply.stall.is_some() {
        thread::sleep(Duration::from_secs(30));
    }
    if reply.framing == Framing::Chunked && reply.cut.is_none() {
        connection.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}
