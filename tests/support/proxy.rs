//! [`Proxy`]: Debian's tinyproxy.

use std::fs;
use std::net::TcpStream;

use tempfile::TempDir;

use super::process::Daemon;
use super::web::free_port;

/// A proxy for HTTP and HTTPS. Ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    // Declared before the directory, so that the process ends before its files are removed.
    daemon: Daemon,
    port: u16,
    _directory: TempDir,
}

impl Proxy {
    /// Starts one without authentication.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts one with additional directives, such as `BasicAuth USER PASSWORD`.
    pub fn start_with(directives: &str) -> Self {
        for _ in 0..10 {
            let (directory, port) = (TempDir::new().expect("create a temporary directory"), free_port());
            let config = directory.path().join("tinyproxy.conf");
            let text = format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 100\nLogLevel Connect\n{directives}\n"
            );
            fs::write(&config, text).expect("write tinyproxy.conf");
            let command = ["tinyproxy".as_ref(), "-d".as_ref(), "-c".as_ref(), config.as_os_str()];
            let mut daemon = Daemon::spawn(command, &directory.path().join("log"));
            if daemon.wait_for(|_| TcpStream::connect(("127.0.0.1", port)).ok()).is_ok() {
                return Self { daemon, port, _directory: directory };
            }
        }
        panic!("no free port for tinyproxy");
    }

    /// `127.0.0.1:PORT`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the requests so far, as `GET http://…` or `CONNECT host:port`.
    pub fn requests(&self) -> Vec<String> {
        let log = self.daemon.log();
        let request = |line: &str| {
            let (_, request) = line.split_once("Request (file descriptor ")?.1.split_once("): ")?;
            Some(request.trim_end_matches(" HTTP/1.1").to_owned())
        };
        log.lines().filter_map(request).collect()
    }
}
