//! [`Nginx`]: Debian's nginx with one custom server.

use std::fs;

use tempfile::TempDir;

use super::process::Daemon;
use super::tls::Pair;
use super::web::start_nginx;

/// An nginx with one server. Ends when dropped.
#[derive(Debug)]
pub struct Nginx {
    // Declared before the directory, so that the process ends before its files are removed.
    daemon: Daemon,
    port: u16,
    directory: TempDir,
}

/// A line of its access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub status: u16,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    pub path: String,
    /// Subject of the client's certificate; empty if there is none.
    pub client: String,
}

impl Nginx {
    /// Serves HTTPS with this certificate, or HTTP; `directives` go into the `server` block.
    pub fn start(tls: Option<&Pair>, directives: &str) -> Self {
        Self::start_with("", tls, directives)
    }

    /// Like [`Nginx::start`], with additional directives for the `http` block.
    pub fn start_with(http_directives: &str, tls: Option<&Pair>, directives: &str) -> Self {
        let (daemon, port, directory) = start_nginx(|directory, port| {
            let here = directory.display();
            let listen = match tls {
                Some(Pair { certificate, key }) => format!(
                    "listen 127.0.0.1:{port} ssl http2; ssl_certificate {}; ssl_certificate_key {};",
                    certificate.display(),
                    key.display()
                ),
                None => format!("listen 127.0.0.1:{port};"),
            };
            format!(
                "daemon off; user root; worker_processes 1; pid {here}/pid; events {{}}\n\
                 http {{ {http_directives} log_format all '$status $server_protocol $request_uri $ssl_client_s_dn';\n\
                 access_log {here}/access.log all;\n\
                 client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
                 fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
                 server {{ {listen} {directives} }} }}\n"
            )
        });
        Self { daemon, port, directory }
    }

    /// `127.0.0.1:PORT`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends the server, so that the log is complete, and returns all requests in order.
    pub fn stop(mut self) -> Vec<Logged> {
        self.daemon.stop();
        let log = fs::read_to_string(self.directory.path().join("access.log")).expect("read the access log");
        let parse = |line: &str| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            Logged {
                status: words[0].parse().expect("a status"),
                protocol: words[1].to_owned(),
                path: words[2].to_owned(),
                client: words[3].trim_matches('-').to_owned(),
            }
        };
        log.lines().map(parse).collect()
    }
}
