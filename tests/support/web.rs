//! [`Web`]: Debian's nginx on loopback.

use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, iter, process};

use tempfile::TempDir;

use super::process::Daemon;

/// Path that only [`Web::requests`] requests.
const MARK: &str = "/.requests-so-far";

/// An nginx that serves a directory. Ends when dropped.
#[derive(Debug)]
pub struct Web {
    // Declared before the directory, so that the process ends before its files are removed.
    daemon: Daemon,
    port: u16,
    directory: TempDir,
}

/// A line of a server's access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Path and query as the client sent them.
    pub path: String,
    pub status: u16,
    /// `Range` header. Only nginx logs it.
    pub range: Option<String>,
}

impl Web {
    /// Serves the directory `root` with nginx's defaults except `gzip off`, `sendfile on` and `autoindex on`.
    pub fn start(root: &Path) -> Self {
        Self::start_with(root, "")
    }

    /// Like [`Web::start`], with additional directives in `location /`, such as `limit_rate 1m;`.
    pub fn start_with(root: &Path, directives: &str) -> Self {
        let root = root.canonicalize().unwrap_or_else(|error| panic!("serve {}: {error}", root.display()));
        let (daemon, port, directory) =
            start_nginx(|directory, port| configuration(directory, port, &root, directives));
        Self { daemon, port, directory }
    }

    /// `127.0.0.1:PORT`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the URL of `path`, relative to the served directory.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.addr())
    }

    /// Returns every request so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        // nginx logs a request after its last byte is sent. It has one worker, so the response to another
        // request implies that the lines of earlier ones are written.
        ureq::get(self.url(&MARK[1..]))
            .config()
            .http_status_as_error(false)
            .build()
            .call()
            .expect("request the mark");
        let log = fs::read_to_string(self.directory.path().join("access.log")).expect("read the access log");
        log.lines().map(parse).filter(|request| request.path != MARK).collect()
    }

    /// Returns nginx's error log so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

/// Starts an nginx with the configuration for a directory of its own and a free port.
pub(super) fn start_nginx(configuration: impl Fn(&Path, u16) -> String) -> (Daemon, u16, TempDir) {
    // nginx cannot listen on any free port, and another process may use a port between finding and binding
    // it.
    for _ in 0..10 {
        let (directory, port) = (TempDir::new().expect("create a temporary directory"), free_port());
        let config = directory.path().join("nginx.conf");
        fs::write(&config, configuration(directory.path(), port)).expect("write nginx.conf");
        let command = ["nginx".as_ref(), "-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), config.as_os_str()];
        let mut daemon = Daemon::spawn(command, &directory.path().join("log"));
        match daemon.wait_for(|_| TcpStream::connect(("127.0.0.1", port)).ok()) {
            Ok(_) => return (daemon, port, directory),
            Err(log) => assert!(log.contains("Address already in use"), "{log}"),
        }
    }
    panic!("no free port for nginx");
}

/// Returns a port that is free at the time of the call, and never the same one twice in a process.
///
/// The ports are below those that Linux gives to outgoing connections, so that none of these takes one before
/// the test's own server does.
pub fn free_port() -> u16 {
    const PORTS: Range<u32> = 20_000..32_000;
    // Processes that run at the same time begin at different places.
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(process::id()));
    let next = || PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
    let ports = iter::repeat_with(next).take(PORTS.len()).filter_map(|port| u16::try_from(port).ok());
    let mut free = ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("find a free port")
}

fn parse(line: &str) -> Request {
    let words: Vec<_> = line.split(' ').collect();
    let [status, range, method, path] = words[..] else { panic!("access log: {line}") };
    Request {
        method: method.to_owned(),
        path: path.to_owned(),
        status: status.parse().unwrap_or_else(|_| panic!("access log: {line}")),
        range: (range != "-").then(|| range.to_owned()),
    }
}

fn configuration(directory: &Path, port: u16, root: &Path, directives: &str) -> String {
    let directory = directory.display();
    let root = root.display();
    // `user root`: the tests' directories are private to the user who runs them. nginx ignores it for other
    // users.
    format!(
        r#"daemon off;
user root;
worker_processes 1;
pid {directory}/pid;
events {{ worker_connections 512; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    log_format short '$status $http_range $request_method $request_uri';
    access_log {directory}/access.log short;
    client_body_temp_path {directory}/client-body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    gzip off;
    sendfile on;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            root "{root}";
            autoindex on;
            {directives}
        }}
    }}
}}
"#
    )
}
