//! `airbundle`: packs bundles on a host with network access.

fn main() -> std::process::ExitCode {
    airbundle::cli::airbundle::main()
}
