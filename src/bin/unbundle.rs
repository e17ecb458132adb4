//! `unbundle`: verifies, unpacks and serves bundles at an air-gapped site.

fn main() -> std::process::ExitCode {
    airbundle::cli::unbundle::main()
}
