//! `upstream DIR`: a stand-in for the internet, to try the programs against. Serves the tests' content on
//! loopback until its stdin closes, and writes the arguments for `airbundle pack` into DIR: `files.list`,
//! `images.list` and `mirror.args` (one argument per line).

mod support;

use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use support::upstream::Upstream;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(directory), None) = (args.next().map(PathBuf::from), args.next()) else {
        eprintln!("usage: upstream DIR");
        return ExitCode::from(2);
    };
    let upstream = Upstream::kubespray_like(&directory);
    upstream.write_lists(&directory);
    fs::write(directory.join("mirror.args"), upstream.mirror_args().join("\n") + "\n")
        .expect("write mirror.args");

    let bytes: usize = upstream.files().iter().map(|file| file.bytes.len()).sum();
    println!("files: {} of {bytes} bytes at http://{}/", upstream.files().len(), upstream.web.addr());
    for file in upstream.files() {
        println!("  {}", file.url);
    }
    println!("images: {} at http://{}/v2/", upstream.images().len(), upstream.registry.addr());
    for entry in upstream.images() {
        println!("  {} ({})", entry.reference, entry.image.platforms().join(", "));
    }
    // The caller waits for this last line.
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new()).expect("wait for stdin to close");
    ExitCode::SUCCESS
}
